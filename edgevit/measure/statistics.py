"""Statistics of timings that were taken in bursts; pure functions on arrays.

Shapes: K bursts, R runs in each. A burst is a row of consecutive runs of one artefact.

Runs that follow each other share the machine's state (clock, caches, whoever else computes), so they are no
independent samples. The bootstrap therefore draws whole bursts (a cluster bootstrap: Davison and Hinkley,
"Bootstrap Methods and their Application", 1997, on hierarchical data), and the bursts of two artefacts that
ran side by side are drawn together, so that what slowed both does not widen the interval of their ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]

_Z95 = 1.959964
"""Standard deviations on either side of a normal's mean that hold 95 % of it."""
REPLICATES = 1000
"""Bootstrap replicates; the ends of a 95 % interval then rest on 25 replicates each."""


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


def median_absolute_deviation(samples: Samples) -> float:
    """Return the median distance from the median, in the samples' unit (not scaled to a normal's sigma)."""
    return float(np.median(np.abs(samples - np.median(samples))))


def interval_of(replicates: Samples) -> Interval:
    """Return the interval that holds the middle 95 % of `replicates`, [replicates]."""
    low, high = np.percentile(replicates, [2.5, 97.5])
    return Interval(float(low), float(high))


def bootstrap_median(bursts: Samples, seed: int) -> Interval:
    """Estimate the 95 % interval of the median of all runs in `bursts`, [K, R]."""
    return interval_of(np.array([np.median(bursts[rows]) for rows in _draws(len(bursts), seed)]))


def bootstrap_ratio(reference: Samples, candidate: Samples, seed: int) -> Interval:
    """Estimate the 95 % interval of median(reference) / median(candidate).

    Args:
        reference: runs of one artefact, [K, R].
        candidate: runs of the other, [K, R]; row k was taken next to row k of `reference`.
        seed: of the draws.

    Raises:
        ValueError: the two differ in the number of bursts.
    """
    if len(reference) != len(candidate):
        raise ValueError(f"expected as many bursts of both, got {len(reference)} and {len(candidate)}")
    draws = _draws(len(reference), seed)
    return interval_of(np.array([np.median(reference[rows]) / np.median(candidate[rows]) for rows in draws]))


def wilson_interval(share: float, count: int) -> Interval:
    """Estimate the 95 % interval of a share that `count` >= 1 independent trials have given.

    Unlike the share's own standard error it is not empty where all trials ended alike.

    Reference: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22.
    """
    spread = _Z95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def drift(bursts: Samples) -> float:
    """Return how much slower the second half of `bursts`, [K, R], K >= 2, was than the first, as a fraction.

    0.05 says that the second half's median is 5 % above the first's; a middle burst belongs to neither half.
    """
    half = len(bursts) // 2
    return float(np.median(bursts[-half:]) / np.median(bursts[:half])) - 1.0


def _draws(bursts: int, seed: int) -> NDArray[np.int64]:
    """Return row numbers drawn with replacement, [REPLICATES, bursts]."""
    return np.random.default_rng(seed).integers(0, bursts, size=(REPLICATES, bursts))
