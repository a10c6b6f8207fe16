"""The published ToaSt schedules, as recipes: what remains and what it costs, from dims alone.

A recipe is in the static form; what it has in comments is the published one, in which fc1 is computed in full
to choose what fc2 reads, and reads fewer channels itself. Both are counted by `model_cost`.
"""

from __future__ import annotations

import dataclasses
import tomllib

import pytest
import torch

from edgevit.cost import model_cost
from edgevit.methods import CoupledDims, TokenChannels
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch, BlockDims, Window
from edgevit.models.layers import SlimViT
from edgevit.plan import BlockPlan, PerImage, Plan, keep_all
from edgevit.prune.coupled_dims import coupled_dims
from edgevit.prune.token_channels import token_channels
from edgevit.recipe import Recipe, load_recipe
from edgevit.shipped import shipped_names

NAMES = {name.removeprefix("toast-"): name for name in shipped_names("recipes") if name.startswith("toast-")}
PUBLISHED = {  # GMACs, from configs/tcs.json of the authors' code
    "deit-tiny-0.9": 0.801, "deit-tiny-0.8": 0.781, "deit-tiny-0.76": 0.714,
    "deit-small-2.9": 2.900, "deit-small-2.7": 2.656, "deit-small-2.5": 2.528,
    "deit-base-11.5": 11.454, "deit-base-10.7": 10.617, "deit-base-10.4": 10.385, "deit-base-10.27": 10.245,
    "mae-base-11.5": 11.454, "mae-base-11.0": 10.989, "mae-large-42.3": 42.180, "mae-large-38.5": 38.379,
    "mae-huge-103.4": 103.292, "mae-huge-101.4": 101.439, "mae-huge-100.4": 100.429,
    "swin-tiny-3.1": 2.937, "swin-small-5.4": 5.388, "swin-base-8.8": 8.810,
}  # fmt: skip
STATIC = {
    "deit-tiny-0.9": 0.786, "deit-tiny-0.8": 0.763, "deit-tiny-0.76": 0.647,
    "deit-small-2.9": 2.725, "deit-small-2.7": 2.237, "deit-small-2.5": 2.144,
    "deit-base-11.5": 10.849, "deit-base-10.7": 9.454, "deit-base-10.4": 8.711, "deit-base-10.27": 8.711,
    "mae-base-11.5": 10.849, "mae-base-11.0": 9.640, "mae-large-42.3": 41.684, "mae-large-38.5": 34.576,
    "mae-huge-103.4": 91.670, "mae-huge-101.4": 88.301, "mae-huge-100.4": 86.280,
    "swin-tiny-3.1": 2.706, "swin-small-5.4": 4.694, "swin-base-8.8": 6.836,
}  # fmt: skip
WIDTHS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16), "huge": (1280, 16)}
DEPTHS = {"large": 24, "huge": 32}


def vit(size: str, *, mean: bool) -> Arch:
    """Return the dims of DeiT, or of MAE fine-tuned with a mean-pooled head."""
    width, heads = WIDTHS[size]
    patch = 14 if size == "huge" else 16
    tokens = 1 + (224 // patch) ** 2
    block = BlockDims(heads, width // heads, width // heads, 4 * width, tokens, tokens, tokens, width)
    return Arch(
        image=(3, 224, 224), patch=(patch, patch), classes=1000, prefix=1, reads="mean" if mean else "class",
        norm="after-pool" if mean else "before-pool", pre_norm=False, norm_eps=1e-6, activation="gelu",
        qk_norm=False, qkv_bias=True, scale=0.125, blocks=(block,) * DEPTHS.get(size, 12),
    )  # fmt: skip


def swin(size: str) -> Arch:
    width, depths = 128 if size == "base" else 96, (2, 2, 6 if size == "tiny" else 18, 2)
    blocks = []
    for stage, depth in enumerate(depths):
        side, embed = 56 >> stage, width << stage
        tokens, window = side * side, Window((7, 7), (0, 0), (side, side))
        for index in range(depth):
            block = BlockDims(embed // 32, 32, 32, 4 * embed, tokens, tokens, tokens, embed, window)
            merged = embed // 2 if stage and not index else None
            blocks.append(dataclasses.replace(block, downsampled_from=merged))
    return dataclasses.replace(
        vit("tiny", mean=True), patch=(4, 4), prefix=0, position=False, pre_norm=True, blocks=tuple(blocks)
    )


def arch_of(short: str) -> Arch:
    family, size, _ = short.split("-")
    return swin(size) if family == "swin" else vit(size, mean=family == "mae")


def options_of(recipe: Recipe) -> tuple[CoupledDims, TokenChannels]:
    coupled, channels = recipe.methods
    assert isinstance(coupled, CoupledDims)
    assert isinstance(channels, TokenChannels)
    return coupled, channels


def published_options(short: str) -> TokenChannels:
    """Return the options of the recipe with the lines in which it says how it was published."""
    text = load_recipe(NAMES[short]).path.read_text()
    _, commented = text.split("# As published, each image chooses what fc2 reads")
    lines = [line.removeprefix("# ") for line in commented.splitlines()[1:]]
    _, channels = options_of(load_recipe(NAMES[short]).recipe)
    more = tomllib.loads("\n".join(lines))
    assert more["selection"] == "per-image"
    given = channels.model_dump(exclude_unset=True) | more
    return TokenChannels.model_validate(
        given | {key: tuple(value) for key, value in more.items() if isinstance(value, list)}
    )


def drops(values: object, arch: Arch) -> tuple[float, ...]:
    if values is None:
        return (0.0,) * len(arch.blocks)
    assert isinstance(values, tuple)
    assert len(values) == len(arch.blocks)
    return values


def left(width: int, drop: float) -> int:
    return int(width * (1 - drop) + 1e-9)


def scwp(arch: Arch) -> Plan:
    """Return the plan of 90 % everywhere but in the first block: 6 of 64 dims, 8 of 80, 3 of 32."""
    first, *others = keep_all(read_anatomy(arch)).blocks
    cut = [
        dataclasses.replace(block, qk_dim=left(block.qk_dim, 0.9), vo_dim=left(block.vo_dim, 0.9))
        for block in others
    ]
    return Plan((first, *cut))


def static_plan(arch: Arch, channels: TokenChannels) -> Plan:
    parts = zip(scwp(arch).blocks, drops(channels.hidden_drop, arch), strict=True)
    return Plan(tuple(dataclasses.replace(block, hidden=left(block.hidden, drop)) for block, drop in parts))


def published_plan(arch: Arch, channels: TokenChannels) -> Plan:
    def narrow(block: BlockPlan, dims: BlockDims, hidden: float, inputs: float) -> BlockPlan:
        how = PerImage(left(dims.hidden, hidden), "magnitude", channels.class_weight) if hidden else None
        read = left(dims.embed, inputs) if inputs else None
        return dataclasses.replace(block, per_image=how, mlp_inputs=read)

    shares = drops(channels.hidden_drop, arch), drops(channels.inputs_drop, arch)
    return Plan(tuple(map(narrow, scwp(arch).blocks, arch.blocks, *shares)))


def macs(arch: Arch, plan: Plan) -> int:
    return model_cost(slim_arch(arch, plan)).total.macs


def published_macs(arch: Arch, channels: TokenChannels) -> float:
    """Count as the authors do: shares as they are, not whole neurons, and a patch embedding of the prefix."""
    total: float = macs(arch, scwp(arch)) + arch.prefix * arch.embed * 3 * arch.patch[0] ** 2
    shares = drops(channels.hidden_drop, arch), drops(channels.inputs_drop, arch)
    for block, hidden, inputs in zip(arch.blocks, *shares, strict=True):
        total -= (hidden + inputs) * block.tokens_out * block.embed * block.hidden
    return total


def test_every_published_schedule_has_a_recipe() -> None:
    assert set(NAMES) == set(PUBLISHED) == set(STATIC)


@pytest.mark.parametrize("short", PUBLISHED)
def test_recipe_costs_what_its_head_and_the_paper_say(short: str) -> None:
    arch, recipe = arch_of(short), load_recipe(NAMES[short]).recipe
    _, channels = options_of(recipe)
    assert round(macs(arch, static_plan(arch, channels)) / 1e9, 3) == STATIC[short]
    assert f"so {STATIC[short]:.3f} remain" in _head(short)
    assert f"the paper counts {PUBLISHED[short]:.3f}." in _head(short)
    assert round(published_macs(arch, published_options(short)) / 1e9, 3) == PUBLISHED[short]


@pytest.mark.parametrize("short", PUBLISHED)
def test_published_form_of_a_recipe_is_what_the_paper_counts(short: str) -> None:
    """What differs: less than a neuron and a channel a block, and the class token, which is no patch."""
    arch, channels = arch_of(short), published_options(short)
    parts = sum(2 * block.tokens_out * block.hidden for block in arch.blocks)
    prefix = arch.prefix * arch.embed * 3 * arch.patch[0] ** 2
    assert 0 <= published_macs(arch, channels) - macs(arch, published_plan(arch, channels)) <= parts + prefix
    assert abs(macs(arch, published_plan(arch, channels)) / 1e9 / PUBLISHED[short] - 1) < 1e-3


@pytest.mark.parametrize("short", [short for short in PUBLISHED if "deit-tiny" in short])
def test_recipe_plans_what_is_counted(short: str) -> None:
    arch = arch_of(short)
    model = SlimViT(arch).eval()
    coupled, channels = options_of(load_recipe(NAMES[short]).recipe)
    attention = coupled_dims(model, keep_all(read_anatomy(arch)), coupled)
    assert [(b.qk_dim, b.vo_dim) for b in attention.blocks] == [(64, 64)] + 11 * [(6, 6)]
    images = [torch.zeros(1, 3, 224, 224)]
    for options, expected in (
        (channels, static_plan(arch, channels)),
        (published_options(short), published_plan(arch, published_options(short))),
    ):
        plan = token_channels(model, attention, options, images, lambda seen: None)
        assert slim_arch(arch, plan) == slim_arch(arch, expected)


@pytest.mark.parametrize("short", PUBLISHED)
def test_recipe_names_a_model_that_timm_has(short: str) -> None:
    import timm

    model = load_recipe(NAMES[short]).recipe.model
    assert timm.is_model(model.name)
    own = timm.get_pretrained_cfg(model.name)
    assert model.options.get("num_classes", own.num_classes if own else 0) == 1000
    assert (model.options.get("global_pool") == "avg") == short.startswith("mae")


def _head(short: str) -> str:
    text = load_recipe(NAMES[short]).path.read_text()
    return " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))


@pytest.mark.parametrize(("size", "expected"), [("tiny", 0.816), ("small", 3.143), ("base", 12.336)])
def test_weight_pruning_alone_costs_what_the_paper_counts(size: str, expected: float) -> None:
    arch = vit(size, mean=False)
    assert round(macs(arch, scwp(arch)) / 1e9, 3) == expected
