from __future__ import annotations

import pytest
from sample_report import report, time_budget

from edgevit.report.blocks import block_scales, breaking, budget_rows
from edgevit.report.model import BudgetFacts, ReductionFacts, Report


def _with(facts: BudgetFacts, made: Report | None = None) -> Report:
    return (made or report()).model_copy(update={"budget": facts})


def test_blocks_of_a_report_without_a_budget_are_none() -> None:
    assert budget_rows(report()) == ()
    assert breaking(report()) == []


def test_blocks_and_the_rest_add_up_to_what_the_whole_models_took() -> None:
    facts = time_budget()
    scales = block_scales(facts)
    assert scales is not None
    times = [row.time for row in budget_rows(_with(facts)) if row.time is not None]
    assert sum(times) + scales.slim * 0.3 == pytest.approx(5.23)
    assert scales.dense * facts.dense == pytest.approx(7.42)


def test_block_keeps_its_speed_up_over_what_its_macs_promise() -> None:
    row = budget_rows(_with(time_budget()))[0]
    promised = 102_200_000 / 71_540_000
    assert row.promised == pytest.approx(promised)
    assert row.time == pytest.approx(0.4 * 5.23 / 5.0)
    assert row.kept == pytest.approx((0.6 * 7.42 / 7.5) / (0.4 * 5.23 / 5.0) / promised)


def test_block_that_was_not_measured_keeps_what_the_table_says() -> None:
    facts = time_budget()
    planned = tuple(block.model_copy(update={"measured": None}) for block in facts.blocks)
    row = budget_rows(_with(facts.model_copy(update={"blocks": planned})))[0]
    assert row.time == 0.4
    assert row.kept == pytest.approx(0.6 / 0.4 / (102_200_000 / 71_540_000))


@pytest.mark.parametrize("changes", [{"dense": None}, {"cost": 0.0, "measured": 0.0}])
def test_block_of_which_a_time_is_missing_keeps_nothing_known(changes: dict[str, float | None]) -> None:
    facts = time_budget()
    blocks = (facts.blocks[0].model_copy(update=changes), *facts.blocks[1:])
    first, second, *_ = budget_rows(_with(facts.model_copy(update={"blocks": blocks})))
    assert first.kept is None
    assert second.kept is not None


def test_block_that_is_not_cut_promises_nothing() -> None:
    made = report()
    whole = made.blocks[0].model_copy(update={"slim": made.blocks[0].dense})
    made = made.model_copy(update={"blocks": (whole, *made.blocks[1:])})
    row = budget_rows(_with(time_budget(), made))[0]
    assert (row.promised, row.kept) == (None, None)


def test_breaking_lists_what_costs_most_first_and_none_that_keep_enough() -> None:
    facts = time_budget()
    slow = {1: 0.8, 2: 1.2}
    blocks = tuple(
        block.model_copy(update={"measured": slow.get(index, 0.1)})
        for index, block in enumerate(facts.blocks)
    )
    found = breaking(_with(facts.model_copy(update={"blocks": blocks})))
    assert [row.name for row in found] == ["blocks.2", "blocks.1"]


def test_breaking_of_a_budget_of_macs_is_empty() -> None:
    facts = time_budget().model_copy(update={"unit": "macs", "measured_on": "", "dense_measured": None})
    rows = budget_rows(_with(facts))
    assert all((row.time, row.kept) == (None, None) for row in rows)
    assert breaking(_with(facts)) == []


def test_tokens_enter_a_block_as_they_left_the_one_before() -> None:
    rows = budget_rows(_with(time_budget()))
    assert [(row.tokens_in, row.tokens_out) for row in rows[-2:]] == [(197, 197), (197, 1)]
    made = report()
    fewer = ReductionFacts(place="input", strategy="cells", before=197, after=150)
    made = made.model_copy(update={"plan": made.plan.model_copy(update={"reductions": (fewer,)})})
    assert budget_rows(_with(time_budget(), made))[0].tokens_in == 150
