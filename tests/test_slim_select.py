from __future__ import annotations

import dataclasses

import pytest
import torch
from toy_ccts import toy_slim_cct
from toy_choosers import chooser, choosing_arch
from toy_dinos import toy_dino
from toy_swins import toy_swin
from toy_vits import ARCH, FORMS, noise_images, toy_arch, toy_model, toy_plan

from edgevit.errors import PlanError
from edgevit.models.arch import Arch
from edgevit.models.group_scores import head_norms
from edgevit.models.layers import SlimViT
from edgevit.plan import BlockPlan, Counts, Kept, PerImage, Plan
from edgevit.slim.select import slim_by_selection

GATED = dataclasses.replace(ARCH, gated=True, activation="silu")


def assert_equal_outputs(slim: SlimViT, dense: SlimViT) -> None:
    image = noise_images(3, dense.arch)
    torch.testing.assert_close(slim(image), dense(image), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_selection_of_all_reproduces_the_model(form: str) -> None:
    dense = toy_model(FORMS[form])
    slim = slim_by_selection(dense, toy_plan(dense, Counts()))
    assert slim is not dense
    assert slim.arch == dense.arch
    for name, value in dense.state_dict().items():
        assert torch.equal(slim.state_dict()[name], value), name


def _rows_of(head: int, dims: tuple[int, ...]) -> list[int]:
    return [8 * head + dim for dim in dims]


ALL = tuple(range(8))
DEAD = ((1, 4, 6), (0, 2, 7), (3, 4, 5))  # dims of each head that the tests below make zero


@pytest.mark.parametrize("part", ["values", "projection"])
@pytest.mark.parametrize("form", FORMS)
def test_cutting_heads_that_are_zero_leaves_the_output_equal(form: str, part: str) -> None:
    dense = toy_model(FORMS[form])
    for block, head in zip(dense.blocks, (0, 2, 1), strict=True):
        if part == "values":
            block.attn.v.weight[_rows_of(head, ALL)] = 0
        else:
            block.attn.proj.weight[:, _rows_of(head, ALL)] = 0
    assert_equal_outputs(slim_by_selection(dense, toy_plan(dense, Counts(heads=2))), dense)


@pytest.mark.parametrize("part", ["queries", "keys"])
def test_cutting_qk_dims_that_are_zero_leaves_the_output_equal(part: str) -> None:
    """The biases of what stays are random; the scale must stay that of 8 dims."""
    dense = toy_model()
    for block in dense.blocks:
        for head, dims in enumerate(DEAD):
            rows = _rows_of(head, dims)
            if part == "queries":
                block.attn.q.weight[rows] = 0
                block.attn.q.bias[rows] = 0
            else:
                block.attn.k.weight[rows] = 0
    slim = slim_by_selection(dense, toy_plan(dense, Counts(qk_dim=5)))
    assert slim.blocks[0].attn.q.weight.shape == (15, 24)
    assert slim.blocks[0].attn.scale == 8**-0.5
    assert_equal_outputs(slim, dense)


@pytest.mark.parametrize("part", ["values", "projection"])
def test_cutting_vo_dims_that_are_zero_leaves_the_output_equal(part: str) -> None:
    dense = toy_model()
    for block in dense.blocks:
        for head, dims in enumerate(DEAD):
            if part == "values":
                block.attn.v.weight[_rows_of(head, dims)] = 0
            else:
                block.attn.proj.weight[:, _rows_of(head, dims)] = 0
    assert_equal_outputs(slim_by_selection(dense, toy_plan(dense, Counts(vo_dim=5))), dense)


def test_cutting_neurons_that_are_zero_leaves_the_output_equal() -> None:
    dense = toy_model()
    for block in dense.blocks:
        block.mlp.fc2.weight[:, [0, 7, 8, 39]] = 0
    assert_equal_outputs(slim_by_selection(dense, toy_plan(dense, Counts(hidden=36))), dense)


def test_cutting_neurons_that_read_nothing_keeps_what_their_bias_adds() -> None:
    dense = toy_model()
    for block in dense.blocks:
        block.mlp.fc1.weight[[3, 17, 39]] = 0  # the bias stays: the neuron is a constant
    assert_equal_outputs(slim_by_selection(dense, toy_plan(dense, Counts(hidden=37))), dense)


def test_cutting_gated_neurons_that_read_nothing_keeps_what_their_biases_add() -> None:
    dense = toy_model(GATED)
    for block in dense.blocks:
        assert block.mlp.gate is not None
        for layer in (block.mlp.fc1, block.mlp.gate):
            layer.weight[[3, 17, 39]] = 0  # the biases stay: the neuron is a constant
    assert_equal_outputs(slim_by_selection(dense, toy_plan(dense, Counts(hidden=37))), dense)


def test_selection_keeps_a_query_dim_that_only_its_bias_feeds() -> None:
    dense = toy_model()
    attention = dense.blocks[0].attn
    attention.q.weight[0] = 0
    attention.q.bias[0] = 10.0
    slim = slim_by_selection(dense, toy_plan(dense, Counts(qk_dim=7)))
    assert (slim.blocks[0].attn.q.bias == 10.0).sum() == 1


def test_cutting_everything_that_is_zero_at_once_leaves_the_output_equal() -> None:
    dense = toy_model(toy_arch("class+distillation", 2))
    for block in dense.blocks:
        block.attn.v.weight[_rows_of(1, ALL)] = 0
        for head, dims in enumerate(DEAD):
            block.attn.k.weight[_rows_of(head, dims)] = 0
            block.attn.proj.weight[:, _rows_of(head, dims)] = 0
        block.mlp.fc2.weight[:, ::2] = 0
    plan = toy_plan(dense, Counts(heads=2, qk_dim=5, vo_dim=5, hidden=20), dead_tokens=True)
    assert_equal_outputs(slim_by_selection(dense, plan), dense)


KEPT = Kept(heads=(0, 2), qk=((0, 3, 7), (1, 2, 6)), vo=((2, 5), (0, 7)), hidden=tuple(range(1, 40, 3)))


def _mask(dense: SlimViT) -> SlimViT:
    """Return a model of dense dims with zeros wherever `KEPT` keeps nothing."""
    masked = SlimViT(dense.arch).eval().requires_grad_(False)
    masked.load_state_dict(dense.state_dict())
    assert KEPT.heads is not None
    assert KEPT.qk is not None
    assert KEPT.vo is not None
    qk = [row for head, dims in zip(KEPT.heads, KEPT.qk, strict=True) for row in _rows_of(head, dims)]
    vo = [row for head, dims in zip(KEPT.heads, KEPT.vo, strict=True) for row in _rows_of(head, dims)]
    for block in masked.blocks:
        block.attn.k.weight[[row for row in range(24) if row not in qk]] = 0
        block.attn.v.weight[[row for row in range(24) if row not in vo]] = 0
        neurons = range(block.mlp.fc1.out_features)
        block.mlp.fc2.weight[:, [j for j in neurons if j not in (KEPT.hidden or ())]] = 0
    return masked


@pytest.mark.parametrize(
    "dense", [toy_model(), toy_slim_cct(), toy_model(GATED)], ids=["ViT", "CCT", "gated"]
)
def test_selection_by_index_is_exact_against_a_mask(dense: SlimViT) -> None:
    plan = Plan((BlockPlan(2, 3, 2, 13, dense.arch.tokens, KEPT),) * 3)
    assert_equal_outputs(slim_by_selection(dense, plan), _mask(dense))


SWIN_KEPT = Kept(heads=(1,), qk=((0, 3, 7),), vo=((2, 5),), hidden=tuple(range(1, 40, 3)))


def _mask_swin(dense: SlimViT) -> SlimViT:
    """Return a Swin of dense dims with zeros wherever `SWIN_KEPT` keeps nothing."""
    masked = SlimViT(dense.arch).eval().requires_grad_(False)
    masked.load_state_dict(dense.state_dict())
    for block in masked.blocks:
        qk, vo = ([8 + dim for dim in dims] for dims in ((0, 3, 7), (2, 5)))
        rows = range(8 * block.attn.heads)
        block.attn.k.weight[[row for row in rows if row not in qk]] = 0
        block.attn.v.weight[[row for row in rows if row not in vo]] = 0
        hidden = range(block.mlp.fc1.out_features)
        block.mlp.fc2.weight[:, [j for j in hidden if j not in range(1, 40, 3)]] = 0
    return masked


def test_selection_of_a_shifted_swin_by_index_is_exact_against_a_mask() -> None:
    dense = toy_swin()
    plan = Plan(tuple(BlockPlan(1, 3, 2, 13, dims.tokens_in, SWIN_KEPT) for dims in dense.arch.blocks))
    slim = slim_by_selection(dense, plan)
    assert slim.blocks[1].attn.position_bias is not None
    assert slim.blocks[1].attn.position_bias.shape == (1, 16, 16)
    assert_equal_outputs(slim, _mask_swin(dense))
    assert (slim(noise_images(3, dense.arch)) - dense(noise_images(3, dense.arch))).abs().max() > 0.1


def test_selection_of_all_reproduces_a_swin() -> None:
    dense = toy_swin()
    slim = slim_by_selection(dense, toy_plan(dense, Counts()))
    assert slim.arch == dense.arch
    assert all(torch.equal(slim.state_dict()[name], value) for name, value in dense.state_dict().items())


def test_selection_of_rotary_heads_by_index_is_exact_against_a_mask() -> None:
    dense = toy_dino()
    kept = dataclasses.replace(KEPT, qk=(ALL, ALL))
    slim = slim_by_selection(dense, Plan((BlockPlan(2, 8, 2, 13, 21, kept),) * 3, dead_tokens=True))
    masked = _mask(dense)
    for full, block in zip(dense.blocks, masked.blocks, strict=True):
        block.attn.k.weight.copy_(full.attn.k.weight)
    assert_equal_outputs(slim, masked)


PAIRS = (0, 2, 4, 6)  # dims j and j + 4 are turned by one angle


def test_selection_of_rotary_pairs_by_index_is_exact_against_a_mask() -> None:
    dense = toy_dino()
    plan = Plan((BlockPlan(3, 4, 8, 96, 21, Kept(qk=(PAIRS,) * 3)),) * 3)
    masked = toy_dino()
    for block in masked.blocks:
        block.attn.k.weight[[row for row in range(24) if row % 8 not in PAIRS]] = 0
    slim = slim_by_selection(dense, plan)
    assert_equal_outputs(slim, masked)
    assert (slim(noise_images(3, dense.arch)) - dense(noise_images(3, dense.arch))).abs().max() > 1e-3


def test_selection_of_rotary_dims_without_indices_keeps_whole_pairs() -> None:
    dense = toy_dino()
    for block in dense.blocks:
        block.attn.k.weight[[row for row in range(24) if row % 8 not in PAIRS]] = 0
    assert_equal_outputs(slim_by_selection(dense, toy_plan(dense, Counts(qk_dim=4))), dense)
    with pytest.raises(
        PlanError, match=r"plan\.qk_dim: every block has parts that go 2 at a time.*Give 4 or 6"
    ):
        toy_plan(dense, Counts(qk_dim=5))


def test_plan_that_takes_tokens_from_a_swin_is_refused_with_the_reason() -> None:
    with pytest.raises(PlanError, match=r"plan.tokens: this model attends inside windows of a grid"):
        toy_plan(toy_swin(), Counts(tokens=[64, 60, 16, 16]))


def test_selection_without_indices_keeps_the_largest_norms() -> None:
    dense = toy_model()
    attention = dense.blocks[1].attn
    kept = head_norms(attention).topk(2).indices.sort().values
    slim = slim_by_selection(dense, toy_plan(dense, Counts(heads=2)))
    expected = attention.q.weight.unflatten(0, (3, 8))[kept].flatten(0, 1)
    assert torch.equal(slim.blocks[1].attn.q.weight, expected)


def test_selection_that_merges_and_drops_dead_tokens_has_the_promised_tokens() -> None:
    dense = toy_model()
    slim = slim_by_selection(dense, toy_plan(dense, Counts(tokens=[17, 12, 12]), dead_tokens=True))
    x, sizes = slim.embed(noise_images(2)), None
    for block, tokens in zip(slim.blocks, (17, 12, 1), strict=True):
        x, sizes = block(x, sizes)
        assert x.shape == (2, tokens, 24)


def test_selection_leaves_the_dense_model_as_it_is() -> None:
    dense = toy_model()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    slim = slim_by_selection(dense, toy_plan(dense, Counts(hidden=20)))
    for parameter in slim.parameters():
        parameter.requires_grad_(False).zero_()
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


def test_selection_works_on_a_model_that_was_slimmed_before() -> None:
    dense = toy_model()
    once = slim_by_selection(dense, toy_plan(dense, Counts(hidden=20))).requires_grad_(False)
    twice = slim_by_selection(once, toy_plan(once, Counts(hidden=[20, 10, 20], heads=[3, 3, 2])))
    arch: Arch = twice.arch
    assert [(block.hidden, block.heads) for block in arch.blocks] == [(20, 3), (10, 3), (20, 2)]
    direct = slim_by_selection(dense, toy_plan(dense, Counts(hidden=[20, 10, 20], heads=[3, 3, 2])))
    assert_equal_outputs(twice, direct)


@pytest.mark.parametrize("form", ["plain", "gated", "Swin", "DINOv3"])
def test_cutting_inputs_is_the_model_whose_mlp_inputs_are_masked(form: str) -> None:
    """The norm sees every channel and the stream keeps them, so that the mask stands behind the norm."""
    dense = {"plain": toy_model, "gated": lambda: toy_model(GATED), "Swin": toy_swin, "DINOv3": toy_dino}[
        form
    ]()
    generator = torch.Generator().manual_seed(0)
    plan = toy_plan(dense, Counts())
    blocks = []
    for full, block in zip(dense.blocks, plan.blocks, strict=True):
        kept = torch.randperm(full.dims.embed, generator=generator)[: full.dims.embed // 2].sort().values
        inputs = Kept(inputs=tuple(kept.tolist()))
        blocks.append(dataclasses.replace(block, mlp_inputs=len(kept), kept=inputs))
    slim = slim_by_selection(dense, dataclasses.replace(plan, blocks=tuple(blocks)))
    assert slim.blocks[0].mlp.fc1.in_features == dense.blocks[0].dims.embed // 2
    for full, block in zip(dense.blocks, blocks, strict=True):
        gone = torch.ones(full.dims.embed, dtype=torch.bool)
        gone[list(block.kept.inputs)] = False
        full.mlp.fc1.weight[:, gone] = 0
        if full.mlp.gate is not None:
            full.mlp.gate.weight[:, gone] = 0
    assert_equal_outputs(slim, dense)


def test_cutting_inputs_again_counts_from_those_that_are_read() -> None:
    dense = chooser(choosing_arch(inputs=9))
    plan = toy_plan(dense, Counts())
    last = dataclasses.replace(plan.blocks[2], mlp_inputs=4, kept=Kept(inputs=(0, 3, 4, 8)))
    slim = slim_by_selection(dense, dataclasses.replace(plan, blocks=(*plan.blocks[:2], last)))
    read = dense.blocks[2].mlp.inputs
    assert slim.blocks[2].mlp.inputs.tolist() == read[[0, 3, 4, 8]].tolist()
    dense.blocks[2].mlp.fc1.weight[:, [1, 2, 5, 6, 7]] = 0
    assert_equal_outputs(slim, dense)


def test_using_all_but_neurons_that_add_nothing_leaves_the_output_equal() -> None:
    dense = toy_model()
    for block in dense.blocks:
        block.mlp.fc2.weight[:, ::2] = 0
    plan = toy_plan(dense, Counts())
    blocks = tuple(dataclasses.replace(block, per_image=PerImage(20)) for block in plan.blocks)
    assert_equal_outputs(slim_by_selection(dense, dataclasses.replace(plan, blocks=blocks)), dense)
