from __future__ import annotations

import numpy as np
import pytest

from edgevit.measure.statistics import (
    Interval,
    bootstrap_median,
    bootstrap_ratio,
    drift,
    interval_of,
    median_absolute_deviation,
    wilson_interval,
)


def _bursts(seed: int, *, between: float, within: float, shape: tuple[int, int] = (40, 10)) -> np.ndarray:
    """Draw times around 10 that differ by `between` from burst to burst and by `within` inside one."""
    rng = np.random.default_rng(seed)
    return 10.0 + rng.normal(0, between, (shape[0], 1)) + rng.normal(0, within, shape)


def test_median_absolute_deviation_ignores_one_outlier() -> None:
    assert median_absolute_deviation(np.array([1.0, 2.0, 3.0, 4.0, 1000.0])) == 1.0


def test_interval_of_uniform_replicates_cuts_both_ends() -> None:
    assert interval_of(np.linspace(0.0, 100.0, 1001)) == Interval(2.5, 97.5)


def test_bootstrap_median_covers_the_truth_as_often_as_promised() -> None:
    intervals = [bootstrap_median(_bursts(seed, between=1.0, within=0.2), seed) for seed in range(80)]
    covered = sum(interval.low <= 10.0 <= interval.high for interval in intervals)
    assert 68 <= covered < 80  # 95 % of 80 is 76; drawing single runs instead of bursts covers it 37 times


def test_bootstrap_median_of_single_runs_would_be_too_sure() -> None:
    bursts = _bursts(0, between=1.0, within=0.1)
    by_burst, by_run = bootstrap_median(bursts, 0), bootstrap_median(bursts.reshape(-1, 1), 0)
    assert by_burst.high - by_burst.low > 1.5 * (by_run.high - by_run.low)


def test_bootstrap_ratio_cancels_what_slowed_both() -> None:
    shared = _bursts(0, between=2.0, within=0.0)
    dense = shared * (1 + 0.01 * np.random.default_rng(1).standard_normal(shared.shape))
    slim = shared / 2 * (1 + 0.01 * np.random.default_rng(2).standard_normal(shared.shape))
    paired = bootstrap_ratio(dense, slim, 0)
    unpaired = bootstrap_ratio(dense, slim[::-1], 0)
    assert paired.low < 2.0 < paired.high
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 3


def test_bootstrap_ratio_is_the_same_for_the_same_seed() -> None:
    dense, slim = _bursts(0, between=1, within=1), _bursts(1, between=1, within=1)
    assert bootstrap_ratio(dense, slim, 7) == bootstrap_ratio(dense, slim, 7)
    assert bootstrap_ratio(dense, slim, 7) != bootstrap_ratio(dense, slim, 8)


def test_bootstrap_ratio_of_unequal_burst_counts_is_refused() -> None:
    with pytest.raises(ValueError, match="as many bursts of both, got 3 and 2"):
        bootstrap_ratio(np.ones((3, 2)), np.ones((2, 2)), 0)


@pytest.mark.parametrize("bursts", [4, 5])
def test_drift_of_a_slower_second_half_is_its_fraction(bursts: int) -> None:
    times = np.full((bursts, 3), 10.0)
    times[-2:] = 11.0
    assert drift(times) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    # The first is the worked example of Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263.
    [(81 / 263, 263, 0.2553, 0.3662), (1.0, 20, 0.8389, 1.0), (0.0, 20, 0.0, 0.1611)],
)
def test_wilson_interval_is_the_published_one(share: float, count: int, low: float, high: float) -> None:
    found = wilson_interval(share, count)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
