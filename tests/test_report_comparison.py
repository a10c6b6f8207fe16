from __future__ import annotations

import pytest
from sample_report import report

from edgevit.report.comparison import fastest_first, pareto_front, top1_interval
from edgevit.report.model import Drop


def test_fastest_first_has_the_choice_of_each_build_and_its_number() -> None:
    rows = fastest_first([report("slow"), report("fast", slim_ms=4.4)])
    assert [(row.number, row.report.name, row.result.precision) for row in rows] == [
        (1, "fast", "fp32"),
        (0, "slow", "fp32"),
    ]


def test_fastest_first_of_a_build_that_chose_nothing_has_all_it_tried() -> None:
    made = report("none")
    tried = tuple(result.model_copy(update={"chosen": False}) for result in made.results)
    rows = fastest_first([made.model_copy(update={"results": tried})])
    assert [row.result.precision for row in rows] == ["fp32", "bf16", "int8"]


def test_fastest_first_keeps_targets_apart() -> None:
    made = report("two")
    other = made.results[0].model_copy(update={"target": "a-board", "chosen": True})
    rows = fastest_first([made.model_copy(update={"results": (*made.results, other)})])
    assert [row.result.target for row in rows] == ["a-board", "openvino-cpu"]


def test_pareto_front_has_what_no_other_beats_in_both() -> None:
    places = [(5.0, 0.80), (4.0, 0.78), (4.5, 0.77), (4.0, 0.76), (3.0, 0.78), (6.0, 0.80)]
    assert pareto_front(places) == [(3.0, 0.78), (5.0, 0.80)]
    assert pareto_front([]) == []


def test_top1_interval_turns_the_interval_of_the_drop_around() -> None:
    assert top1_interval(0.79, Drop(points=0.6, interval=(-0.2, 1.4))) == pytest.approx((0.776, 0.792))
    assert top1_interval(1.0, Drop(points=0.0, interval=(-0.5, 0.5)))[1] == 1.0
