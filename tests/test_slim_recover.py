"""The driver, the two streams and the fits of attention and MLP, on toy models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from toy_ccts import CCT_ARCH
from toy_choosers import chooser
from toy_dinos import toy_dino
from toy_swins import SWIN
from toy_vits import ARCH, FORMS, few_cause_images, fewer_tokens, noise_images, toy_arch, toy_model, toy_plan

from edgevit.models.anatomy import slim_arch
from edgevit.models.arch import Arch
from edgevit.models.layers import SlimViT
from edgevit.models.reduction import Reduction, Step, find_reduction, match_tokens, reduce_tokens
from edgevit.plan import Choice, Counts, PerImage, Plan
from edgevit.progress import silent
from edgevit.slim.fit_attention import fit_attention
from edgevit.slim.fit_mlp import fit_mlp
from edgevit.slim.recover import slim_closed_form
from edgevit.slim.select import slim_by_selection
from edgevit.slim.site import ClosedForm, Site
from edgevit.slim.stream import Streams, open_streams
from edgevit.slim.write import copy_shared

ALL_FORMS = FORMS | {
    "CCT": CCT_ARCH,
    "gated": dataclasses.replace(ARCH, gated=True, activation="silu"),
}
OPTIONS = {
    "default": ClosedForm(),
    "unweighted": ClosedForm(weighted=False),
    "no refit": ClosedForm(aim=None),
    "whole drift": ClosedForm(aim=1.0),
    "by norm": ClosedForm(greedy=False),
}


def _batches(images: Tensor) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(images.split(32))


def _fit(
    dense: SlimViT, counts: Counts, options: ClosedForm | None = None, *, dead_tokens: bool = False
) -> SlimViT:
    plan = toy_plan(dense, counts, dead_tokens=dead_tokens)
    images = few_cause_images(48, dense.arch)
    return slim_closed_form(dense, plan, _batches(images), options or ClosedForm(), silent)


@torch.no_grad()
def _error(slim: SlimViT, dense: SlimViT) -> float:
    """Return the squared error of the logits, relative to their variance, on images that no fit has seen."""
    images = few_cause_images(64, dense.arch, seed=40)
    expected = dense(images)
    return float((slim(images) - expected).square().mean() / expected.var(dim=0).mean())


@pytest.mark.parametrize("form", [*ALL_FORMS, "Swin"])
@pytest.mark.parametrize("options", OPTIONS)
def test_closed_form_of_all_reproduces_the_model(form: str, options: str) -> None:
    dense = toy_model((ALL_FORMS | {"Swin": SWIN})[form])
    slim = _fit(dense, Counts(), OPTIONS[options])
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(slim.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_closed_form_of_dead_tokens_alone_reproduces_the_model() -> None:
    dense = toy_model()
    slim = _fit(dense, Counts(), dead_tokens=True)
    images = noise_images(4)
    torch.testing.assert_close(slim(images), dense(images), rtol=1e-5, atol=1e-5)


def test_blocks_in_front_of_the_first_cut_stay_as_they_are() -> None:
    dense = toy_model()
    slim = _fit(dense, Counts(hidden=[40, 20, 40]))
    for name, value in dense.blocks[0].state_dict().items():
        assert torch.equal(slim.blocks[0].state_dict()[name], value), name
    assert torch.equal(slim.blocks[1].attn.proj.weight, dense.blocks[1].attn.proj.weight)


def _redundant_qk(dense: SlimViT) -> None:
    for block in dense.blocks:
        _make_redundant(block.attn.k)


def _redundant_vo(dense: SlimViT) -> None:
    for block in dense.blocks:
        _make_redundant(block.attn.v)


def _make_redundant(layer: nn.Linear) -> None:
    """Leave 4 of the 8 dims of each head."""
    for head in range(3):
        rows = slice(8 * head, 8 * head + 8)
        basis = torch.randn(8, 4, generator=torch.Generator().manual_seed(head))
        layer.weight[rows] = basis @ torch.linalg.pinv(basis) @ layer.weight[rows]


def _redundant_heads(dense: SlimViT) -> None:
    for block in dense.blocks:
        for part in (block.attn.q, block.attn.k, block.attn.v):
            part.weight[16:] = part.weight[:8]
        block.attn.q.bias[16:] = block.attn.q.bias[:8]


def _redundant_neurons(dense: SlimViT) -> None:
    for block in dense.blocks:
        block.mlp.fc1.weight[20:] = block.mlp.fc1.weight[:20]
        block.mlp.fc1.bias[20:] = block.mlp.fc1.bias[:20]


REDUNDANT: dict[str, tuple[Callable[[SlimViT], None], Counts]] = {
    "qk": (_redundant_qk, Counts(qk_dim=4)),
    "vo": (_redundant_vo, Counts(vo_dim=4)),
    "heads": (_redundant_heads, Counts(heads=2)),
    "neurons": (_redundant_neurons, Counts(hidden=20)),
}


@pytest.mark.parametrize("kind", REDUNDANT)
def test_cutting_what_is_redundant_is_almost_free_in_closed_form_only(kind: str) -> None:
    """Nothing is zero here, but half of the rows say again what the others say in another basis."""
    make, counts = REDUNDANT[kind]
    dense = toy_model()
    make(dense)
    assert _error(_fit(dense, counts), dense) < 1e-5
    assert _error(slim_by_selection(dense, toy_plan(dense, counts)), dense) > 0.3


PLANS = {
    "heads": Counts(heads=2),
    "qk": Counts(qk_dim=3),
    "vo": Counts(vo_dim=3),
    "hidden": Counts(hidden=16),
    "all": Counts(heads=[3, 2, 3], qk_dim=4, vo_dim=4, hidden=20),
}


@pytest.mark.parametrize("plan", PLANS)
def test_closed_form_beats_selection_on_correlated_activations(plan: str) -> None:
    dense = toy_model()
    selected = _error(slim_by_selection(dense, toy_plan(dense, PLANS[plan])), dense)
    assert _error(_fit(dense, PLANS[plan]), dense) < 0.6 * selected


def test_closed_form_agrees_with_the_dense_model_more_often_than_selection() -> None:
    dense, images = toy_model(), few_cause_images(200, seed=40)
    top = dense(images).argmax(dim=1)
    agree = {
        name: float((slim(images).argmax(dim=1) == top).float().mean())
        for name, slim in (
            ("closed", _fit(dense, PLANS["all"])),
            ("selected", slim_by_selection(dense, toy_plan(dense, PLANS["all"]))),
        )
    }
    assert agree["closed"] > agree["selected"] + 0.1


@pytest.mark.parametrize("aim", [None, 0.25, 0.5, 0.75, 1.0])
def test_more_recovery_does_not_explode(aim: float | None) -> None:
    dense = toy_model()
    selected = _error(slim_by_selection(dense, toy_plan(dense, PLANS["all"])), dense)
    assert _error(_fit(dense, PLANS["all"], ClosedForm(aim=aim)), dense) < selected


@pytest.mark.parametrize("form", ALL_FORMS)
def test_closed_form_of_every_form_with_merges_beats_selection(form: str) -> None:
    dense = toy_model(ALL_FORMS[form])
    tokens = [patches + dense.arch.prefix for patches in (13, 13, 10)]
    counts = Counts(heads=2, vo_dim=4, hidden=20, tokens=tokens)
    slim = _fit(dense, counts)
    selected = slim_by_selection(dense, toy_plan(dense, counts))
    assert slim.arch == selected.arch
    assert _error(slim, dense) < _error(selected, dense)


SWIN_PLANS = {
    "heads": Counts(heads=[1, 1, 2, 2]),
    "qk": Counts(qk_dim=3),
    "vo": Counts(vo_dim=3),
    "hidden": Counts(hidden=[24, 24, 48, 48]),
    "all but the first": Counts(
        heads=[2, 1, 3, 4], qk_dim=[8, 4, 4, 4], vo_dim=[8, 4, 4, 4], hidden=[64, 32, 64, 64]
    ),
}


@pytest.mark.parametrize("plan", SWIN_PLANS)
def test_closed_form_of_a_swin_beats_selection(plan: str) -> None:
    dense, counts = toy_model(SWIN), SWIN_PLANS[plan]
    slim = _fit(dense, counts)
    selected = slim_by_selection(dense, toy_plan(dense, counts))
    assert slim.arch == selected.arch
    assert _error(slim, dense) < 0.6 * _error(selected, dense)


def test_closed_form_of_rotary_positions_reproduces_the_model_and_beats_selection() -> None:
    dense = toy_dino()
    same = _fit(dense, Counts())
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    counts = Counts(heads=[3, 2, 2], qk_dim=[8, 8, 6], vo_dim=5, hidden=[96, 32, 32])
    selected = slim_by_selection(dense, toy_plan(dense, counts))
    assert _error(_fit(dense, counts), dense) < 0.6 * _error(selected, dense)


def test_closed_form_of_rotary_pairs_that_are_nothing_leaves_the_outputs() -> None:
    dense = toy_dino()
    for block in dense.blocks:
        block.attn.q.weight[[row for row in range(24) if row % 8 in (1, 2, 5, 6)]] = 0
    slim = _fit(dense, Counts(qk_dim=4))
    assert slim.blocks[0].attn.q.weight.shape == (12, 24)
    image = noise_images(3, dense.arch)
    torch.testing.assert_close(slim(image), dense(image), rtol=1e-3, atol=1e-3)


def test_closed_form_with_merges_and_dead_tokens_beats_selection() -> None:
    dense, counts = toy_model(), Counts(qk_dim=4, hidden=20, tokens=[14, 11, 11])
    slim = _fit(dense, counts, dead_tokens=True)
    selected = slim_by_selection(dense, toy_plan(dense, counts, dead_tokens=True))
    assert slim.arch == selected.arch
    assert _error(slim, dense) < _error(selected, dense)


def test_closed_form_is_the_same_every_time() -> None:
    dense = toy_model()
    first, second = (_fit(dense, PLANS["all"]).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_closed_form_leaves_the_dense_model_as_it_is() -> None:
    dense = toy_model()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    _fit(dense, PLANS["all"])
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


def _narrowed(dense: SlimViT, used: int | None, inputs: int | None) -> Plan:
    """Return the plan whose images choose `used` neurons, and whose MLPs read `inputs` channels."""
    plan = toy_plan(dense, Counts())
    how = None if used is None else PerImage(used)
    blocks = (dataclasses.replace(block, per_image=how, mlp_inputs=inputs) for block in plan.blocks)
    return dataclasses.replace(plan, blocks=tuple(blocks))


NARROW = {"per image": (10, None), "inputs": (None, 12), "both": (14, 16)}


NARROW_FITS = [(form, case, "default") for form in ("plain", "mean", "gated", "CCT") for case in NARROW]
NARROW_FITS += [("plain", "both", options) for options in OPTIONS if options != "default"]


@pytest.mark.parametrize(("form", "case", "options"), NARROW_FITS)
def test_closed_form_of_a_narrowed_mlp_beats_selection(form: str, case: str, options: str) -> None:
    """Many images: of one, the class token alone counts in the last block."""
    dense = toy_model(ALL_FORMS[form])
    plan = _narrowed(dense, *NARROW[case])
    images = few_cause_images(400, dense.arch)
    slim = slim_closed_form(dense, plan, _batches(images), OPTIONS[options], silent)
    selected = slim_by_selection(dense, plan)
    assert slim.arch == selected.arch
    assert _error(slim, dense) < 0.9 * _error(selected, dense)


def test_closed_form_of_a_model_whose_images_choose_keeps_what_is_not_cut() -> None:
    dense = chooser()
    slim = _fit(dense, Counts())
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(slim.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    slim = _fit(dense, Counts(vo_dim=[8, 4, 8]))
    assert torch.equal(slim.blocks[2].mlp.inputs, dense.blocks[2].mlp.inputs)
    assert torch.equal(slim.blocks[2].mlp.choice.worth, dense.blocks[2].mlp.choice.worth)
    selected = slim_by_selection(dense, toy_plan(dense, Counts(vo_dim=[8, 4, 8])))
    assert _error(slim, dense) < _error(selected, dense)


def test_inputs_that_nothing_reads_go_for_free() -> None:
    dense = toy_model()
    for block in dense.blocks:
        block.mlp.fc1.weight[:, 12:] = 0
        block.mlp.fc1.weight[:] = block.mlp.fc1.weight[
            :, torch.randperm(24, generator=torch.Generator().manual_seed(1))
        ]
    plan = _narrowed(dense, None, 12)
    images = few_cause_images(48, dense.arch)
    assert _error(slim_closed_form(dense, plan, _batches(images), ClosedForm(), silent), dense) < 1e-5
    assert _error(slim_by_selection(dense, plan), dense) < 1e-5


def test_slimming_tells_how_far_it_is() -> None:
    dense, calls = toy_model(), list[tuple[str, int, int]]()
    plan = toy_plan(dense, Counts(hidden=20))
    images = few_cause_images(40)
    slim_closed_form(dense, plan, _batches(images), ClosedForm(), lambda *call: calls.append(call))
    assert calls[-3:] == [("slimming blocks", done, 3) for done in (1, 2, 3)]
    assert ("weighing tokens", 40, 40) in calls


def _into_block_0(dense: SlimViT, slim: SlimViT) -> tuple[Tensor, Tensor]:
    """Return what the first attention adds in both models, for the images of the fit."""
    x = dense.embed(few_cause_images(48, dense.arch))
    y = dense.blocks[0].norm1(x)
    parts = [block.attn for block in (dense.blocks[0], slim.blocks[0])]
    full, cut = (part.proj(part.mix(y, part.keys(y), y.shape[1], None)) for part in parts)
    return full, cut


@torch.no_grad()
@pytest.mark.parametrize("options", [ClosedForm(weighted=False), ClosedForm(weighted=False, aim=None)])
def test_bias_gives_back_the_mean_that_cut_values_had(options: ClosedForm) -> None:
    dense = toy_model()
    full, cut = _into_block_0(dense, _fit(dense, Counts(vo_dim=2), options))
    assert (full - cut).abs().max() > 0.1
    torch.testing.assert_close(cut.mean(dim=(0, 1)), full.mean(dim=(0, 1)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("options", [ClosedForm(weighted=False), ClosedForm(weighted=False, aim=None)])
def test_bias_gives_back_the_mean_that_cut_neurons_had(options: ClosedForm) -> None:
    dense = toy_model()
    slim = _fit(dense, Counts(hidden=10), options)
    block = dense.blocks[0]
    attention, _ = _into_block_0(dense, slim)
    y = block.norm2(dense.embed(few_cause_images(48, dense.arch)) + attention)
    full, cut = block.mlp(y), slim.blocks[0].mlp(y)
    assert (full - cut).abs().max() > 0.1
    torch.testing.assert_close(cut.mean(dim=(0, 1)), full.mean(dim=(0, 1)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cut_queries_and_keys_are_the_best_under_their_own_weights() -> None:
    dense, images = toy_model(), few_cause_images(10)
    slim = SlimViT(slim_arch(dense.arch, toy_plan(dense, Counts(qk_dim=3)))).eval()
    copy_shared(dense, slim)
    streams = open_streams(dense, _batches(images), silent, weighted=True)
    weights = streams.weights[0]
    y = dense.blocks[0].norm1(dense.embed(images))
    fit_attention(Site(0, dense.blocks[0], slim.blocks[0], streams, weights, ClosedForm()))
    full, cut = (
        (b.attn.queries(y).double(), b.attn.keys(y).double()) for b in (dense.blocks[0], slim.blocks[0])
    )
    for head in range(3):
        rows, columns = (values[:, head].flatten().double() for values in (weights.queries, weights.keys))
        logits = [q[:, head].flatten(0, 1) @ k[:, head].flatten(0, 1).T for q, k in (full, cut)]
        centred = [one - (one @ columns / columns.sum()).unsqueeze(1) for one in logits]
        whole, slim_logits = (rows.sqrt().unsqueeze(1) * one * columns.sqrt() for one in centred)
        best = torch.linalg.svdvals(whole)[3:].square().sum()
        torch.testing.assert_close((whole - slim_logits).square().sum(), best, rtol=1e-4, atol=0)


STREAM_PLANS = {
    "nothing": Counts(),
    "dims": Counts(heads=[3, 2, 2], qk_dim=[8, 4, 4], vo_dim=5, hidden=[40, 20, 20]),
    "merges alone": Counts(tokens=[17, 13, 10]),
    "merges and dims": Counts(vo_dim=4, hidden=20, tokens=[14, 11, 11]),
}


CHOSEN: dict[str, list[tuple[int | None, int, Choice | None]]] = {
    "dropped first": [(None, 12, Choice("drop"))],
    "cells first, dropped, clusters": [
        (None, 14, Choice("cells")),
        (0, 11, Choice("drop", "knn")),
        (2, 8, Choice("clusters")),
    ],
    "clusters first, dropped": [(None, 12, Choice("clusters")), (1, 9, Choice("drop"))],
    "merged first, clusters": [(None, 12, None), (1, 9, Choice("clusters", "count"))],
    "dropped, merged": [(0, 12, Choice("drop")), (1, 9, None)],
    "clusters": [(1, 9, Choice("clusters"))],
}


def _chosen(dense: SlimViT, case: str, counts: Counts) -> Plan:
    plan = toy_plan(dense, counts)
    for place, tokens, choice in CHOSEN[case]:
        plan = fewer_tokens(plan, place, tokens + dense.arch.prefix - 1, choice)
    return plan


@pytest.mark.parametrize("case", CHOSEN)
def test_closed_form_with_chosen_patches_beats_selection(case: str) -> None:
    dense = toy_model()
    plan = _chosen(dense, case, Counts(vo_dim=4, hidden=20))
    slim = slim_closed_form(dense, plan, _batches(few_cause_images(256)), ClosedForm(), silent)
    selected = slim_by_selection(dense, plan)
    assert slim.arch == selected.arch
    assert _error(slim, dense) < 0.8 * _error(selected, dense)


def _walk(
    dense: SlimViT, plan: Plan, images: Tensor, *, weighted: bool
) -> Iterator[tuple[SlimViT, Streams, int]]:
    """Yield the slim model and the streams after each block."""
    slim = SlimViT(slim_arch(dense.arch, plan)).eval().requires_grad_(False)
    copy_shared(dense, slim)
    streams = open_streams(dense, _batches(images), silent, weighted=weighted)
    streams.enter(slim, _batches(images)())
    for index, (full, cut) in enumerate(zip(dense.blocks, slim.blocks, strict=True)):
        site = Site(index, full, cut, streams, streams.weights[index], ClosedForm())
        reductions = fit_attention(site)
        if reductions:
            streams.reduce(reductions)
        fit_mlp(site)
        yield slim, streams, index


PLANS_OF_FAMILIES = {
    "Swin": SWIN_PLANS["all but the first"],
    "CCT": Counts(heads=[3, 2, 2], vo_dim=5, hidden=[48, 20, 20], tokens=[16, 12, 10]),
}


@torch.no_grad()
@pytest.mark.parametrize(("weighted", "tolerance"), [(False, 1e-4), (True, 2e-3)])
@pytest.mark.parametrize("case", [*STREAM_PLANS, *CHOSEN, "Swin", "CCT"])
def test_streams_are_what_the_models_compute(
    case: str, weighted: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevit.slim.token_weights._LEAST_WIDTH", 1)  # weighing keeps the dense stream
    dense = toy_model({"Swin": SWIN, "CCT": CCT_ARCH}.get(case, ARCH))
    images = few_cause_images(40, dense.arch)
    if case in CHOSEN:
        plan = _chosen(dense, case, Counts(qk_dim=4, hidden=20))
    else:
        plan = toy_plan(dense, PLANS_OF_FAMILIES.get(case) or STREAM_PLANS[case])
    x = full = dense.embed(images)
    sizes = None
    for slim, streams, index in _walk(dense, plan, images, weighted=weighted):
        if index == 0:
            x, sizes = slim.enter(images)
        full, _ = dense.blocks[index](full, None)
        x, sizes = slim.blocks[index](x, sizes)
        close = torch.testing.assert_close
        close(streams.dense, full, rtol=tolerance, atol=tolerance)
        close(streams.slim, x, rtol=tolerance, atol=tolerance)
        assert (streams.sizes is None) == (sizes is None)
        if sizes is not None and streams.sizes is not None:
            assert torch.equal(streams.sizes, sizes)


def _streams(images: int, tokens: int, prefix: int) -> tuple[Streams, Arch]:
    arch = toy_arch("class+distillation" if prefix == 2 else "class", prefix)
    assert arch.tokens == tokens
    return open_streams(toy_model(arch), _batches(noise_images(images, arch)), silent, weighted=False), arch


def _match(streams: Streams, prefix: int, merged: int, seed: int) -> list[Reduction]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(streams.slim), streams.slim.shape[1] - prefix, 5)
    keys = torch.randn(shape, generator=generator)
    return [match_tokens(keys[part], prefix, merged) for part in streams.slices()]


@pytest.mark.parametrize(("prefix", "counts"), [(1, (8, 4)), (1, (3, 5)), (2, (8, 1)), (2, (5, 5))])
def test_pooled_dense_follows_two_successive_merges(prefix: int, counts: tuple[int, int]) -> None:
    """Both streams start equal: pooled by home or merged step by step, they must stay so."""
    streams, _ = _streams(40, 16 + prefix, prefix)
    expected, sizes = streams.dense.clone(), None
    for seed, merged in enumerate(counts):
        matches = _match(streams, prefix, merged, seed)
        pooled = [
            reduce_tokens(expected[part], None if sizes is None else sizes[part], match)
            for part, match in zip(streams.slices(), matches, strict=True)
        ]
        expected, sizes = torch.cat([one for one, _ in pooled]), torch.cat([size for _, size in pooled])
        streams.reduce(matches)
        torch.testing.assert_close(streams.slim, expected)
        found = torch.cat([streams.pooled_dense(part) for part in streams.slices()])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        count = torch.zeros(sizes.shape[:2]).scatter_add_(1, streams.home, torch.ones(streams.home.shape))
        assert torch.equal(count.unsqueeze(-1), sizes)
    assert torch.equal(streams.home[:, :prefix], torch.arange(prefix).expand(40, -1))


STEPS = {
    "dropped": [("drop", 6)],
    "dropped twice": [("drop", 3), ("drop", 5)],
    "clusters": [("clusters", 9)],
    "dropped, clusters, dropped": [("drop", 3), ("clusters", 5), ("drop", 4)],
    "merged, dropped, merged": [("merge", 6), ("drop", 3), ("merge", 2)],
}


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize("case", STEPS)
def test_pooled_dense_follows_every_reduction(case: str, prefix: int) -> None:
    """Both streams start equal: pooled by home or reduced step by step, they must stay so."""
    streams, _ = _streams(40, 16 + prefix, prefix)
    for seed, (kind, removed) in enumerate(STEPS[case]):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(40, streams.slim.shape[1] - prefix, 5, generator=generator)
        choice = {"drop": Choice("drop", "knn"), "clusters": Choice("clusters")}.get(kind)
        step = Step(prefix, removed, choice, (4, 4), positioned=True)
        streams.reduce([find_reduction(features[part], step) for part in streams.slices()])
        found = torch.cat([streams.pooled_dense(part) for part in streams.slices()])
        torch.testing.assert_close(found, streams.slim, rtol=1e-5, atol=1e-6)
        weights = torch.cat([streams.pool_weights(torch.ones(40, 16 + prefix), p) for p in streams.slices()])
        sizes = torch.ones_like(weights) if streams.sizes is None else streams.sizes[..., 0]
        assert torch.equal(weights, sizes)


def test_pooled_weights_keep_their_sum() -> None:
    streams, _ = _streams(40, 17, 1)
    weights = torch.rand(40, 17, generator=torch.Generator().manual_seed(0))
    heads = torch.rand(40, 3, 17, generator=torch.Generator().manual_seed(1))
    streams.reduce(_match(streams, 1, 6, 0))
    part = slice(32, 64)
    pooled, per_head = streams.pool_weights(weights, part), streams.pool_head_weights(heads, part)
    assert pooled.shape == (8, 11)
    assert per_head.shape == (8, 3, 11)
    torch.testing.assert_close(pooled.sum(dim=1), weights[part].sum(dim=1))
    torch.testing.assert_close(per_head.sum(dim=2), heads[part].sum(dim=2))
    assert torch.equal(pooled[:, 0], weights[part][:, 0])


def test_without_weighing_each_original_token_weighs_one() -> None:
    streams, _ = _streams(40, 17, 1)
    for block in streams.weights:
        assert block.mlp.shape == (40, 17)
        assert block.keys.shape == (40, 3, 17)
        assert all((values == 1).all() for values in block)
    streams.reduce(_match(streams, 1, 6, 0))
    assert streams.sizes is not None
    pooled = streams.pool_weights(streams.weights[0].mlp, slice(0, 32))
    assert torch.equal(pooled, streams.sizes[:32, :, 0])


def test_shared_parts_are_copied_and_cut_parts_are_not() -> None:
    dense = toy_model(dataclasses.replace(toy_arch("class+distillation", 2), qk_norm=True, pre_norm=True))
    slim = SlimViT(slim_arch(dense.arch, toy_plan(dense, Counts(heads=2, hidden=20))))
    copy_shared(dense, slim)
    same = {
        name
        for name, value in slim.state_dict().items()
        if value.shape == dense.state_dict()[name].shape and torch.equal(value, dense.state_dict()[name])
    }
    wanted = {name for name in slim.state_dict() if "norm" in name or not name.startswith("blocks.")}
    assert same == wanted
