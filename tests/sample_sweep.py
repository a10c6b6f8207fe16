"""A sweep as a real one would give it: hand-made, the same on every call."""

from __future__ import annotations

from pathlib import Path

from sample_report import report

from edgevit.budget import BudgetSection
from edgevit.errors import EdgevitError, LatencyGateError, PlanError
from edgevit.recipe import LoadedRecipe, ModelSection, Recipe
from edgevit.report.model import Drop, ModelSize, Report
from edgevit.report.sweep import Sweep
from edgevit.sweep.points import Point, Points
from edgevit.sweep.summary import Outcome, make_sweep


def built(share: float, slim_ms: float, points_lost: float, *, labelled: bool = True) -> Report:
    """Make the report of a point, with two candidates that are trusted and one that is not."""
    made = report(f"tiny-macs-{share}", slim_ms=slim_ms, labelled=labelled)
    slim = ModelSize(macs=round(made.models.dense.macs * share), params=3_902_000)
    results = []
    for result in made.results:
        lost = {}
        if result.dense.top1 is not None:
            top1 = result.dense.top1 - points_lost / 100
            lost["drop"] = Drop(points=points_lost, interval=(points_lost - 0.7, points_lost + 0.9))
            lost["slim"] = result.slim.model_copy(update={"top1": top1})
        results.append(result.model_copy(update=lost))
    models = made.models.model_copy(update={"slim": slim})
    return made.model_copy(update={"results": tuple(results), "models": models})


def outcomes(*, labelled: bool = True) -> list[Outcome]:
    """Make three points that were built, the last of which misses a gate, and one that was not."""
    written = Recipe(name="tiny", model=ModelSection(name="deit"))
    recipe = LoadedRecipe(written, Path("tiny.toml"), "3fa2" * 16)
    refused = PlanError("budget.macs: expected at least 3.1e+08, got 1.254e+08.")
    missed = LatencyGateError("latency gate missed: openvino-cpu fp32: median latency is 7.000 ms")
    found: list[tuple[float, Report | None, EdgevitError | None]] = [
        (0.8, built(0.8, 6.2, 0.1, labelled=labelled), None),
        (0.6, built(0.6, 4.8, 0.9, labelled=labelled), None),
        (0.1, None, refused),
        (0.5, built(0.5, 7.0, 2.0, labelled=labelled), missed),
    ]
    return [
        Outcome(Point(BudgetSection(macs=share), recipe, Path(f"macs-{share}")), made, error)
        for share, made, error in found
    ]


def sweep(*, labelled: bool = True) -> Sweep:
    """Put these points together."""
    found = outcomes(labelled=labelled)
    recipe = found[0].point.recipe
    return make_sweep(Points(recipe, "macs", Path(), tuple(one.point for one in found)), found)
