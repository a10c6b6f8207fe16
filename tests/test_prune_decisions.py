"""What is said of a plan whose budget is one of time; of MACs tests/test_pipeline_budget.py has it."""

from __future__ import annotations

from toy_tables import ARCH, TABLE

from edgevit.measure.table import LatencyCost
from edgevit.models.anatomy import read_anatomy
from edgevit.plan import Counts, plan_from_counts
from edgevit.prune.allocate import Allocation
from edgevit.prune.decisions import decisions


def test_decisions_of_a_budget_of_time_say_what_another_merge_would_take() -> None:
    counts = Counts(tokens=[17, 11, 11, 11], hidden=20)
    plan = plan_from_counts(read_anatomy(ARCH), counts, dead_tokens=True)
    costs = LatencyCost(TABLE, ARCH, dead_tokens=True)
    allocation = Allocation(plan, cost=1.0, kl=0.1, block_costs=(), block_kls=(), price=0.02)
    said = list(decisions(ARCH, allocation, "ms", costs))
    assert said[0].startswith("Of the dense model's time, these are saved: dropping dead tokens ")
    assert "Tokens are merged once: in block 1 (17 to 11)." in said
    assert "Another merge, in block 0, would take 0.12 ms before it saves any." in said
    assert said[-1].startswith("1 % of the dense model's time more would take about ")
