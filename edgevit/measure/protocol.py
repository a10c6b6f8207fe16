"""The timing protocol: two artefacts, one process, one run, in short bursts side by side.

A product runs one model over and over, so that model's weights are in the caches and its threads are awake.
Timing A, B, A, B would measure each with the other's leftovers; timing all of A and then all of B would put
whatever changed on the machine in between into their ratio. So each artefact runs in bursts: some untimed
runs bring back what the other one displaced, then the timed ones follow. Bursts of the two lie side by side,
in random order, so that no periodic disturbance keeps in step with one of them.

A sample is the wall time of `Session.run`: input copied in, computation, output copied out. All are kept.
With OpenVINO it is longer than the time that benchmark_app gives by 0.01 ms, whatever the model, and by the
copy of the image (tools/bench/benchmark_app_agreement.py).

`board.py` takes the samples, on this machine or on a board; this file says what they tell.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.base import Session
from edgevit.board import MIN_BURSTS, Clock, Taken, TimeBudget, take_samples
from edgevit.errors import RecipeError
from edgevit.measure.statistics import (
    Samples,
    bootstrap_median,
    bootstrap_ratio,
    drift,
    median_absolute_deviation,
)
from edgevit.target import Timing

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
    attempts: int = 1
    """Which measurement this is; those before could not be trusted."""


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
    progress: Callable[[float], None] = lambda share: None,
) -> Measurement:
    """Time one artefact, or two against each other.

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

    def once() -> Measurement:
        taken = take_samples(sessions, sample, time_budget(timing), clock=clock, progress=progress)
        return summarise(taken, timing)

    return until_trusted(once, timing)


def until_trusted(measure: Callable[[], Measurement], timing: Timing) -> Measurement:
    """Measure anew, up to `timing.attempts` times, while the machine was too restless to believe the times.

    The whole measurement is taken again: samples of a quiet minute are not mixed with those of a busy one,
    and how many attempts it took is kept. Too few samples are no noise; more attempts would not help.
    """
    for attempt in range(1, timing.attempts + 1):
        found = dataclasses.replace(measure(), attempts=attempt)
        if found.verdict == "trusted" or len(found.reference.samples_ms) < timing.min_samples:
            break
    return found


def require_same_shape(artefacts: Sequence[Path], shapes: Sequence[tuple[int, ...]]) -> None:
    """Refuse to compare artefacts that cannot be given the same sample.

    Raises:
        RecipeError: the second takes another shape than the first.
    """
    if len(set(shapes)) > 1:
        raise RecipeError(
            f"{artefacts[1]}: expected an input of shape {list(shapes[0])} as {artefacts[0]} has, got"
            f" {list(shapes[1])}: both get the same images. Export one with the other's image size and batch,"
            " or measure each alone."
        )


def time_budget(timing: Timing) -> TimeBudget:
    """Return what taking samples needs to know of a target's protocol."""
    return TimeBudget(timing.warmup_s, timing.seconds, timing.min_samples, timing.max_samples)


def summarise(taken: Taken, timing: Timing) -> Measurement:
    """Say what samples tell and whether to believe them.

    Args:
        taken: of one artefact, or of the reference and then the candidate.
        timing: the target's protocol.
    """
    series = [
        _Series(first_ns, np.array(bursts_ns) / 1e6)
        for first_ns, bursts_ns in zip(taken.first_ns, taken.bursts_ns, strict=True)
    ]
    ratio = _compare(series[0], series[1]) if len(series) == 2 else None
    reasons = judge([one.bursts_ms for one in series], ratio, timing)
    return Measurement(
        reference=_latency(series[0]),
        candidate=_latency(series[1]) if len(series) == 2 else None,
        speedup=ratio,
        verdict="untrusted" if reasons else "trusted",
        why="; ".join(reasons) or _settled(series, ratio),
        runs_per_burst=taken.runs_per_burst,
    )


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
                f"the {name} ran {abs(change):.1%} {'slower' if change > 0 else 'faster'} in its second half"
                f" than in its first, allowed {limit:.1%};"
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


def _compare(reference: _Series, candidate: _Series) -> Ratio:
    dense, slim = reference.bursts_ms, candidate.bursts_ms
    interval = bootstrap_ratio(dense, slim, _SEED)
    return Ratio(float(np.median(dense) / np.median(slim)), interval.low, interval.high)


def _latency(series: _Series) -> Latency:
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
