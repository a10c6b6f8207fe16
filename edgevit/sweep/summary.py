"""The reports of a sweep's builds put together: what each point is worth, and which none beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevit.errors import EdgevitError
from edgevit.measure.statistics import wilson_interval
from edgevit.report.comparison import pareto_front, top1_interval
from edgevit.report.model import ArtefactFacts, Interval, Latency, Report, Result
from edgevit.report.sweep import (
    Sweep,
    SweepDense,
    SweepLatency,
    SweepPoint,
    SweepResult,
    SweepSlim,
    accuracy_of,
)
from edgevit.sweep.points import Point, Points


@dataclass(frozen=True)
class Outcome:
    """What became of a point."""

    point: Point
    report: Report | None
    """None where it could not be built."""
    error: EdgevitError | None = None
    """Why not; or the gate that the build missed, a timing that cannot be trusted among them."""


def make_sweep(points: Points, outcomes: Sequence[Outcome]) -> Sweep:
    """Put together what was found; at least one point has a report."""
    reports = [outcome.report for outcome in outcomes if outcome.report is not None]
    first = reports[0]
    front = _front([result for report in reports for result in report.results])
    return Sweep(
        name=points.recipe.recipe.name,
        recipe_sha256=points.recipe.sha256,
        budget=points.key,
        source=first.source,
        dense=first.models.dense,
        evaluation=first.evaluation,
        versions=first.versions,
        machine=first.machine,
        warnings=tuple(_warnings(outcomes)),
        points=tuple(_point(outcome, front) for outcome in outcomes),
    )


def _warnings(outcomes: Sequence[Outcome]) -> list[str]:
    """List the warnings of all reports; those that not all points have are named after theirs."""
    by_text: dict[str, list[str]] = {}
    reports = [(outcome.point, outcome.report) for outcome in outcomes if outcome.report is not None]
    for point, report in reports:
        for warning in report.warnings:
            by_text.setdefault(warning, []).append(point.label)
    return [
        text if len(labels) == len(reports) else f"{', '.join(labels)}: {text}"
        for text, labels in by_text.items()
    ]


def _point(outcome: Outcome, front: dict[str, set[tuple[float, float]]]) -> SweepPoint:
    point, report, error = outcome.point, outcome.report, outcome.error
    asked, folder = point.budget.asked, point.folder.name
    if report is None:
        return SweepPoint(asked=asked, folder=folder, failed=str(error))
    count = report.evaluation.images if report.evaluation is not None else 0
    return SweepPoint(
        asked=asked,
        folder=folder,
        failed=None,
        missed=None if error is None else str(error),
        slim=report.models.slim,
        kl=report.budget.measured_kl if report.budget is not None else None,
        results=tuple(_result(result, count, front) for result in report.results),
    )


def _result(result: Result, images: int, front: dict[str, set[tuple[float, float]]]) -> SweepResult:
    dense = SweepDense(top1=result.dense.top1, latency_ms=_latency(result.dense.latency_ms))
    slim = SweepSlim(
        top1=result.slim.top1,
        latency_ms=_latency(result.slim.latency_ms),
        agreement=result.slim.agreement,
        interval=_interval(result, images),
    )
    place = slim.latency_ms.median, accuracy_of(slim)
    return SweepResult(
        target=result.target,
        precision=result.precision,
        chosen=result.chosen,
        refused=result.refused,
        front=result.verdict == "trusted" and place in front.get(result.target, ()),
        dense=dense,
        slim=slim,
        drop=result.drop,
        speedup=result.speedup,
        verdict=result.verdict,
        why=result.why,
    )


def _latency(times: Latency) -> SweepLatency:
    return SweepLatency(median=times.median, interval=times.interval, p90=times.p90, p99=times.p99)


def _interval(result: Result, images: int) -> Interval | None:
    """Return the interval of what the slim artefact is ranked by; None where its accuracy is not known."""
    if result.dense.top1 is not None and result.drop is not None:
        return top1_interval(result.dense.top1, result.drop)
    if result.slim.agreement is None or not images:
        return None
    found = wilson_interval(result.slim.agreement, images)
    return found.low, found.high


def _front(results: Sequence[Result]) -> dict[str, set[tuple[float, float]]]:
    """Return where the trusted artefacts of each target are that no other beats; dense ones compete too."""
    places: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        if result.verdict == "trusted":
            places.setdefault(result.target, []).extend(_places(result))
    return {target: set(pareto_front(found)) for target, found in places.items()}


def _places(result: Result) -> list[tuple[float, float]]:
    labelled = result.dense.top1 is not None
    sides: list[tuple[ArtefactFacts, float | None]] = [
        (result.dense, result.dense.top1 if labelled else 1.0),
        (result.slim, result.slim.top1 if labelled else result.slim.agreement),
    ]
    return [(side.latency_ms.median, worth) for side, worth in sides if worth is not None]
