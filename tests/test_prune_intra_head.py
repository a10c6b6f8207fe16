from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from toy_ccts import toy_slim_cct
from toy_dinos import toy_dino
from toy_streams import with_zero_channels
from toy_swins import toy_swin
from toy_vits import ARCH, noise_images, toy_model, toy_plan

from edgevit.cost import model_cost
from edgevit.errors import PlanError
from edgevit.methods import IntraHead
from edgevit.models.anatomy import slim_arch
from edgevit.models.group_scores import group_scores
from edgevit.models.layers import SlimViT
from edgevit.plan import Counts, PerImage, Plan
from edgevit.progress import silent
from edgevit.prune.intra_head import intra_head
from edgevit.slim import SlimOptions, slim_model
from edgevit.slim.select import slim_by_selection

DENSE = {"ViT": toy_model, "Swin": toy_swin, "CCT": toy_slim_cct}


def decided(model: SlimViT, plan: Plan | None = None, **options: object) -> Plan:
    given = IntraHead.model_validate({"method": "intra-head", "align": 1} | options)
    return intra_head(model, plan or toy_plan(model, Counts()), given, group_scores(model))


def share(model: SlimViT, plan: Plan) -> float:
    return model_cost(slim_arch(model.arch, plan)).total.macs / model_cost(model.arch).total.macs


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("macs", [0.98, 0.94])
def test_budget_is_met_to_the_next_unit(name: str, macs: float) -> None:
    model = DENSE[name]()
    plan = decided(model, macs=macs)
    assert macs - 0.01 < share(model, plan) <= macs


def test_budget_keeps_dims_as_one_threshold_does() -> None:
    wide = dataclasses.replace(ARCH.blocks[0], qk_dim=16, vo_dim=16)
    model = toy_model(dataclasses.replace(ARCH, blocks=(wide,) * 2))
    scores = {name: torch.ones_like(value) for name, value in group_scores(model).items()}
    scores["blocks.0.qk"][:, :6] = 0.1
    scores["blocks.1.hidden"][:3] = 0.01
    options = IntraHead(method="intra-head", macs=0.97, align=1)
    plan = intra_head(model, toy_plan(model, Counts()), options, scores)
    assert plan.blocks[1].hidden == 37
    assert plan.blocks[1].kept.hidden == tuple(range(3, 40))
    assert plan.blocks[0].qk_dim < 16
    assert plan.blocks[1].qk_dim == plan.blocks[0].vo_dim == plan.blocks[1].vo_dim == 16


def test_scores_of_a_layer_count_relative_to_their_mean() -> None:
    """Ten times the weights in one block change nothing."""
    model = toy_model()
    scores = group_scores(model)
    large = {name: value * (10 if name.startswith("blocks.1") else 1) for name, value in scores.items()}
    options = IntraHead(method="intra-head", macs=0.96, align=1)
    plan = toy_plan(model, Counts())
    assert intra_head(model, plan, options, scores) == intra_head(model, plan, options, large)


def test_budget_keeps_multiples() -> None:
    plan = decided(toy_model(), macs=0.95, align=8)
    assert {block.hidden % 8 for block in plan.blocks} == {0}
    assert {(block.qk_dim, block.vo_dim) for block in plan.blocks} == {(8, 8)}  # the least, and all there are


def test_budget_that_no_plan_reaches_names_the_smallest() -> None:
    model = toy_model()
    with pytest.raises(PlanError, match=r"macs: no plan reaches 0\.1 of .* in each block 0\.9") as raised:
        decided(model, macs=0.1)
    least = float(str(raised.value).split("neurons in each block ")[1].split()[0])
    assert share(model, decided(model, macs=least)) <= least


def test_model_whose_qk_dims_stay_is_cut_elsewhere() -> None:
    model = toy_model(dataclasses.replace(ARCH, qk_norm=True))
    plan = decided(model, vo_drop=0.5, hidden_drop=0.5)
    hidden = model.arch.blocks[0].hidden // 2
    assert {(block.qk_dim, block.vo_dim, block.hidden) for block in plan.blocks} == {(8, 4, hidden)}
    with pytest.raises(PlanError, match=r"qk_drop: this model .* QK dims stay"):
        decided(model, qk_drop=0.5)
    with pytest.raises(PlanError, match=r"macs: no plan .* QK is whole: this model .* QK dims stay"):
        decided(model, macs=0.1)


def test_shares_keep_the_dims_of_the_highest_scores() -> None:
    model = toy_model()
    model.blocks[0].attn.q.weight[[0, 5, 9, 23]] *= 100
    plan = decided(model, qk_drop=0.75)
    assert plan.blocks[0].qk_dim == 2
    assert plan.blocks[0].kept.qk is not None
    assert plan.blocks[0].kept.qk[0] == (0, 5)
    assert 1 in plan.blocks[0].kept.qk[1]
    assert 7 in plan.blocks[0].kept.qk[2]
    assert plan.blocks[0].kept.vo is None


@pytest.mark.parametrize(
    "options", [{"qk_drop": 0.25}, {"macs": 0.85, "align": 1}, {"macs": 0.8, "align": 3}]
)
def test_rotary_dims_go_in_pairs_the_same_in_all_heads(options: dict[str, float]) -> None:
    wide = dataclasses.replace(toy_dino().arch.blocks[0], qk_dim=24)
    model = toy_model(dataclasses.replace(toy_dino().arch, blocks=(wide,) * 3))
    scores = {name: torch.ones_like(value) for name, value in group_scores(model).items()}
    for index in range(3):
        scores[f"blocks.{index}.qk"][:, [3, 15]] = 0.01
        scores[f"blocks.{index}.qk"][0, 7] = 0.001  # one dim of one head is no pair
    given = IntraHead.model_validate({"method": "intra-head", "align": 1} | options)
    plan = intra_head(model, toy_plan(model, Counts()), given, scores)
    for block in plan.blocks:
        assert block.qk_dim < 24
        assert block.qk_dim % 2 == 0
        assert block.kept.qk is not None
        (dims,) = set(block.kept.qk)
        assert {(dim + 12) % 24 for dim in dims} == set(dims)
        assert 3 not in dims
    if "macs" in options:
        assert options["macs"] - 0.02 < share(model, plan) <= options["macs"]


def test_zeros_of_a_gated_mlp_leave_a_neuron_that_its_bias_keeps_alive() -> None:
    model = toy_dino()
    for block in model.blocks:
        assert block.mlp.gate is not None
        block.mlp.fc1.weight[[3, 4]] = 0
        block.mlp.fc1.bias[4] = 0
        block.mlp.gate.weight[7] = 0
    plan = decided(model, zeros=True)
    assert {block.kept.hidden for block in plan.blocks} == {tuple(j for j in range(96) if j != 4)}
    image = noise_images(3, model.arch)
    torch.testing.assert_close(slim_by_selection(model, plan)(image), model(image), rtol=1e-5, atol=1e-5)


def test_zeros_of_rotary_dims_go_where_a_pair_is_zero_in_all_heads() -> None:
    model = toy_dino()
    for block in model.blocks:
        block.attn.q.weight[[row for row in range(24) if row % 8 in (1, 5)]] = 0
        block.attn.k.weight[[row for row in range(24) if row % 8 in (2, 6)]] = 0
        block.attn.k.weight[3] = 0  # its partner and the other heads' are not
    plan = decided(model, zeros=True)
    assert {(block.qk_dim, block.kept.qk) for block in plan.blocks} == {(4, ((0, 3, 4, 7),) * 3)}
    image = noise_images(3, model.arch)
    torch.testing.assert_close(slim_by_selection(model, plan)(image), model(image), rtol=1e-5, atol=1e-5)
    assert {block.qk_dim for block in decided(model, zeros=True, align=3).blocks} == {6}


def _with_zeros(model: SlimViT) -> SlimViT:
    for block in model.blocks:
        block.attn.q.weight[[0, 1, 9]] = 0
        block.attn.q.bias[[0, 1, 9]] = 0
        block.attn.k.weight[[2, 10, 11, 18, 20]] = 0
        block.attn.v.weight[[7, 15, 23, 22]] = 0
        block.mlp.fc1.weight[[3, 8]] = 0
        block.mlp.fc1.bias[[3, 8]] = 0
    return model


def test_zeros_alone_are_cut_without_a_change_of_the_outputs() -> None:
    model = _with_zeros(toy_model())
    plan = decided(model, zeros=True)
    dims = {(block.qk_dim, block.vo_dim, block.hidden) for block in plan.blocks}
    assert dims == {(6, 7, 38)}  # of heads with 5, 5, 6 and 7, 7, 6 live dims
    slim = slim_by_selection(model, plan)
    image = noise_images(3)
    torch.testing.assert_close(slim(image), model(image), rtol=1e-5, atol=1e-5)


def test_zeros_are_cut_to_multiples() -> None:
    plan = decided(_with_zeros(toy_model()), zeros=True, align=4)
    assert {(block.qk_dim, block.vo_dim, block.hidden) for block in plan.blocks} == {(8, 8, 40)}


def test_model_without_zeros_stays_whole() -> None:
    model = toy_model()
    assert decided(model, zeros=True) == toy_plan(model, Counts())


def test_heads_that_the_plan_cuts_are_named_and_only_their_dims_chosen() -> None:
    model = toy_model()
    plan = decided(model, toy_plan(model, Counts(heads=2)), qk_drop=0.5)
    block = plan.blocks[0]
    assert block.kept.heads is not None
    assert block.kept.qk is not None
    assert (len(block.kept.heads), len(block.kept.qk), block.qk_dim) == (2, 2, 4)


def test_dims_that_an_earlier_method_cut_do_not_come_back() -> None:
    model = toy_model()
    first = decided(model, qk_drop=0.25, hidden_drop=0.25)
    second = decided(model, first, macs=0.85)
    for before, after in zip(first.blocks, second.blocks, strict=True):
        assert after.qk_dim <= before.qk_dim
        assert set(after.kept.hidden or ()) <= set(before.kept.hidden or ())


def test_channels_are_cut_by_their_scores_within_the_budget() -> None:
    model = toy_model()
    kept = (tuple(c for c in range(24) if c % 4),)
    model = with_zero_channels(model, kept)
    plan = decided(model, embed_drop=0.25, macs=0.75)
    assert plan.channels == kept
    assert 0.74 < share(model, plan) <= 0.75
    slim = slim_model(model, plan, SlimOptions("none"), None, silent)
    assert slim.arch.embed == 18


def test_channels_cut_twice_are_refused() -> None:
    model = toy_model()
    plan = decided(model, embed_drop=0.25, qk_drop=0.5)
    with pytest.raises(PlanError, match="embed_drop: channels of this model's stream were cut already"):
        decided(model, plan, embed_drop=0.25, qk_drop=0.5)


def test_neurons_that_each_image_chooses_stay() -> None:
    model = toy_model(dataclasses.replace(ARCH, blocks=(dataclasses.replace(ARCH.blocks[0], hidden=80),) * 2))
    plan = toy_plan(model, Counts())
    first = dataclasses.replace(plan.blocks[0], per_image=PerImage(40))
    plan = dataclasses.replace(plan, blocks=(first, plan.blocks[1]))
    found = decided(model, plan, macs=0.85)
    assert found.blocks[0].hidden == 80
    assert found.blocks[1].hidden < 80
    with pytest.raises(PlanError, match=r"hidden_drop: blocks\.0: each image chooses which neurons"):
        decided(model, plan, hidden_drop=0.5)


def test_channels_under_an_mlp_that_reads_some_are_refused() -> None:
    model = toy_model()
    plan = toy_plan(model, Counts())
    blocks = tuple(dataclasses.replace(block, mlp_inputs=12) for block in plan.blocks)
    with pytest.raises(PlanError, match="embed_drop: an MLP of this model reads only some channels"):
        decided(model, dataclasses.replace(plan, blocks=blocks), embed_drop=0.25, qk_drop=0.5)


def test_scores_are_norms_of_all_weights_that_go_together() -> None:
    model = toy_model()
    attention, mlp = model.blocks[1].attn, model.blocks[1].mlp
    scores: dict[str, Tensor] = group_scores(model)
    vo = attention.v.weight[11].norm() * attention.proj.weight[:, 11].norm()
    torch.testing.assert_close(scores["blocks.1.vo"][1, 3], vo, rtol=1e-5, atol=0)
    neuron = mlp.fc1.weight[4].norm() * mlp.fc2.weight[:, 4].norm()
    torch.testing.assert_close(scores["blocks.1.hidden"][4], neuron, rtol=1e-5, atol=0)
    assert scores["blocks.1.qk"].shape == (3, 8)
