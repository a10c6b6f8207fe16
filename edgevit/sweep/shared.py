"""What is made once for all points of a sweep: the dense model, sensitivities, tables, and the plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from edgevit.errors import BackendUnavailableError, ParityError, PlanError
from edgevit.pipeline.artefacts import build_pair, compare_with_onnx
from edgevit.pipeline.candidate import score
from edgevit.pipeline.graphs import Graphs
from edgevit.pipeline.inputs import Inputs, Wanted
from edgevit.pipeline.kits import needs_kit
from edgevit.pipeline.make import Start, decide
from edgevit.pipeline.precision import GraphFiles
from edgevit.pipeline.stages import Stages
from edgevit.pipeline.targets import graphs_for, open_graphs
from edgevit.plan import Plan
from edgevit.sweep.points import Point
from edgevit.target import Precision

_SIDE = "dense"


def decide_points(
    stages: Stages, inputs: Inputs, start: Start, points: Sequence[Point]
) -> dict[Point, Plan | PlanError]:
    """Solve for the plan of each point, or say why there is none; what plans are made of is measured once."""
    found: dict[Point, Plan | PlanError] = {}
    for done, point in enumerate(points):
        stages.progress("planning points", done, len(points))
        try:
            found[point], _ = decide(stages, replace(inputs, recipe=point.recipe), start)
        except PlanError as error:
            found[point] = error
    stages.progress("planning points", len(points), len(points))
    return found


def measure_dense(stages: Stages, inputs: Inputs, start: Start) -> None:
    """Export, build and score the dense model for every target; timed it is beside each slim one.

    What a target cannot do here is left to the builds of the points, which say so.

    Raises:
        ExportError, ParityError: a graph is not what it should be.
        BackendError: a runtime refuses a graph.
    """
    files = open_graphs(stages, inputs, {_SIDE: start.dense}, start.sets, None)
    for wanted in inputs.wanted:
        graphs = graphs_for(files, inputs, wanted)
        if not needs_kit(wanted.target):
            _score(stages, wanted, graphs, (files, start))


def _score(
    stages: Stages, wanted: Wanted, graphs: Mapping[Precision, Graphs], by: tuple[GraphFiles, Start]
) -> None:
    files, start = by
    for precision in wanted.precisions:
        device = wanted.target, precision
        with (
            suppress(BackendUnavailableError, ParityError),
            build_pair(stages, device, graphs[precision]) as built,
        ):
            compare_with_onnx(built, _SIDE, graphs[precision].by_side[_SIDE], files.probe)
            if start.sets.evaluation is not None:
                score(built, _SIDE, start.sets.evaluation)
