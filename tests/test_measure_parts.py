from __future__ import annotations

import numpy as np
import pytest
from fake_backend import FakeClock, FakeSession

from edgevit.board import TimeBudget
from edgevit.measure.parts import PartTimes, parts_budget, time_parts, until_steady, usual_times
from edgevit.target import Timing

BUDGET = TimeBudget(warmup_s=0.0, seconds=0.5, min_samples=20, max_samples=200)


def test_each_part_has_its_own_time_whatever_its_input() -> None:
    clock = FakeClock()
    sessions = {
        "a": FakeSession(clock, lambda run: 1.0, (1, 4)),
        "b": FakeSession(clock, lambda run: 3.0, (1, 17, 24)),
        "c": FakeSession(clock, lambda run: 2.0, (None, 3)),
    }
    found = time_parts(sessions, 2, BUDGET, clock=clock)
    assert found.median_ms == pytest.approx({"a": 1.0, "b": 3.0, "c": 2.0})
    assert max(found.mad_ms.values()) == pytest.approx(0.0)
    assert found.drift == pytest.approx(0.0)


def test_parts_that_all_become_slower_drift() -> None:
    clock = FakeClock()
    sessions = {name: FakeSession(clock, lambda run: 1.0 if clock.now_ns < 0.25e9 else 1.2) for name in "ab"}
    assert time_parts(sessions, 1, BUDGET, clock=clock).drift == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("drifts", "taken", "kept"),
    [((0.05,), 1, 0.05), ((0.4, -0.09), 2, -0.09), ((-0.4, 0.2, 0.3), 3, 0.2)],
    ids=["quiet", "quiet at last", "never quiet"],
)
def test_parts_are_timed_again_while_the_machine_changes_its_speed(
    drifts: tuple[float, ...], taken: int, kept: float
) -> None:
    attempts = (PartTimes({"a": 1.0}, {"a": 0.0}, drift) for drift in drifts)
    found = until_steady(lambda: next(attempts), Timing(attempts=3, max_interval_ratio=0.1))
    assert found.drift == kept
    assert len(list(attempts)) == len(drifts) - taken


def test_all_parts_get_four_times_what_a_pair_gets() -> None:
    budget = parts_budget(Timing(warmup_s=1.0, seconds=10.0, min_samples=50, max_samples=900))
    assert budget == TimeBudget(warmup_s=0.1, seconds=40.0, min_samples=50, max_samples=900)


def test_usual_times_are_those_of_one_speed_whatever_each_part_met() -> None:
    parts, rounds = np.array([1.0, 2.0, 0.5]), np.array([1.0, 1.3, 1.0, 1.3, 1.0])
    times = parts[:, None] * rounds
    times[0, 2] *= 1.3  # the speed changed within the round
    times[2, 0] *= 5.0
    found, speeds = usual_times(times)
    assert found == pytest.approx(parts)
    assert speeds == pytest.approx(rounds)
