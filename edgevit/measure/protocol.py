"""The timing protocol: two artefacts, one process, one run, in short bursts side by side.

A product runs one model over and over, so that model's weights are in the caches and its threads are awake.
Timing A, B, A, B would measure each with the other's leftovers; timing all of A and then all of B would put
whatever changed on the machine in between into their ratio. So each artefact runs in bursts: some untimed
runs bring back what the other one displaced, then the timed ones follow. Bursts of the two lie side by side,
in random order, so that no periodic disturbance keeps in step with one of them.

A sample is the wall time of `Session.run`: input copied in, computation, output copied out. All are kept.
With OpenVINO it is longer than the time that benchmark_app gives by 0.01 ms, whatever the model, and by the
copy of the image (tools/bench/benchmark_app_agreement.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.base import Session
from edgevit.measure.statistics import (
    Samples,
    bootstrap_median,
    bootstrap_ratio,
    drift,
    median_absolute_deviation,
)
from edgevit.target import Timing

Clock = Callable[[], int]
Progress = Callable[[float], None]

LEAD_RUNS = 2
LEAD_S = 0.002
"""A burst begins with at least that many untimed runs, for at least that long. Measured on OpenVINO with a
ViT of 0.17 ms: its first run after the other artefact takes twice as long; 2 % are still left after 1 ms."""
BURST_RUNS = 10
BURST_S = 0.005
"""A burst has that many timed runs, more when they are over sooner than that, fewer when the time budget has
no room for `MIN_BURSTS` such bursts."""
MIN_BURSTS = 10
"""Fewer independent bursts say nothing about how sure the medians are."""
OVERTIME = 10
"""How many times the time budget may be spent to reach the wanted samples."""

_SEED = 0


@dataclass(frozen=True)
class Latency:
    """Times of one artefact in milliseconds; `low` and `high` are the 95 % interval of the median."""

    samples_ms: tuple[float, ...]
    median: float
    low: float
    high: float
    p90: float
    p99: float
    mad: float
    first_ms: float
    """The very first run after loading, which no sample includes."""


@dataclass(frozen=True)
class Ratio:
    """The measured speed-up, median of the reference over median of the candidate, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """What timing found, and whether to believe it."""

    reference: Latency
    candidate: Latency | None
    speedup: Ratio | None
    verdict: Literal["trusted", "untrusted"]
    why: str
    """Every reason for the verdict, in one line."""
    runs_per_burst: int
    """Consecutive samples that belong together, for whoever resamples them."""


@dataclass(frozen=True)
class _Series:
    """Times of one artefact as they were taken."""

    first_ns: int
    bursts_ms: Samples  # [K, R]


def measure_pair(
    reference: Session,
    candidate: Session | None,
    sample: NDArray[np.float32],
    timing: Timing,
    *,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = lambda share: None,
) -> Measurement:
    """Time one artefact, or two against each other.

    Timing ends when `timing.seconds` are spent and each artefact has `timing.min_samples`, when each has
    `timing.max_samples`, or after `OVERTIME` times the budget, whichever comes first. Warm-up comes on top.

    Args:
        reference: the dense artefact, or the only one.
        candidate: the slim artefact, on the same device with the same threads.
        sample: one batch that both take; every run gets it.
        timing: the target's protocol.
        clock: nanoseconds from any start, never going back.
        progress: called after every burst with the share of the time that is over, 0..1.

    Raises:
        BackendError: a run failed, or `sample` does not fit an artefact.
    """
    sessions = [reference] if candidate is None else [reference, candidate]
    warm = [_warm_up(session, sample, timing.warmup_s, clock) for session in sessions]
    runs = plan_burst(sum(run_s for _, run_s in warm), timing)
    bursts = _take_bursts(sessions, sample, timing, runs, clock, progress)
    series = [
        _Series(first_ns, np.array(rows) / 1e6) for (first_ns, _), rows in zip(warm, bursts, strict=True)
    ]
    ratio = _compare(series[0], series[1]) if candidate is not None else None
    reasons = judge([one.bursts_ms for one in series], ratio, timing)
    return Measurement(
        reference=_summarise(series[0]),
        candidate=_summarise(series[1]) if candidate is not None else None,
        speedup=ratio,
        verdict="untrusted" if reasons else "trusted",
        why="; ".join(reasons) or _settled(series, ratio),
        runs_per_burst=runs,
    )


def plan_burst(run_s: float, timing: Timing) -> int:
    """Return how many timed runs a burst has.

    Args:
        run_s: seconds that one run of every artefact takes together, > 0.
        timing: the target's protocol.
    """
    wanted = max(BURST_RUNS, math.ceil(BURST_S / run_s))
    room = math.floor(timing.seconds / MIN_BURSTS / run_s) - LEAD_RUNS
    fewest = math.ceil(timing.min_samples / MIN_BURSTS)
    most = timing.max_samples // MIN_BURSTS
    return min(max(min(wanted, room), fewest), most)


def judge(series: list[Samples], ratio: Ratio | None, timing: Timing) -> list[str]:
    """List the reasons not to trust a measurement, none when it can be trusted.

    Args:
        series: bursts of the reference and, if there is one, of the candidate in ms, each [K, R].
        ratio: the speed-up when there are two.
        timing: the target's protocol; `max_interval_ratio` also limits the drift.
    """
    count, limit = series[0].size, timing.max_interval_ratio
    if count < timing.min_samples or len(series[0]) < MIN_BURSTS:
        return [
            f"too few samples: {count} in {len(series[0])} bursts,"
            f" wanted {timing.min_samples} in {MIN_BURSTS}; raise timing.seconds"
        ]
    reasons = []
    what, width = _relative_width(series[0], ratio)
    if width > limit:
        reasons.append(
            f"the 95 % interval of the {what} is {width:.1%} wide, allowed {limit:.1%};"
            " stop other programs or raise timing.seconds"
        )
    names = ("artefact",) if ratio is None else ("reference", "candidate")
    for name, bursts in zip(names, series, strict=True):
        change = drift(bursts)
        if abs(change) > limit:
            reasons.append(
                f"the {name}'s second half took {change:+.1%} against its first, allowed {limit:.1%};"
                " look for throttling or another program"
            )
    return reasons


def _relative_width(bursts: Samples, ratio: Ratio | None) -> tuple[str, float]:
    if ratio is not None:
        return "speed-up", (ratio.high - ratio.low) / ratio.value
    interval = bootstrap_median(bursts, _SEED)
    return "median", (interval.high - interval.low) / float(np.median(bursts))


def _settled(series: list[_Series], ratio: Ratio | None) -> str:
    bursts = series[0].bursts_ms
    what, width = _relative_width(bursts, ratio)
    taken = f"{bursts.size} samples{' each' if ratio else ''} in {len(bursts)} bursts"
    return f"{taken}; the 95 % interval of the {what} is {width:.1%} wide"


def _warm_up(
    session: Session, sample: NDArray[np.float32], seconds: float, clock: Clock
) -> tuple[int, float]:
    """Run for `seconds`, at least LEAD_RUNS + 1 times; return the first run in ns, a typical one in s."""
    begin = clock()
    times: list[int] = []
    while len(times) <= LEAD_RUNS or clock() - begin < seconds * 1e9:
        times.append(_time_run(session, sample, clock))
    return times[0], max(1.0, float(np.median(times[1:]))) / 1e9  # a clock may be too coarse for one run


def _take_bursts(
    sessions: list[Session],
    sample: NDArray[np.float32],
    timing: Timing,
    runs: int,
    clock: Clock,
    progress: Progress,
) -> list[list[list[int]]]:
    """Time bursts of every session side by side; return their runs in ns, per session [K][R]."""
    rng = np.random.default_rng(_SEED)
    taken: list[list[list[int]]] = [[] for _ in sessions]
    begin = clock()
    share = 0.0
    while share < 1.0:
        for index in rng.permutation(len(sessions)):
            taken[index].append(_time_burst(sessions[index], sample, runs, clock))
        share = _share_done(len(taken[0]), runs, (clock() - begin) / 1e9, timing)
        progress(share)
    return taken


def _share_done(bursts: int, runs: int, spent_s: float, timing: Timing) -> float:
    """Return how much of the timing is over, 1.0 when it ends."""
    enough = min(spent_s / timing.seconds, bursts * runs / timing.min_samples, bursts / MIN_BURSTS)
    most = bursts * runs >= timing.max_samples
    return 1.0 if most else min(1.0, max(enough, spent_s / (OVERTIME * timing.seconds)))


def _time_burst(session: Session, sample: NDArray[np.float32], runs: int, clock: Clock) -> list[int]:
    begin, lead = clock(), 0
    while lead < LEAD_RUNS or clock() - begin < LEAD_S * 1e9:
        session.run(sample)
        lead += 1
    return [_time_run(session, sample, clock) for _ in range(runs)]


def _time_run(session: Session, sample: NDArray[np.float32], clock: Clock) -> int:
    begin = clock()
    session.run(sample)
    return clock() - begin


def _compare(reference: _Series, candidate: _Series) -> Ratio:
    dense, slim = reference.bursts_ms, candidate.bursts_ms
    interval = bootstrap_ratio(dense, slim, _SEED)
    return Ratio(float(np.median(dense) / np.median(slim)), interval.low, interval.high)


def _summarise(series: _Series) -> Latency:
    samples = series.bursts_ms.reshape(-1)
    median, p90, p99 = (float(value) for value in np.percentile(samples, [50, 90, 99]))
    interval = bootstrap_median(series.bursts_ms, _SEED)
    return Latency(
        samples_ms=tuple(samples.tolist()),
        median=median,
        low=interval.low,
        high=interval.high,
        p90=p90,
        p99=p99,
        mad=median_absolute_deviation(samples),
        first_ms=series.first_ns / 1e6,
    )
