"""From shares, multiples and limits to how many of something remain."""

from __future__ import annotations

import math
from collections.abc import Callable

_ROUNDING = 1e-9  # 10 * (1 - 0.9) is 0.9999999999999998, and means 1


def part(count: int, share: float) -> int:
    """Return the share of a count, rounded down as published."""
    return math.floor(count * share + _ROUNDING)


def remaining(count: int, drop: float) -> int:
    """Return how many of a count a share leaves, rounded down, but at least 1."""
    return max(1, part(count, 1 - drop))


def aligned(count: int, align: int, most: int) -> int:
    """Return a count rounded up to a multiple of `align`, but no more than there are."""
    return min(most, math.ceil(count / align) * align)


def smallest(most: int, holds: Callable[[int], bool]) -> int:
    """Return the smallest number 0..most for which a condition holds that stays true from there on.

    At `most` it is taken to hold, and not asked.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
