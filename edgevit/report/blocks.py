"""A budget block by block: what was planned, what was measured, and how much of its promise each block keeps.

MACs promise a block dense MACs over slim MACs; it keeps dense time over slim time, as a share of that. The
dense block's time is the latency table's. Blocks are timed one by one, at another time than the whole models
and the table, and a machine is seldom as fast twice. So for the comparison a model's blocks are scaled to
what the model took whole: the dense and the slim one were timed in turns, and their ratio is the speed-up.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevit.report.model import BudgetBlock, BudgetFacts, Report, Result

_BREAKS = 0.9
"""A block that keeps less of its promise breaks it, also where the whole model keeps less still."""


@dataclass(frozen=True)
class Scales:
    """What times of blocks are multiplied by so that they, and all that is no block, add up to the whole."""

    dense: float
    """Of the latency table's times of the dense blocks."""
    slim: float
    """Of the slim blocks' times alone."""


@dataclass(frozen=True)
class BudgetRow:
    """One block of a model that was cut for a budget."""

    name: str
    tokens_in: int
    tokens_out: int
    found: BudgetBlock
    promised: float | None
    """Dense MACs over slim MACs; None for a block that is not cut, which promises nothing."""
    time: float | None
    """Milliseconds of the slim block: measured and scaled, else as it was planned; None: no times."""
    kept: float | None
    """The share of the promise; None where nothing is promised, or no time is known of one of the two."""

    @property
    def lost(self) -> float:
        """Return the milliseconds that the block takes beyond its promise; below 0 where it keeps more."""
        return 0.0 if self.time is None or self.kept is None else self.time * (1.0 - self.kept)


def budget_rows(report: Report) -> tuple[BudgetRow, ...]:
    """Return the blocks of a report with a budget; none without one."""
    facts = report.budget
    if facts is None:
        return ()
    scales = block_scales(facts)
    return tuple(_row(report, facts, index, scales) for index in range(len(facts.blocks)))


def block_scales(facts: BudgetFacts) -> Scales | None:
    """Return what times of blocks are scaled by; None where the blocks or the whole were not measured."""
    alone = [block.measured for block in facts.blocks if block.measured is not None]
    if facts.counted is None or facts.dense_measured is None or not sum(alone):
        return None
    if len(alone) < len(facts.blocks):
        return None
    rest = max(0.0, facts.predicted - sum(block.cost for block in facts.blocks))
    return Scales(facts.dense_measured / facts.dense, facts.counted / (sum(alone) + rest))


def breaking(report: Report) -> list[BudgetRow]:
    """Return the blocks that keep less of their promise than the whole model does, or too little.

    The one that costs most time comes first.
    """
    whole = planned_for(report)
    least = max(_BREAKS, 0.0 if whole is None else whole.speedup.promise)
    found = [row for row in budget_rows(report) if row.kept is not None and row.kept < least]
    return sorted(found, key=lambda row: row.lost, reverse=True)


def planned_for(report: Report) -> Result | None:
    """Return what was measured on the target and in the precision that a budget of time planned for."""
    place = "" if report.budget is None else report.budget.measured_on
    return next((r for r in report.results if f"{r.target} {r.precision}" == place), None)


def _row(report: Report, facts: BudgetFacts, index: int, scales: Scales | None) -> BudgetRow:
    block, found = report.blocks[index], facts.blocks[index]
    cut = 0 < block.slim.macs < block.dense.macs
    promised = block.dense.macs / block.slim.macs if cut else None
    dense, time = found.dense, None
    if facts.unit == "ms":
        time = found.cost
        if scales is not None and found.measured is not None:
            time = scales.slim * found.measured
            dense = None if dense is None else scales.dense * dense
    kept = dense / time / promised if dense and time and promised else None
    return BudgetRow(block.name, _tokens_in(report, index), block.slim.tokens, found, promised, time, kept)


def _tokens_in(report: Report, index: int) -> int:
    """Return how many tokens enter a block of the slim model."""
    dense = [block.dense.tokens for block in report.blocks]
    if index == 0:
        fewer = [one.after for one in report.plan.reductions if one.place == "input"]
        return fewer[0] if fewer else dense[0]
    if dense[index] != dense[index - 1]:  # the dense model itself changes their number in front of it
        return dense[index]
    return report.blocks[index - 1].slim.tokens
