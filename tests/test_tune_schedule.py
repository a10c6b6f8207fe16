from __future__ import annotations

import itertools

import pytest

from edgevit.training import RateSchedule, Training
from edgevit.tune.schedule import learning_rate

TOTAL = 100


def rates(schedule: RateSchedule, warmup: float = 0.3, total: int = TOTAL) -> list[float]:
    training = Training(lr=2.0, schedule=schedule, warmup=warmup)
    return [learning_rate(training, step, total) for step in range(total)]


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_learning_rate_rises_to_the_highest_and_falls(schedule: RateSchedule) -> None:
    found = rates(schedule)
    peak = found.index(max(found))
    assert max(found) == pytest.approx(2.0)
    assert peak in (29, 30)
    assert all(a < b for a, b in itertools.pairwise(found[: peak - 1]))
    assert all(a > b for a, b in itertools.pairwise(found[peak + 2 :]))
    assert 0 < found[-1] < 0.002


def test_learning_rate_one_cycle_begins_at_a_25th() -> None:
    assert rates("one-cycle")[0] == pytest.approx(2.0 / 25)


def test_learning_rate_cosine_warms_up_in_a_line() -> None:
    assert rates("cosine")[:30] == pytest.approx([2.0 * step / 30 for step in range(1, 31)])


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_learning_rate_without_warmup_begins_at_the_highest(schedule: RateSchedule) -> None:
    assert rates(schedule, warmup=0.0)[0] == 2.0
    assert rates(schedule, warmup=0.0, total=1) == [2.0]
