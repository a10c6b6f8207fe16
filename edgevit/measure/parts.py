"""Time the parts of a model side by side: the bursts of `protocol.py`, over many artefacts instead of two."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.base import Session
from edgevit.board import Clock, TimeBudget, draw_sample, take_samples, timed_shape
from edgevit.measure.statistics import Samples, drift, median_absolute_deviation
from edgevit.target import Timing

_WARMUP_SHARE = 0.1
_TIME_FACTOR = 4.0
_POLISHES = 10


def parts_budget(timing: Timing) -> TimeBudget:
    """Return how long all parts of a table are timed together, in a protocol that gives a pair `seconds`.

    They are some thirty, each a block or two, and seven whole models: four times as long is enough for all of
    them, and a tenth of the warm-up for each.
    """
    return TimeBudget(
        _WARMUP_SHARE * timing.warmup_s,
        _TIME_FACTOR * timing.seconds,
        timing.min_samples,
        timing.max_samples,
    )


@dataclass(frozen=True)
class PartTimes:
    """Times of all parts."""

    median_ms: Mapping[str, float]
    """At the machine's usual speed."""
    mad_ms: Mapping[str, float]
    drift: float
    """How much slower all parts together ran in the second half than in the first, as a share."""


def time_parts(
    sessions: Mapping[str, Session],
    batch: int,
    budget: TimeBudget,
    *,
    clock: Clock = time.perf_counter_ns,
    progress: Callable[[float], None] = lambda share: None,
) -> PartTimes:
    """Time parts in bursts side by side, each on numbers of its own input's shape.

    Args:
        sessions: the parts' artefacts, by name, loaded on one device with the same threads.
        batch: images per run where an artefact leaves it open.
        budget: how long to time all of them.
        clock: nanoseconds from any start, never going back.
        progress: called after every burst with the share of the time that is over, 0..1.

    Raises:
        BackendError: a run failed.
    """
    fed = [
        _Fed(session, draw_sample(timed_shape(session.input_shape, batch))) for session in sessions.values()
    ]
    taken = take_samples(fed, fed[0].sample, budget, clock=clock, progress=progress)
    bursts = np.array(taken.bursts_ns) / 1e6  # [parts, K, R]
    levels, speeds = usual_times(np.median(bursts, axis=2))
    mads = [median_absolute_deviation(runs / speeds[:, None]) for runs in bursts]
    return PartTimes(
        dict(zip(sessions, levels.tolist(), strict=True)),
        dict(zip(sessions, mads, strict=True)),
        drift(speeds[:, None]),
    )


def until_steady(measure: Callable[[], PartTimes], timing: Timing) -> PartTimes:
    """Time all parts anew, up to `timing.attempts` times, while the machine changed its speed meanwhile.

    What slows a machine down slows large products and small operators by different factors, so that one
    factor for a whole round does not take it out. `timing.max_interval_ratio` limits the drift, as it does
    that of a pair; where no attempt keeps to it, the one that drifted least is the result.
    """
    best = measure()
    for _ in range(timing.attempts - 1):
        if abs(best.drift) <= timing.max_interval_ratio:
            break
        best = min(best, measure(), key=lambda times: abs(times.drift))
    return best


def usual_times(times: Samples) -> tuple[Samples, Samples]:
    """Split times into what each part takes at the machine's usual speed, and how slow each round was.

    A machine that others use, too, changes its speed for seconds or minutes. A round of all parts takes some,
    so that plain medians of two parts may be of different speeds. A round's speed is common to its parts.

    Args:
        times: of each part (row) in each round (column), > 0, [n, K].

    Returns:
        Times of the parts, [n]; and how many times as long a round took as usual, [K].

    Reference: Tukey, "Exploratory Data Analysis", 1977, median polish, on logarithms.
    """
    logs = np.log(times)
    rounds = np.zeros(logs.shape[1])
    for _ in range(_POLISHES):
        parts = np.median(logs - rounds, axis=1)
        rounds = np.median(logs - parts[:, None], axis=0)
    usual = np.median(rounds)
    return np.exp(parts + usual), np.exp(rounds - usual)


@dataclass(frozen=True)
class _Fed:
    """A session that takes a sample of its own, whatever it is given: parts have inputs of many shapes."""

    session: Session
    sample: NDArray[np.float32]

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.session.run(self.sample)
