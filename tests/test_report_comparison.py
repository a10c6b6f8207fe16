from __future__ import annotations

from sample_report import report

from edgevit.report.comparison import fastest_first


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
