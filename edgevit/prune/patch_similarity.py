"""Patch similarity: in which places patches that resemble others go, and how many.

Which patches go is decided in the graph, for each image by itself; a plan has only their number.
Shapes: B images of a batch, n patches, P prefix tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from edgevit.errors import PlanError
from edgevit.methods import PatchSimilarity
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch
from edgevit.models.layers import SlimViT
from edgevit.models.observe import SeenImages
from edgevit.models.reduction import pair_similarity, redundancy, unit_features
from edgevit.plan import BlockPlan, Choice, InputPlan, Plan, fewest_merged, keep_all
from edgevit.prune.counts import aligned, part, remaining

_OUTSIDE = 0.1  # share of the images on which a threshold need not hold


def patch_similarity(
    model: SlimViT,
    plan: Plan,
    options: PatchSimilarity,
    batches: Callable[[], Iterable[Tensor]],
    report: SeenImages,
) -> Plan:
    """Let fewer tokens enter the first block, or leave the attention of some.

    Args:
        model: the dense model.
        plan: what remains so far; tokens are decided here alone.
        options: where and how many patches go, and how they are chosen.
        batches: gives calibration images, float32 [B, C, H, W], anew for each place; only read for a
            threshold.
        report: called with the number of images seen so far in a place.

    Returns:
        The plan with the tokens that remain; a place where none would go is left out.

    Raises:
        PlanError: a cut that this model cannot take, or counts that do not fit.

    Reference: Preprints.org 202504.0596 (its outline): patches of the highest mean cosine similarity go, once
        before the first block or after several, by a threshold or a number.
    Differs: the number is a constant of the model, so that shapes are; a threshold is turned into one on
        calibration images. What else is ours stands in docs/methods.md.
    """
    places = (None,) if options.blocks is None else options.blocks
    _refuse(model.arch, plan, options)
    choice = None
    if options.strategy != "merge":
        choice = Choice(options.strategy, options.score, options.similar, options.cell)
    tokens_alone = keep_all(read_anatomy(model.arch))  # weights fit as they are, whatever else the plan cuts
    left = model.arch.tokens
    for index, block in enumerate(places):
        place = _Place(model.arch, block, left, choice)
        if options.threshold is None:
            count = _counted(place, options, index)
        else:
            sofar = SlimViT(slim_arch(model.arch, tokens_alone)).eval().requires_grad_(False)
            sofar.load_state_dict(model.state_dict())
            count = _calibrated(sofar, place, options, batches(), report)
        if count < left:
            tokens_alone, plan = _reduce(tokens_alone, place, count), _reduce(plan, place, count)
        left = count
    return plan


@dataclass(frozen=True)
class _Place:
    """Where patches go: behind the attention of a block, or before the first one (None)."""

    arch: Arch
    block: int | None
    entering: int  # tokens, prefix included
    choice: Choice | None

    @property
    def name(self) -> str:
        return "the input" if self.block is None else f"blocks.{self.block}"

    @property
    def least(self) -> int:
        """Return the fewest tokens that can be left here."""
        if self.choice is None:
            return fewest_merged(self.entering, self.arch.prefix)
        cells = math.prod(self.arch.grid) // self.choice.cell**2
        return self.arch.prefix + (cells if self.choice.strategy == "cells" else 1)


def _refuse(arch: Arch, plan: Plan, options: PatchSimilarity) -> None:
    """Raise what this model or plan cannot take, whatever the counts are."""
    anatomy, last = read_anatomy(arch), len(arch.blocks) - 1
    blocks = options.blocks or ()
    if "tokens" in anatomy.refused:
        raise PlanError(f"strategy: {anatomy.refused['tokens']}")
    if plan.input is not None or any(count != arch.tokens for count in _tokens(arch, plan)):
        raise PlanError(
            "strategy: fewer tokens remain already, by the model or by the plan so far. Decide tokens once: "
            "take this method out, or start from the dense model and without tokens in [plan]."
        )
    if options.strategy in ("drop", "cells") and arch.reads in ("mean", "mean+prefix"):
        raise PlanError(
            f'strategy: "{options.strategy}" is not for a model whose head reads the mean of all patches, as '
            'the redundant ones would be missing. Say "clusters" or "merge", which weigh what they merge.'
        )
    if blocks and blocks[-1] > last:
        raise PlanError(f"blocks: expected block numbers 0..{last}, got {blocks[-1]}.")
    if plan.dead_tokens and last in blocks:
        raise PlanError(
            f"blocks: {last} is the last; with slim.dead_tokens only the tokens that the head reads leave "
            "it. Take it out."
        )
    if options.strategy == "cells":
        _refuse_cells(arch, options)


def _tokens(arch: Arch, plan: Plan) -> Iterator[int]:
    yield from (block.tokens_in for block in arch.blocks)
    yield from (block.tokens for block in plan.blocks)


def _refuse_cells(arch: Arch, options: PatchSimilarity) -> None:
    rows, columns = arch.grid
    if options.blocks is not None and len(options.blocks) > 1:
        raise PlanError(
            'blocks: strategy "cells" needs the whole grid of patches, which is there once. Give one block.'
        )
    if rows % options.cell or columns % options.cell:
        common = math.gcd(rows, columns)
        fit = [str(side) for side in range(2, common + 1) if common % side == 0]
        remedy = f"Use {' or '.join(fit)}." if fit else 'Use strategy = "drop" or "clusters".'
        raise PlanError(
            f"cell: {rows} x {columns} patches do not divide into cells of {options.cell} x {options.cell}. "
            f"{remedy}"
        )


def _counted(place: _Place, options: PatchSimilarity, index: int) -> int:
    """Return how many tokens are left by a count or a share."""
    key = "tokens_drop" if options.tokens is None else "tokens"
    given = options.tokens_drop if options.tokens is None else options.tokens
    places = 1 if options.blocks is None else len(options.blocks)
    if isinstance(given, tuple):
        if len(given) != places:
            raise PlanError(f"{key}: expected {places} (one for each of blocks), got {len(given)} numbers.")
        given = given[index]
    elif key == "tokens" and places > 1:
        raise PlanError(f"tokens: expected a list of {places} (one for each of blocks), got {given}.")
    assert given is not None
    count = int(given) if key == "tokens" else _share(place, given, options.align)
    if not place.least <= count <= place.entering:
        raise PlanError(
            f"{key}: {place.name} gets {place.entering} tokens, {place.arch.prefix} of them no patches; "
            f"expected {place.least}..{place.entering} to be left{_why(place)}, got {count}."
        )
    return count


def _why(place: _Place) -> str:
    if place.choice is None:
        return " (one place merges at most half of its patches)"
    return " (each cell keeps one)" if place.choice.strategy == "cells" else ""


def _share(place: _Place, drop: float, align: int) -> int:
    patches = place.entering - place.arch.prefix
    return aligned(place.arch.prefix + remaining(patches, drop), align, place.entering)


@torch.no_grad()
def _calibrated(
    model: SlimViT, place: _Place, options: PatchSimilarity, batches: Iterable[Tensor], report: SeenImages
) -> int:
    """Return the fewest tokens with which the threshold holds: all that go are above it on 9 of 10 images."""
    assert options.threshold is not None
    above: list[int] = []
    for images in batches:
        scores = _scores(place, _features(model, place.block, images))
        above += (scores > options.threshold).sum(dim=1).tolist()
        report(len(above))
    removed = sorted(above)[part(len(above), _OUTSIDE)]
    return aligned(max(place.least, place.entering - removed), options.align, place.entering)


def _features(model: SlimViT, block: int | None, images: Tensor) -> Tensor:
    """Return what patches are compared by in a place, [B, n, E]."""
    if block is None:
        patches = model.patches(images)
        return patches - patches.mean(dim=1, keepdim=True)
    x, sizes = model.enter(images)
    for earlier in model.blocks[:block]:
        x, sizes = earlier(x, sizes)
    here = model.blocks[block]
    return here.features(here.attn.keys(here.norm1(x)))


def _scores(place: _Place, features: Tensor) -> Tensor:
    """Return what is compared with a threshold: of each patch, or of each pair that could be merged."""
    if place.choice is None:
        return pair_similarity(features).amax(dim=-1)
    return redundancy(unit_features(features), place.choice, place.arch.grid)


def _reduce(plan: Plan, place: _Place, count: int) -> Plan:
    """Return the plan with `count` tokens from this place on."""
    first = 0 if place.block is None else place.block
    blocks: list[BlockPlan] = []
    for index, block in enumerate(plan.blocks):
        choice = place.choice if index == place.block else block.choice
        tokens = count if index >= first else block.tokens
        blocks.append(dataclasses.replace(block, tokens=tokens, choice=choice))
    entering = InputPlan(count, place.choice) if place.block is None else plan.input
    return dataclasses.replace(plan, blocks=tuple(blocks), input=entering)
