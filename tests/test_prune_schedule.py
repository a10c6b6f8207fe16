"""What remains in each block."""

from __future__ import annotations

import dataclasses

import pytest
from toy_vits import ARCH, toy_arch

from edgevit.errors import PlanError
from edgevit.models.anatomy import read_anatomy
from edgevit.prune.schedule import Schedule, keep_counts

DENSE = read_anatomy(toy_arch())  # 3 blocks: H 3, K = V = 8, F 40


def counts(schedule: Schedule) -> tuple[int, ...]:
    (found,) = keep_counts(DENSE, [schedule])
    return found


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule("hidden", "hidden_drop", None, None), (40, 40, 40)),
        (Schedule("hidden", "hidden_drop", 10, None), (40, 10, 10)),
        (Schedule("hidden", "hidden_drop", 10, None, keep_first=False), (10, 10, 10)),
        (Schedule("hidden", "hidden_drop", (7, 8, 40), None), (7, 8, 40)),
        (Schedule("hidden", "hidden_drop", None, 0.9), (40, 4, 4)),  # 40 * (1 - 0.9) is 3.9999999999999996
        (Schedule("hidden", "hidden_drop", None, 0.99), (40, 1, 1)),
        (Schedule("hidden", "hidden_drop", None, 0.0), (40, 40, 40)),
        (Schedule("hidden", "hidden_drop", None, (0.0, 0.5, 0.33)), (40, 20, 26)),
        (Schedule("hidden", "hidden_drop", None, (0.5, 0.99, 0.33), align=8), (24, 8, 32)),
        (Schedule("hidden", "hidden_drop", None, 0.1, align=32), (40, 40, 40)),
        (Schedule("qk_dim", "qk_drop", None, 0.4), (8, 4, 4)),
    ],
)
def test_keep_counts_of_a_schedule(schedule: Schedule, expected: tuple[int, ...]) -> None:
    assert counts(schedule) == expected


def test_keep_counts_names_every_problem() -> None:
    schedules = [
        Schedule("qk_dim", "qk_drop", None, (0.5, 0.5)),
        Schedule("vo_dim", "vo_drop", (8, 9, 8), None),
    ]
    with pytest.raises(PlanError, match=r"^qk_drop: ") as caught:
        keep_counts(DENSE, schedules)
    assert str(caught.value).splitlines() == [
        "qk_drop: expected one number or 3 (one per block), got 2 numbers.",
        "vo_dim: blocks.1 has 8; expected 1..8, got 9. Give 8 to keep all.",
    ]


def test_keep_counts_of_a_refused_cut_gives_the_reason() -> None:
    anatomy = read_anatomy(dataclasses.replace(ARCH, qk_norm=True))
    with pytest.raises(PlanError, match=r"^qk_drop: this model normalises queries and keys"):
        keep_counts(anatomy, [Schedule("qk_dim", "qk_drop", None, 0.5)])


def test_keep_counts_of_parts_that_go_together_are_whole() -> None:
    pairs = dataclasses.replace(DENSE, together={"qk_dim": 2})
    shares = Schedule("qk_dim", "qk_drop", None, (0.4, 0.99, 0.2), align=3)
    assert keep_counts(pairs, [shares]) == [(6, 6, 6)]
    assert keep_counts(pairs, [dataclasses.replace(shares, align=1)]) == [(4, 2, 6)]
    with pytest.raises(
        PlanError, match=r"qk_dim: blocks\.1 .* expected a multiple of that, got 1\. Give 2\."
    ):
        keep_counts(pairs, [Schedule("qk_dim", "qk_drop", (8, 1, 4), None)])
