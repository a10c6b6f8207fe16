"""From gates to a plan: shares, ties, floors and the budget."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from toy_swins import SWIN
from toy_vits import ARCH, toy_arch, toy_model, toy_plan

from edgevit.cost import model_cost
from edgevit.errors import PlanError
from edgevit.methods import CoupledDims, EffiSelect
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch
from edgevit.plan import Counts, Plan, keep_all, plan_from_counts
from edgevit.progress import silent
from edgevit.prune import run_methods
from edgevit.prune.effiselect import effiselect

HEADS = torch.tensor([[0.9, -0.8, 0.1], [0.2, 0.3, 0.4], [0.6, 0.5, 0.7]])


def gates(arch: Arch, seed: int = 0) -> dict[str, Tensor]:
    """Return seeded gates, some negative."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for index, block in enumerate(arch.blocks):
        found[f"blocks.{index}.heads"] = torch.randn(block.heads, generator=generator)
        found[f"blocks.{index}.hidden"] = torch.randn(block.hidden, generator=generator)
    return found


def decide(arch: Arch = ARCH, scores: dict[str, Tensor] | None = None, **options: object) -> Plan:
    method = EffiSelect.model_validate({"method": "effiselect", **options})
    return effiselect(arch, keep_all(read_anatomy(arch)), method, scores or gates(arch))


def heads(plan: Plan) -> list[tuple[int, ...] | None]:
    return [block.kept.heads for block in plan.blocks]


def of_heads(rows: Tensor) -> dict[str, Tensor]:
    return {f"blocks.{index}.heads": row for index, row in enumerate(rows)}


def test_effiselect_share_of_heads_goes_by_the_size_of_the_gate_over_all_blocks() -> None:
    plan = decide(scores=of_heads(HEADS), heads_drop=0.4)  # 3 of 9: 0.1, 0.2 and 0.3, not the signed -0.8
    assert heads(plan) == [(0, 1), (2,), None]
    assert [block.heads for block in plan.blocks] == [2, 1, 3]
    assert [block.hidden for block in plan.blocks] == [40, 40, 40]


def test_effiselect_every_block_keeps_a_head() -> None:
    low = HEADS.clone()
    low[1] = torch.tensor([0.01, 0.02, 0.03])
    assert heads(decide(scores=of_heads(low), heads_drop=0.34))[1] == (2,)


@pytest.mark.parametrize("drop", [0.0, 0.1])  # 0.1 of 9 heads is no whole head
def test_effiselect_share_below_one_part_cuts_nothing(drop: float) -> None:
    assert decide(heads_drop=drop) == keep_all(read_anatomy(ARCH))


def test_effiselect_equal_gates_lose_exactly_the_share_the_last_first() -> None:
    plan = decide(scores=of_heads(torch.ones(3, 3)), heads_drop=0.34)
    assert heads(plan) == [None, (0, 1), (0,)]


def test_effiselect_gates_of_zero_everywhere_still_leave_every_block_its_least() -> None:
    scores = {f"blocks.{index}.hidden": torch.zeros(40) for index in range(3)}
    plan = decide(scores=scores, hidden_drop=0.97, align=1)
    assert [block.hidden for block in plan.blocks] == [2, 1, 1]
    assert plan.blocks[0].kept.hidden == (0, 1)


def test_effiselect_share_that_would_empty_blocks_says_the_greatest() -> None:
    with pytest.raises(PlanError, match=r"heads_drop: 0\.9 removes 8 of 9.*6 can go\. Give at most 0\.6666"):
        decide(heads_drop=0.9)
    assert [block.heads for block in decide(heads_drop=0.6667).blocks] == [1, 1, 1]


def test_effiselect_share_of_whole_parts_is_not_lost_to_rounding() -> None:
    wide = dataclasses.replace(ARCH, blocks=(dataclasses.replace(ARCH.blocks[0], hidden=100),) * 3)
    plan = decide(wide, {f"blocks.{i}.hidden": torch.ones(100) for i in range(3)}, hidden_drop=0.29)
    assert sum(block.hidden for block in plan.blocks) == 300 - 87


def test_effiselect_align_rounds_neurons_up_with_the_next_best() -> None:
    exact, aligned = decide(hidden_drop=0.5), decide(hidden_drop=0.5, align=8)
    for one, other in zip(exact.blocks, aligned.blocks, strict=True):
        assert other.hidden % 8 == 0
        assert 0 <= other.hidden - one.hidden < 8
        assert set(one.kept.hidden or range(40)) <= set(other.kept.hidden or range(40))


@pytest.mark.parametrize("arch", [ARCH, toy_arch("class+distillation", 2), SWIN])
@pytest.mark.parametrize("macs", [0.5, 0.8, 0.95])
def test_effiselect_budget_is_met_and_nothing_goes_in_vain(arch: Arch, macs: float) -> None:
    plan = decide(arch, macs=macs)
    dense = model_cost(arch).total.macs
    share = model_cost(slim_arch(arch, plan)).total.macs / dense
    greatest = max(  # of the parts, by which the budget can be undershot
        model_cost(arch).total.macs - model_cost(slim_arch(arch, smaller)).total.macs
        for smaller in (plan_from_counts(read_anatomy(arch), Counts(heads=1)),)
    )
    assert share <= macs
    assert share > macs - greatest / dense


def test_effiselect_budget_takes_what_is_worth_least_for_its_cost() -> None:
    scores = gates(ARCH)
    scores |= {name: torch.full_like(gate, 1e3) for name, gate in scores.items() if name.endswith("heads")}
    plan = decide(scores=scores, macs=0.7)
    assert all(block.heads == 3 for block in plan.blocks)
    assert any(block.hidden < 40 for block in plan.blocks)


def test_effiselect_budget_below_every_plan_says_the_smallest_that_one_reaches() -> None:
    with pytest.raises(PlanError, match=r"macs: expected 0\.(\d+) or more, the smallest") as caught:
        decide(macs=0.01)
    smallest = float(str(caught.value).split()[2])
    least = decide(macs=smallest)
    assert [(block.heads, block.hidden) for block in least.blocks] == [(1, 1)] * 3


def test_effiselect_budget_counts_what_the_plan_before_cut() -> None:
    before = plan_from_counts(read_anatomy(ARCH), Counts(qk_dim=4, vo_dim=4), dead_tokens=True)
    options = EffiSelect(method="effiselect", macs=0.7)
    plan = effiselect(ARCH, before, options, gates(ARCH))
    assert model_cost(slim_arch(ARCH, plan)).total.macs <= 0.7 * model_cost(ARCH).total.macs
    alone = decide(macs=0.7)
    assert sum(b.hidden for b in plan.blocks) > sum(b.hidden for b in alone.blocks)


def test_effiselect_behind_coupled_dims_keeps_the_dims_of_the_heads_that_stay() -> None:
    dense = toy_model()
    coupled = CoupledDims(method="coupled-dims", qk_drop=0.5, vo_drop=0.25, keep_first=False)
    select = EffiSelect(method="effiselect", heads_drop=0.34)
    alone = run_methods(dense, toy_plan(dense, Counts()), [coupled], None, silent)
    both = run_methods(
        dense, toy_plan(dense, Counts()), [coupled, select], None, silent, {1: of_heads(HEADS)}
    )
    assert both.blocks[1].kept.heads == (2,)
    assert alone.blocks[1].kept.qk is not None
    assert alone.blocks[1].kept.vo is not None
    assert both.blocks[1].kept.qk == alone.blocks[1].kept.qk[2:]
    assert both.blocks[1].kept.vo == alone.blocks[1].kept.vo[2:]


def test_effiselect_model_that_cannot_lose_heads_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = dataclasses.replace(read_anatomy(ARCH), refused={"heads": "its heads stay."})
    monkeypatch.setattr("edgevit.prune.effiselect.read_anatomy", lambda arch: refusing)
    method = EffiSelect(method="effiselect", heads_drop=0.5)
    with pytest.raises(PlanError, match=r"^heads_drop: its heads stay\.$"):
        effiselect(ARCH, keep_all(refusing), method, gates(ARCH))


def test_effiselect_without_a_search_says_so() -> None:
    dense = toy_model()
    with pytest.raises(PlanError, match=r'prune\.method: "effiselect" decides by what a search has learnt'):
        run_methods(
            dense,
            toy_plan(dense, Counts()),
            [EffiSelect(method="effiselect", heads_drop=0.5)],
            None,
            silent,
        )
