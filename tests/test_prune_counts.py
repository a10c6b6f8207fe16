from __future__ import annotations

import pytest

from edgevit.prune.counts import aligned, part, remaining, smallest


def test_part_of_a_share_that_binary_numbers_miss_is_whole() -> None:
    assert part(100, 0.29) == 29  # 100 * 0.29 is 28.999999999999996
    assert part(10, 0.39) == 3


@pytest.mark.parametrize(("drop", "left"), [(0.0, 10), (0.9, 1), (0.55, 4), (1.0, 1)])
def test_remaining_is_rounded_down_but_at_least_one(drop: float, left: int) -> None:
    assert remaining(10, drop) == left


@pytest.mark.parametrize(("count", "expected"), [(1, 8), (8, 8), (9, 16), (17, 20), (20, 20)])
def test_aligned_rounds_up_to_what_there_is(count: int, expected: int) -> None:
    assert aligned(count, 8, 20) == expected


@pytest.mark.parametrize("first", range(6))
def test_smallest_finds_where_a_condition_begins_and_asks_of_no_other(first: int) -> None:
    asked: list[int] = []

    def holds(number: int) -> bool:
        asked.append(number)
        return number >= first

    assert smallest(5, holds) == first
    assert 5 not in asked
