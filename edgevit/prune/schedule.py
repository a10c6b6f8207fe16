"""How many of something remain in each block, as a method's options say it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgevit.errors import PlanError
from edgevit.plan import Anatomy, Kind, wrong_count
from edgevit.prune.counts import aligned, remaining


@dataclass(frozen=True)
class Schedule:
    """A count that remains or a share that is removed, for all blocks or each; both None: nothing is cut."""

    kind: Kind
    drop_key: str
    """Name of the option that gives the share; the one that gives the count is named after the kind."""
    count: int | tuple[int, ...] | None
    drop: float | tuple[float, ...] | None
    keep_first: bool = True
    """Whether one number for all blocks leaves out the first."""
    align: int = 1
    """Counts from a share are rounded up to a multiple of this."""


def keep_counts(anatomy: Anatomy, schedules: Sequence[Schedule]) -> list[tuple[int, ...]]:
    """Return, for each schedule, how many remain in each block.

    Shares are cut as published: what remains is rounded down, but at least 1; where parts only go several at
    a time, whole such groups remain.

    Raises:
        PlanError: lists of another length, counts that a block cannot have, or a cut that this model cannot
            take; every problem begins with the option's name.
    """
    problems: list[str] = []
    counts = [_counts(anatomy, schedule, problems) for schedule in schedules]
    if problems:
        raise PlanError("\n".join(problems))
    return counts


def shared_counts(dense: tuple[int, ...], schedule: Schedule) -> tuple[int, ...]:
    """Return how many of `dense` (one count per block) remain of what no anatomy counts, by shares.

    Raises:
        PlanError: a list of another length; begins with the option's name.
    """
    if schedule.drop is None:
        return dense
    problem = _wrong_length(schedule.drop_key, schedule.drop, len(dense))
    if problem:
        raise PlanError(problem)
    return _from_drop(dense, schedule, 1)


def _wrong_length(key: str, given: object, blocks: int) -> str | None:
    if not isinstance(given, tuple) or len(given) == blocks:
        return None
    return f"{key}: expected one number or {blocks} (one per block), got {len(given)} numbers."


def _counts(anatomy: Anatomy, schedule: Schedule, problems: list[str]) -> tuple[int, ...]:
    dense = tuple(int(getattr(block, schedule.kind)) for block in anatomy.blocks)
    if schedule.count is None and schedule.drop is None:
        return dense
    key = schedule.drop_key if schedule.count is None else schedule.kind
    given = schedule.drop if schedule.count is None else schedule.count
    if schedule.kind in anatomy.refused:
        problems.append(f"{key}: {anatomy.refused[schedule.kind]}")
        return dense
    wrong = _wrong_length(key, given, len(dense))
    if wrong:
        problems.append(wrong)
        return dense
    together = anatomy.together.get(schedule.kind, 1)
    counts = _from_drop(dense, schedule, together) if schedule.count is None else _from_count(dense, schedule)
    found = [wrong_count(count, most, together) for count, most in zip(counts, dense, strict=True)]
    problems += [f"{key}: blocks.{index} {text}" for index, text in enumerate(found) if text is not None]
    return counts


def _from_count(dense: tuple[int, ...], schedule: Schedule) -> tuple[int, ...]:
    if isinstance(schedule.count, tuple):
        return schedule.count
    assert schedule.count is not None
    counts = (schedule.count,) * len(dense)
    return (dense[0], *counts[1:]) if schedule.keep_first else counts


def _from_drop(dense: tuple[int, ...], schedule: Schedule, together: int) -> tuple[int, ...]:
    drops = schedule.drop
    if not isinstance(drops, tuple):
        assert drops is not None
        drops = (0.0 if schedule.keep_first else drops, *(drops,) * (len(dense) - 1))
    align = math.lcm(schedule.align, together)
    return tuple(
        aligned(together * remaining(width // together, drop), align, width)
        for width, drop in zip(dense, drops, strict=True)
    )
