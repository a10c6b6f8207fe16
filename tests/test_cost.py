from __future__ import annotations

import dataclasses

import pytest
from torch.utils.flop_counter import FlopCounterMode
from toy_ccts import CCT_ARCH, TWO_CONVS, toy_cct
from toy_choosers import choosing_arch
from toy_dinos import toy_dino
from toy_swins import SWIN
from toy_vits import ARCH, fewer_tokens, noise_images, toy_arch, toy_model, toy_plan

from edgevit.cost import Cost, model_cost
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch, BlockDims, Window
from edgevit.models.from_cct import from_cct
from edgevit.plan import Choice, Counts, keep_all

FORMS: dict[str, Arch] = {
    "plain": ARCH,
    "distilled": toy_arch("class+distillation", prefix=2),
    "registers": toy_arch(prefix=5),
    "mean": dataclasses.replace(toy_arch("mean"), norm="after-pool"),
    "mean of all, no class token": dataclasses.replace(toy_arch("mean", prefix=0), norm="none"),
    "CLIP": dataclasses.replace(ARCH, pre_norm=True),
    "qk-norm": dataclasses.replace(ARCH, qk_norm=True),
    "qk-norm without bias": dataclasses.replace(ARCH, qk_norm=True, qkv_bias=False),
    "no qkv bias": dataclasses.replace(ARCH, qkv_bias=False),
    "gated": dataclasses.replace(ARCH, gated=True),
    "choosing": choosing_arch(inputs=9),
    "choosing, gated": choosing_arch(dataclasses.replace(ARCH, gated=True), inputs=9),
    "Swin": SWIN,
    "DINOv3": toy_dino().arch,
    "CCT": CCT_ARCH,
    "CCT with two convolutions": from_cct(toy_cct(TWO_CONVS, 32), "toy").arch,
    "grey and wide": dataclasses.replace(toy_arch(), image=(1, 8, 32), patch=(2, 8)),
}
PLANS: dict[str, tuple[Counts, bool]] = {
    "all": (Counts(), False),
    "dims": (Counts(heads=[3, 2, 1], vo_dim=[8, 3, 2], hidden=[40, 7, 30]), False),
    "dims of four blocks": (Counts(heads=[2, 1, 4, 3], qk_dim=[8, 5, 1, 8], hidden=[64, 9, 128, 11]), False),
    "heads": (Counts(heads=2, hidden=9), False),
    "QK": (Counts(qk_dim=[8, 5, 1]), False),
    "pairs": (Counts(heads=2, qk_dim=[8, 6, 2], hidden=9), False),
    "merges": (Counts(tokens=[14, 9, 9]), False),
    "dead": (Counts(), True),
    "merges and dead": (Counts(heads=2, hidden=16, tokens=[13, 10, 10]), True),
}


def _plan_for(arch: Arch) -> str:
    if any(block.per_image for block in arch.blocks):
        return "QK"
    if arch.blocks[0].window is not None:
        return "dims of four blocks"
    if arch.rotary:
        return "pairs"
    if arch.tokenizer is not None:
        return "heads" if len(arch.blocks) == 2 else "merges"
    return "merges" if arch.read_tokens is None else "merges and dead"


PAIRS = [("plain", plan) for plan in PLANS if plan != "dims of four blocks"]
PAIRS += [(form, _plan_for(arch)) for form, arch in FORMS.items() if form != "plain"]


@pytest.mark.parametrize(("form", "plan"), PAIRS)
def test_cost_from_dims_is_what_runs_and_what_is_stored(form: str, plan: str) -> None:
    counts, dead = PLANS[plan]
    arch = slim_arch(FORMS[form], toy_plan(toy_model(FORMS[form]), counts, dead_tokens=dead))
    model = toy_model(arch)
    with FlopCounterMode(display=False) as counter:
        model(noise_images(1, arch))
    total = model_cost(arch).total
    assert 2 * total.macs == counter.get_total_flops()
    assert total.params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_cost_of_parts_is_the_params_of_parts(form: str) -> None:
    arch = FORMS[form]
    model, cost = toy_model(arch), model_cost(arch)
    for block, part in zip(model.blocks, cost.blocks, strict=True):
        assert part.params == sum(parameter.numel() for parameter in block.parameters())
    parts = ("head", "norm.", "sequence_pool")
    outside = [name for name, _ in model.named_parameters() if name.startswith(parts)]
    assert cost.head.params == sum(model.get_parameter(name).numel() for name in outside)


def _deit(width: int, heads: int) -> Arch:
    block = BlockDims(heads, 64, 64, 4 * width, tokens_in=197, tokens_out=197, queries=197, embed=width)
    return dataclasses.replace(ARCH, image=(3, 224, 224), patch=(16, 16), classes=1000, blocks=(block,) * 12)


@pytest.mark.parametrize(
    ("width", "heads", "gmacs", "published"),
    [(192, 3, 1.254, 5_717_416), (384, 6, 4.599, 22_050_664), (768, 12, 17.564, 86_567_656)],
)
def test_cost_of_deit_is_that_of_the_literature(width: int, heads: int, gmacs: float, published: int) -> None:
    total = model_cost(_deit(width, heads)).total
    assert round(total.macs / 1e9, 3) == gmacs
    folded = (2 * 12 + 1) * width  # key and value biases of 12 blocks, and the class token's position
    assert total.params == published - folded


def _swin(width: int, depths: tuple[int, ...]) -> Arch:
    blocks = []
    for stage, depth in enumerate(depths):
        grid, embed = 56 // 2**stage, width * 2**stage
        for index in range(depth):
            shift = 3 if index % 2 and grid > 7 else 0
            block = BlockDims(embed // 32, 32, 32, 4 * embed, grid**2, grid**2, grid**2, embed)
            window = Window((7, 7), (shift, shift), (grid, grid))
            merged = embed // 2 if stage and not index else None
            blocks.append(dataclasses.replace(block, window=window, downsampled_from=merged))
    image = dataclasses.replace(ARCH, image=(3, 224, 224), patch=(4, 4), classes=1000, prefix=0)
    return dataclasses.replace(image, reads="mean", pre_norm=True, position=False, blocks=tuple(blocks))


@pytest.mark.parametrize(
    ("width", "depth", "gmacs", "published"),
    [(96, 6, 4.491, 28_288_354), (96, 18, 8.741, 49_606_258), (128, 18, 15.431, 87_768_224)],
)
def test_cost_of_swin_is_that_of_the_literature(width: int, depth: int, gmacs: float, published: int) -> None:
    arch = _swin(width, (2, 2, depth, 2))
    total = model_cost(arch).total
    assert round(total.macs / 1e9, 3) == gmacs
    folded = sum(2 * block.embed for block in arch.blocks)  # key and value biases
    tables = sum(block.heads * (49**2 - 13**2) for block in arch.blocks)  # written out for each pair
    assert total.params == published - folded + tables


@pytest.mark.parametrize(
    ("width", "heads", "patches", "gmacs"),
    [
        (384, 6, 176, 4.11),
        (384, 6, 156, 3.62),
        (384, 6, 137, 3.16),
        (384, 6, 118, 2.72),
        (384, 6, 98, 2.25),
        (192, 3, 137, 0.85),
        (192, 3, 98, 0.60),
        (768, 12, 176, 15.73),
        (768, 12, 98, 8.71),
    ],
)
def test_cost_of_patches_dropped_before_the_first_block(
    width: int, heads: int, patches: int, gmacs: float
) -> None:
    dense = _deit(width, heads)
    plan = fewer_tokens(keep_all(read_anatomy(dense)), None, patches + 1, Choice("drop"))
    assert round(model_cost(slim_arch(dense, plan)).total.macs / 1e9, 2) == gmacs


@pytest.mark.parametrize(
    "choice",
    [
        None,
        Choice("drop"),
        Choice("cells", "knn"),
        Choice("clusters"),
        Choice("clusters", "count"),
        Choice("drop", "knn"),
    ],
)
@pytest.mark.parametrize("place", [None, 0])
def test_cost_of_fewer_tokens_is_what_runs(choice: Choice | None, place: int | None) -> None:
    arch = slim_arch(ARCH, fewer_tokens(keep_all(read_anatomy(ARCH)), place, 11, choice))
    assert arch.merged == (6 if place is None else 0)
    with FlopCounterMode(display=False) as counter:
        toy_model(arch)(noise_images(1, arch))
    assert 2 * model_cost(arch).total.macs == counter.get_total_flops()


def test_costs_add_up() -> None:
    cost = model_cost(ARCH)
    assert cost.total.macs == cost.stem.macs + sum(block.macs for block in cost.blocks) + cost.head.macs
    assert Cost(1, 2) + Cost(10, 20) == Cost(11, 22)
    assert Cost(macs=0, params=3).bytes == 12


def test_cutting_a_kind_makes_its_block_alone_cheaper() -> None:
    dense = model_cost(ARCH).blocks
    cut = model_cost(slim_arch(ARCH, toy_plan(toy_model(), Counts(hidden=[40, 20, 40])))).blocks
    assert (dense[0], dense[2]) == (cut[0], cut[2])
    assert dense[1].macs - cut[1].macs == 2 * 17 * 24 * 20
