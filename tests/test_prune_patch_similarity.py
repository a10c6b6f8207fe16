"""How many patches go where, by counts, shares and thresholds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_swins import SWIN
from toy_vits import few_cause_images, noise_images, toy_arch, toy_model, toy_plan

from edgevit.errors import PlanError
from edgevit.methods import PatchSimilarity
from edgevit.models.layers import SlimViT
from edgevit.models.reduction import pair_similarity, redundancy, unit_features
from edgevit.plan import Choice, Counts, InputPlan, Plan, plan_from_json, plan_to_json
from edgevit.prune.patch_similarity import patch_similarity
from edgevit.slim.select import slim_by_selection

DENSE = toy_model()  # 3 blocks, a class token and 4 x 4 patches
ALL = toy_plan(DENSE, Counts())
IMAGES = few_cause_images(20)


def options(**given: Any) -> PatchSimilarity:
    return PatchSimilarity(method="patch-similarity", **given)


def unread() -> Iterable[Tensor]:
    raise AssertionError


def decide(wanted: PatchSimilarity, model: SlimViT = DENSE, plan: Plan = ALL) -> Plan:
    batches = unread if wanted.threshold is None else lambda: IMAGES.split(8)
    return patch_similarity(model, plan, wanted, batches, lambda seen: None)


def tokens(plan: Plan) -> list[int]:
    return [block.tokens for block in plan.blocks]


def test_plan_drops_before_the_first_block_as_published() -> None:
    plan = decide(options(tokens_drop=0.25))
    assert plan.input == InputPlan(13, Choice("drop", "avg"))
    assert tokens(plan) == [13, 13, 13]
    assert all(block.choice is None for block in plan.blocks)
    assert plan_from_json(plan_to_json(plan)) == plan


def test_plan_lets_fewer_tokens_leave_chosen_blocks() -> None:
    plan = decide(options(tokens=(12, 9), blocks=(0, 1), strategy="clusters", score="knn"))
    choice = Choice("clusters", "knn")
    assert plan.input is None
    assert [(block.tokens, block.choice) for block in plan.blocks] == [(12, choice), (9, choice), (9, None)]
    assert plan_from_json(plan_to_json(plan)) == plan


def test_shares_count_patches_and_round_up_to_align() -> None:
    assert tokens(decide(options(tokens_drop=0.3))) == [1 + 11] * 3
    assert tokens(decide(options(tokens_drop=0.3, align=8))) == [16] * 3
    assert tokens(decide(options(tokens_drop=(0.5, 0.25), blocks=(0, 1)))) == [9, 7, 7]


def test_cut_of_nothing_leaves_the_plan() -> None:
    assert decide(options(tokens_drop=0.0)) == ALL
    assert decide(options(tokens=17)) == ALL
    assert decide(options(threshold=0.999)) == ALL


def test_other_cuts_of_the_plan_stay() -> None:
    by_hand = toy_plan(DENSE, Counts(hidden=20, vo_dim=4))
    plan = decide(options(tokens_drop=0.25, blocks=(1,)), plan=by_hand)
    assert [(block.hidden, block.vo_dim) for block in plan.blocks] == [(20, 4)] * 3
    assert tokens(plan) == [17, 13, 13]


@pytest.mark.parametrize("strategy", ["drop", "cells", "clusters", "merge"])
@pytest.mark.parametrize("blocks", [None, (1,)])
@torch.no_grad()
def test_slim_model_treats_each_image_alone(strategy: str, blocks: tuple[int, ...] | None) -> None:
    slim = slim_by_selection(DENSE, decide(options(tokens=12, strategy=strategy, blocks=blocks)))
    images = noise_images(6)
    together = slim(images)
    alone = torch.cat([slim(images[row : row + 1]) for row in range(6)])
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slim(images[order]), together[order], rtol=1e-4, atol=1e-5)
    assert torch.equal(slim(images), together)


@torch.no_grad()
def test_threshold_holds_on_nine_of_ten_images_and_one_patch_more_would_not() -> None:
    unit = unit_features(DENSE.patches(IMAGES))
    scores = redundancy(unit, Choice("drop"), (4, 4)).sort(dim=1, descending=True).values
    threshold = float(scores.median())
    plan = decide(options(threshold=threshold))
    assert plan.input is not None
    removed = 17 - plan.input.tokens
    assert 0 < removed < 16
    holds = [(scores[:, gone - 1] > threshold).float().mean() for gone in (removed, removed + 1)]
    assert holds[0] >= 0.9 > holds[1]


@torch.no_grad()
def test_threshold_of_a_later_place_sees_what_the_earlier_left() -> None:
    wanted = options(threshold=0.0, blocks=(0, 2), strategy="clusters", score="knn")
    plan = decide(wanted)
    first, second = plan.blocks[0].tokens, plan.blocks[2].tokens
    assert second <= first < 17
    x = DENSE.embed(IMAGES)
    assert wanted.blocks is not None
    alone = wanted.model_copy(update={"blocks": wanted.blocks[:1]})
    slim = slim_by_selection(DENSE, decide(alone))
    x, sizes = slim.blocks[0](x, None)
    x, _ = slim.blocks[1](x, sizes)
    block = slim.blocks[2]
    unit = unit_features(block.features(block.attn.keys(block.norm1(x))))
    above = (redundancy(unit, Choice("clusters", "knn"), (4, 4)) > 0.0).sum(dim=1).sort().values
    assert second == max(2, first - int(above[2]))


@torch.no_grad()
def test_threshold_of_merged_pairs_is_the_similarity_of_pairs() -> None:
    patches = DENSE.patches(IMAGES)
    best = pair_similarity(patches - patches.mean(dim=1, keepdim=True)).amax(dim=2)
    plan = decide(options(threshold=0.5, strategy="merge"))
    expected = 17 - int((best > 0.5).sum(dim=1).sort().values[2])
    assert tokens(plan) == [expected] * 3
    assert plan.input == (None if expected == 17 else InputPlan(expected, None))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a list for one place": (
        {"tokens": (9, 8)},
        "tokens: expected 1 (one for each of blocks), got 2 numbers",
    ),
    "a number for two places": (
        {"tokens": 9, "blocks": (0, 1)},
        "tokens: expected a list of 2 (one for each of blocks), got 9",
    ),
    "no such block": ({"tokens": 9, "blocks": (3,)}, "blocks: expected block numbers 0..2, got 3"),
    "more than there are": (
        {"tokens": 18},
        "tokens: the input gets 17 tokens, 1 of them no patches; expected 2..17 to be left, got 18",
    ),
    "no patch left": ({"tokens": 1, "blocks": (0,)}, "tokens: blocks.0 gets 17 tokens, 1 of them no patches"),
    "more again than before": (
        {"tokens": (9, 12), "blocks": (0, 1)},
        "tokens: blocks.1 gets 9 tokens, 1 of them no patches; expected 2..9 to be left, got 12",
    ),
    "more than half merged": (
        {"tokens_drop": 0.6, "strategy": "merge"},
        "expected 9..17 to be left (one place merges at most half of its patches), got 7",
    ),
    "fewer than cells": (
        {"tokens": 4, "strategy": "cells"},
        "expected 5..17 to be left (each cell keeps one), got 4",
    ),
    "cells that do not fit": (
        {"tokens": 9, "strategy": "cells", "cell": 3},
        "cell: 4 x 4 patches do not divide into cells of 3 x 3. Use 2 or 4.",
    ),
    "cells twice": (
        {"tokens": (12, 9), "strategy": "cells", "blocks": (0, 1)},
        'blocks: strategy "cells" needs the whole grid of patches',
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_do_not_fit_are_refused(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(PlanError) as caught:
        decide(options(**given))
    assert message in str(caught.value)


def test_swin_is_refused_with_the_reason() -> None:
    model = toy_model(SWIN)
    with pytest.raises(PlanError, match="strategy: this model attends inside windows of a grid"):
        decide(options(tokens_drop=0.25), model, toy_plan(model, Counts()))


@pytest.mark.parametrize("strategy", ["drop", "cells"])
def test_dropping_for_a_mean_of_patches_is_refused_and_merging_is_not(strategy: str) -> None:
    model = toy_model(toy_arch("mean"))
    plan = toy_plan(model, Counts())
    with pytest.raises(PlanError, match=f'"{strategy}" is not for a model whose head reads the mean'):
        decide(options(tokens_drop=0.25, strategy=strategy), model, plan)
    for kind in ("clusters", "merge"):
        assert tokens(decide(options(tokens_drop=0.25, strategy=kind), model, plan)) == [13] * 3


@torch.no_grad()
def test_clusters_of_equal_patches_leave_the_mean_of_all_as_it_was() -> None:
    """Mean-pooled and all patches of two kinds: sizes weigh, so the pooled vector stays."""
    model = toy_model(dataclasses.replace(toy_arch("mean", prefix=0), norm="after-pool"))
    assert model.position is not None
    model.position.zero_()
    images = torch.ones(2, 3, 16, 16)
    images[:, :, :4, :8] = torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(0))
    plan = decide(options(tokens=3, strategy="clusters"), model, toy_plan(model, Counts()))
    slim = slim_by_selection(model, plan)
    kept = slim.input_reduction(slim.patches(images)).kept  # type: ignore[union-attr]
    both = ((kept < 8) & (kept % 4 < 2) & (kept // 4 == 0)).any(dim=1)
    assert both.all()
    torch.testing.assert_close(slim(images), model(images), rtol=1e-4, atol=1e-5)


def test_tokens_are_decided_once() -> None:
    with pytest.raises(PlanError, match="strategy: fewer tokens remain already"):
        decide(options(tokens_drop=0.25), plan=toy_plan(DENSE, Counts(tokens=[17, 12, 12])))
    slim = slim_by_selection(DENSE, decide(options(tokens_drop=0.25)))
    with pytest.raises(PlanError, match="strategy: fewer tokens remain already"):
        decide(options(tokens_drop=0.25), slim, toy_plan(slim, Counts()))


def test_last_block_with_dead_tokens_is_refused() -> None:
    plan = toy_plan(DENSE, Counts(), dead_tokens=True)
    with pytest.raises(PlanError, match=r"blocks: 2 is the last; with slim\.dead_tokens"):
        decide(options(tokens_drop=0.25, blocks=(2,)), plan=plan)
    assert tokens(decide(options(tokens_drop=0.25, blocks=(1,)), plan=plan)) == [17, 13, 13]


@torch.no_grad()
def test_slimming_a_slim_model_again_keeps_its_choice_of_patches() -> None:
    for blocks in (None, (0,)):
        wanted = options(tokens_drop=0.5, strategy="clusters", score="knn", blocks=blocks)
        slim = slim_by_selection(DENSE, decide(wanted))
        again = slim_by_selection(slim, toy_plan(slim, Counts()))
        assert again.arch == slim.arch
        assert torch.equal(again(IMAGES), slim(IMAGES))
