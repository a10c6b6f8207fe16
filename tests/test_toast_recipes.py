"""The published ToaSt schedules, as recipes: what remains and what it costs, from dims alone.

The paper computes fc1 in full and leaves out what its second product does not need, and it cuts fc1's input
channels as well: those savings are a formula below and no plan. All else is counted by `model_cost`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from edgevit.cost import model_cost
from edgevit.methods import CoupledDims, TokenChannels
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch, BlockDims
from edgevit.models.layers import SlimViT
from edgevit.plan import Plan, keep_all
from edgevit.prune.coupled_dims import coupled_dims
from edgevit.prune.token_channels import token_channels
from edgevit.recipe import Recipe, load_recipe
from edgevit.shipped import shipped_names

NAMES = [name for name in shipped_names("recipes") if name.startswith("toast-")]
WIDTHS = {"deit_tiny_patch16_224": 192, "deit_small_patch16_224": 384, "deit_base_patch16_224": 768}
FC1 = {  # share of fc1's input channels that the paper drops in the last blocks
    "tiny-0.9": (), "tiny-0.8": (0.3,), "tiny-0.76": (0.3, 0.3),
    "small-2.9": (0.3,), "small-2.7": (0.3,), "small-2.5": (0.5, 0.5),
    "base-11.5": (0.3,), "base-10.7": (0.3, 0.3), "base-10.4": (0.3,),
}  # fmt: skip
PUBLISHED = {
    "tiny-0.9": 0.801, "tiny-0.8": 0.781, "tiny-0.76": 0.714,
    "small-2.9": 2.900, "small-2.7": 2.656, "small-2.5": 2.528,
    "base-11.5": 11.454, "base-10.7": 10.617, "base-10.4": 10.385,
}  # fmt: skip
STATIC = {
    "tiny-0.9": 0.786, "tiny-0.8": 0.763, "tiny-0.76": 0.647,
    "small-2.9": 2.725, "small-2.7": 2.237, "small-2.5": 2.144,
    "base-11.5": 10.849, "base-10.7": 9.454, "base-10.4": 8.711,
}  # fmt: skip


def deit(width: int) -> Arch:
    block = BlockDims(width // 64, 64, 64, 4 * width, 197, 197, 197, width)
    return Arch(
        image=(3, 224, 224), patch=(16, 16), classes=1000, prefix=1, reads="class",
        norm="before-pool", pre_norm=False, norm_eps=1e-6, activation="gelu", qk_norm=False, qkv_bias=True,
        scale=0.125, blocks=(block,) * 12,
    )  # fmt: skip


def options_of(recipe: Recipe) -> tuple[CoupledDims, TokenChannels]:
    coupled, channels = recipe.methods
    assert isinstance(coupled, CoupledDims)
    assert isinstance(channels, TokenChannels)
    return coupled, channels


def plan_of(recipe: Recipe, arch: Arch, batches: Iterator[torch.Tensor]) -> Plan:
    """Let a recipe's methods decide for random weights."""
    model = SlimViT(arch).eval()
    coupled, channels = options_of(recipe)
    plan = coupled_dims(model, keep_all(read_anatomy(arch)), coupled)
    return token_channels(model, plan, channels, batches, lambda seen: None)


def gmacs(arch: Arch, plan: Plan) -> float:
    return model_cost(slim_arch(arch, plan)).total.macs / 1e9


def test_every_published_schedule_for_deit_has_a_recipe() -> None:
    assert {name.removeprefix("toast-deit-") for name in NAMES} == set(PUBLISHED) == set(STATIC) == set(FC1)


@pytest.mark.parametrize("name", [name for name in NAMES if "tiny" in name])
def test_recipe_plans_what_its_head_says(name: str) -> None:
    recipe = load_recipe(name).recipe
    arch = deit(WIDTHS[recipe.model.name])
    plan = plan_of(recipe, arch, iter([torch.zeros(1, 3, 224, 224)]))
    assert [(b.qk_dim, b.vo_dim) for b in plan.blocks] == [(64, 64)] + 11 * [(6, 6)]
    assert round(gmacs(arch, plan), 3) == STATIC[name.removeprefix("toast-deit-")]


@pytest.mark.parametrize("name", NAMES)
def test_recipe_costs_what_its_head_and_the_paper_say(name: str) -> None:
    recipe = load_recipe(name).recipe
    short = name.removeprefix("toast-deit-")
    arch = deit(WIDTHS[recipe.model.name])
    _, channels = options_of(recipe)
    assert isinstance(channels.hidden_drop, tuple)
    scwp = _scwp(arch)
    hidden = [
        int(block.hidden * (1 - drop) + 1e-9)
        for block, drop in zip(arch.blocks, channels.hidden_drop, strict=True)
    ]
    blocks = zip(scwp.blocks, hidden, strict=True)
    static = Plan(tuple(dataclasses.replace(block, hidden=count) for block, count in blocks))
    assert round(gmacs(arch, static), 3) == STATIC[short]
    assert f"so {STATIC[short]:.3f} remain" in _head(name)
    assert f"the paper counts {PUBLISHED[short]:.3f}." in _head(name)
    product = 197 * arch.embed * 4 * arch.embed / 1e9  # one of the two of an MLP
    one_patch = arch.embed * 3 * 16 * 16 / 1e9  # the paper counts the patch embedding for 197 tokens
    paper = gmacs(arch, scwp) + one_patch - product * (sum(channels.hidden_drop) + sum(FC1[short]))
    assert paper == pytest.approx(PUBLISHED[short], abs=6e-4)


def _scwp(arch: Arch) -> Plan:
    """Return the plan of 90 % everywhere but in the first block: 6 of 64 dims."""
    first, *others = keep_all(read_anatomy(arch)).blocks
    return Plan((first, *(dataclasses.replace(block, qk_dim=6, vo_dim=6) for block in others)))


def _head(name: str) -> str:
    text = load_recipe(name).path.read_text()
    return " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))


@pytest.mark.parametrize(("width", "expected"), [(192, 0.816), (384, 3.143), (768, 12.336)])
def test_weight_pruning_alone_costs_what_the_paper_counts(width: int, expected: float) -> None:
    arch = deit(width)
    if width == 192:
        options = CoupledDims(method="coupled-dims", qk_drop=0.9, vo_drop=0.9)
        plan = coupled_dims(SlimViT(arch), keep_all(read_anatomy(arch)), options)
        assert gmacs(arch, plan) == gmacs(arch, _scwp(arch))
    assert round(gmacs(arch, _scwp(arch)), 3) == expected
