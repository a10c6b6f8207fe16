"""A sweep from end to end: what points share, what each of them needs, and timing, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevit.errors import AccuracyGateError, EdgevitError, LatencyGateError, MeasurementError
from edgevit.pipeline import BuildOptions, build
from edgevit.pipeline.inputs import Inputs, read_inputs
from edgevit.pipeline.make import open_start
from edgevit.pipeline.stages import Stages
from edgevit.plan import Plan
from edgevit.progress import Progress, silent
from edgevit.recipe import naming_recipe
from edgevit.report.html import render_sweep
from edgevit.report.model import load_report, to_json
from edgevit.report.sweep import Sweep
from edgevit.store import Store
from edgevit.sweep.make import OF_A_POINT, Task
from edgevit.sweep.on_ray import make_on_ray, require_ray
from edgevit.sweep.points import Point, Points
from edgevit.sweep.processes import Made, make_here
from edgevit.sweep.shared import decide_points, measure_dense
from edgevit.sweep.summary import Outcome, make_sweep

JSON_FILE = "sweep.json"
HTML_FILE = "sweep.html"


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is run."""

    targets: tuple[str, ...] = ()
    """Targets in place of the recipe's: names, or paths relative to the working directory."""
    jobs: int | None = None
    """Points that are made at once; None: one for every two cores, on Ray all."""
    ray: str | None = None
    """Address of a Ray cluster that makes them; None: processes of this machine."""


@dataclass(frozen=True)
class Swept:
    """A finished sweep."""

    sweep: Sweep
    errors: tuple[EdgevitError, ...]
    """Of points whose build missed a gate, or whose timing cannot be trusted."""


def run_sweep(points: Points, options: SweepOptions = SweepOptions(), progress: Progress = silent) -> Swept:
    """Build every point, measure them on this machine one after the other, and write what came out.

    Finished stages are kept, those that points share once for all: the same call goes on where it was
    stopped, and other budgets measure again only what is theirs.

    Raises:
        EdgevitError: what a build raises and every point would meet; or, where no point could be built, what
            the first of them met.
    """
    if options.ray is not None:
        require_ray(options.ray)
    targets = tuple(str(Path(name).resolve()) if Path(name).is_file() else name for name in options.targets)
    recipe = points.recipe
    with naming_recipe(recipe.path):
        inputs = read_inputs(points.points[0].recipe, targets)
    with Store.open(points.out, f"{recipe.recipe.name}-sweep") as store:
        stages = Stages(store, progress)
        with naming_recipe(recipe.path):
            plans = _prepare(stages, inputs, points.points)
        failed = {point: plan for point, plan in plans.items() if isinstance(plan, EdgevitError)}
        tasks = [
            Task(point, plan, targets) for point, plan in plans.items() if not isinstance(plan, EdgevitError)
        ]
        failed |= {task.point: error for task, error in _make(tasks, options, progress) if error is not None}
        outcomes = list(_measure(points.points, failed, targets, progress))
        _require_one(outcomes)
        found = make_sweep(points, outcomes)
        store.public.write(JSON_FILE, to_json(found))
        store.public.write(HTML_FILE, render_sweep(found))
        store.finish()
    return Swept(
        found, tuple(one.error for one in outcomes if one.report is not None and one.error is not None)
    )


def _prepare(stages: Stages, inputs: Inputs, points: Sequence[Point]) -> dict[Point, Plan | EdgevitError]:
    """Make what all points share, their plans first: what cannot be reached is known before long work."""
    start = open_start(stages, inputs)
    plans: dict[Point, Plan | EdgevitError] = dict(decide_points(stages, inputs, start, points))
    if not all(isinstance(plan, EdgevitError) for plan in plans.values()):
        measure_dense(stages, inputs, start)
    return plans


def _make(tasks: Sequence[Task], options: SweepOptions, progress: Progress) -> Iterator[Made]:
    if not tasks:
        return iter(())
    if options.ray is not None:
        return make_on_ray(options.ray, tasks, options.jobs, progress)
    return make_here(tasks, options.jobs, progress)


def _measure(
    points: Sequence[Point],
    failed: Mapping[Point, EdgevitError],
    targets: tuple[str, ...],
    progress: Progress,
) -> Iterator[Outcome]:
    """Build what is left of each point, which is what devices take part in; nothing else runs meanwhile."""
    for point in points:
        if point in failed:
            yield Outcome(point, None, failed[point])
            continue
        try:
            yield Outcome(point, build(point.recipe, point.folder, BuildOptions(targets), progress))
        except (AccuracyGateError, LatencyGateError, MeasurementError) as error:
            yield Outcome(point, load_report(point.folder), error)
        except OF_A_POINT as error:
            yield Outcome(point, None, error)


def _require_one(outcomes: Sequence[Outcome]) -> None:
    if all(outcome.report is None for outcome in outcomes):
        error = outcomes[0].error
        assert error is not None
        raise type(error)(
            f"no point of the sweep can be built. {outcomes[0].point.label}: {error}"
        ) from error
