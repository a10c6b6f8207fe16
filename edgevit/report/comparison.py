"""Several builds side by side: which of their candidates are shown, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgevit.report.model import Report, Result


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


def _chosen_or_all(report: Report) -> list[Result]:
    return [result for result in report.results if result.chosen] or list(report.results)
