"""What of a point needs no device: its slim model and its graphs. One function, wherever it runs."""

from __future__ import annotations

from dataclasses import dataclass

from edgevit.errors import BackendError, EdgevitError, ExportError, PlanError, TrainingError
from edgevit.pipeline.graphs import SIDES
from edgevit.pipeline.inputs import read_inputs
from edgevit.pipeline.make import make_slim, open_start
from edgevit.pipeline.models import keep_plan
from edgevit.pipeline.stages import Stages
from edgevit.pipeline.targets import graphs_for, open_graphs
from edgevit.pipeline.threads import compute_with
from edgevit.plan import Plan
from edgevit.progress import Progress, silent
from edgevit.recipe import naming_recipe
from edgevit.store import Store
from edgevit.sweep.points import Point

OF_A_POINT = (PlanError, ExportError, BackendError, TrainingError)
"""Errors that one budget may have and the next one not. All others would meet every point."""


@dataclass(frozen=True)
class Task:
    """What one process makes."""

    point: Point
    plan: Plan
    targets: tuple[str, ...]
    """In place of the recipe's."""
    threads: int | None = None
    """None: as many as the libraries like."""


def make_point(task: Task, progress: Progress = silent) -> EdgevitError | None:
    """Make a point's slim model and graphs as stages of its build directory; return why it cannot be built.

    Raises:
        EdgevitError: what would meet the other points too, such as a full disk.
    """
    recipe = task.point.recipe
    try:
        with (
            compute_with(task.threads),
            naming_recipe(recipe.path),
            Store.open(task.point.folder, recipe.recipe.name) as store,
        ):
            _make(Stages(store, progress), task)
    except OF_A_POINT as error:
        return error
    return None


def _make(stages: Stages, task: Task) -> None:
    inputs = read_inputs(task.point.recipe, task.targets)
    start = open_start(stages, inputs)
    keep_plan(stages, task.plan)
    made = make_slim(stages, inputs, start, task.plan)
    models = dict(zip(SIDES, (start.dense, made.slim), strict=True))
    files = open_graphs(stages, inputs, models, start.sets, task.plan)
    for wanted in inputs.wanted:
        graphs_for(files, inputs, wanted)
