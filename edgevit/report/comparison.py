"""Several builds side by side: which of their candidates are shown, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from edgevit.report.model import Drop, Interval, Report, Result


class Compared(NamedTuple):
    """One candidate of one of several builds."""

    number: int
    """Of the build, from 0, in the order in which they were given."""
    report: Report
    result: Result


def fastest_first(reports: Sequence[Report]) -> list[Compared]:
    """List the chosen candidates of each build (all where it chose none), the fastest of a target first."""
    rows = [
        Compared(number, report, result)
        for number, report in enumerate(reports)
        for result in _chosen_or_all(report)
    ]
    return sorted(
        rows, key=lambda row: (row.result.target, row.result.slim.latency_ms.median, row.report.name)
    )


def pareto_front(places: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the places (milliseconds, accuracy) that no other beats in both, the fastest first."""
    front: list[tuple[float, float]] = []
    for ms, accuracy in sorted(places, key=lambda place: (place[0], -place[1])):
        if not front or accuracy > front[-1][1]:
            front.append((ms, accuracy))
    return front


def top1_interval(dense: float, drop: Drop) -> Interval:
    """Return the interval of a slim top-1: the dense one, less the interval of the drop."""
    low, high = drop.interval
    return max(0.0, dense - high / 100), min(1.0, dense - low / 100)


def _chosen_or_all(report: Report) -> list[Result]:
    return [result for result in report.results if result.chosen] or list(report.results)
