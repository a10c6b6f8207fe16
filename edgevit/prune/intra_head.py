"""Pruning inside heads (IHP-style): which QK dims, VO dims and neurons stay.

Scores are norms of the weights that go together, those of row gates (`tune/row_gates.py`) folded in: a gate
near 0 makes a score near 0.
Shapes: H kept heads, K dims per head, F hidden neurons.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edgevit.cost import model_cost
from edgevit.errors import PlanError
from edgevit.methods import IntraHead
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch
from edgevit.models.group_scores import Scores, head_norms
from edgevit.models.layers import SlimViT
from edgevit.models.relations import read_relations
from edgevit.models.rotary import best_pairs, pair_scores
from edgevit.plan import BlockPlan, Indices, Kept, Plan
from edgevit.prune.channel_choice import channels_kept
from edgevit.prune.counts import aligned, smallest
from edgevit.prune.policies import aligned_count, deletable_units, zero_dims
from edgevit.prune.rank import highest
from edgevit.prune.schedule import Schedule, keep_counts

_Part = Literal["qk", "vo", "hidden"]
_LEAST_DIMS, _LEAST_NEURONS = 8, 32
"""What a MAC budget leaves at least, in each head and in each block."""
_FLOORS: dict[_Part, int] = {"qk": _LEAST_DIMS, "vo": _LEAST_DIMS, "hidden": _LEAST_NEURONS}


@dataclass(frozen=True)
class BlockGroup:
    """One group of one block: what can go there, and what it is worth."""

    block: int
    part: _Part
    scores: Tensor
    """Float64 [H, K] or [1, F]; 0 for what earlier methods cut."""
    most: int
    """Dims per head, or neurons, that there are to keep."""
    turned: bool = False
    """Whether dims go in pairs, the same in all heads (rotary positions)."""

    def align(self, multiple: int) -> int:
        """Return of what a count that is to be a multiple has to be one here."""
        return math.lcm(multiple, 2) if self.turned else multiple

    def sets(self, count: int) -> tuple[Indices, ...]:
        """Return the `count` units that stay of each head, those of the highest scores."""
        if self.turned:
            return (tuple(best_pairs(self.scores, count).tolist()),) * len(self.scores)
        return tuple(tuple(row) for row in highest(self.scores, count).tolist())


def intra_head(model: SlimViT, plan: Plan, options: IntraHead, scores: Scores) -> Plan:
    """Choose the QK and VO dims and the neurons that stay; each head of a block keeps as many dims.

    A model whose QK dims cannot be cut (qk-norm) keeps them, and a block whose neurons each image chooses
    keeps those; the rest is cut. Where positions turn pairs of QK dims (rotary), pairs go, the same in all
    heads.

    Args:
        model: the model that is slimmed; its weights name heads, channels and zeros, its dims count MACs.
        plan: what remains so far. Where it cuts heads without naming them, those of the largest norms are
            taken, as plain selection would, and named.
        options: how much goes: MACs, shares, or only what is exactly zero.
        scores: what each unit is worth, "blocks.N.qk" [H, K], "blocks.N.vo" [H, V], "blocks.N.hidden" [F].

    Returns:
        The plan with counts and indices of what was cut; what stays whole gets no indices.

    Raises:
        PlanError: a share that this model cannot take, or a budget that no plan reaches.

    Reference: Zhang et al. 2025, Neural Networks 190, 107656 (IHP).
    Differs: rebuilt from its abstract; scores, normalisation and budget are this project's own.
    """
    heads = [_heads(model, index, block) for index, block in enumerate(plan.blocks)]
    if options.embed_drop is not None:
        plan = _cut_channels(model, plan, options)
    groups = _groups(model.arch, plan, heads, scores)
    if options.macs is not None:
        counts = _within_budget(model, plan, groups, options)
    elif options.zeros:
        counts = _without_zeros(model, groups, heads, options.align)
    else:
        counts = _by_shares(model, plan, groups, options)
    return _write(_name_heads(model, plan, heads), groups, counts)


def _name_heads(model: SlimViT, plan: Plan, heads: Sequence[Tensor]) -> Plan:
    """Name the heads that stay where some go, so that dims can be named by head."""
    blocks = [
        dataclasses.replace(block, kept=dataclasses.replace(block.kept, heads=tuple(kept.tolist())))
        if block.heads < full.attn.heads
        else block
        for full, block, kept in zip(model.blocks, plan.blocks, heads, strict=True)
    ]
    return dataclasses.replace(plan, blocks=tuple(blocks))


def _heads(model: SlimViT, index: int, block: BlockPlan) -> Tensor:
    """Return the heads of a block that stay, int64 [H]."""
    if block.kept.heads is not None:
        return torch.tensor(block.kept.heads)
    return highest(head_norms(model.blocks[index].attn), block.heads)


def _cut_channels(model: SlimViT, plan: Plan, options: IntraHead) -> Plan:
    assert options.embed_drop is not None
    if plan.channels is not None or any(block.full is not None for block in model.arch.blocks):
        raise PlanError("embed_drop: channels of this model's stream were cut already. Take this key out.")
    if any(block.mlp_inputs is not None for block in plan.blocks):
        raise PlanError(
            "embed_drop: an MLP of this model reads only some channels of the stream, and a stream that lacks"
            " channels needs it to read all that are left. Make one of the two cuts."
        )
    return dataclasses.replace(plan, channels=channels_kept(model, options.embed_drop, options.align))


def _groups(arch: Arch, plan: Plan, heads: Sequence[Tensor], scores: Scores) -> list[BlockGroup]:
    qk_stays, turned = "qk_dim" in read_anatomy(arch).refused, arch.rotary
    groups = []
    for index, (block, kept) in enumerate(zip(plan.blocks, heads, strict=True)):
        qk, vo, hidden = (scores[f"blocks.{index}.{part}"].double() for part in ("qk", "vo", "hidden"))
        if not qk_stays:
            groups.append(BlockGroup(index, "qk", _left(qk[kept], block.kept.qk), block.qk_dim, turned))
        groups.append(BlockGroup(index, "vo", _left(vo[kept], block.kept.vo), block.vo_dim))
        if block.per_image is None:  # else each image chooses among all of them
            before = None if block.kept.hidden is None else (block.kept.hidden,)
            groups.append(BlockGroup(index, "hidden", _left(hidden.unsqueeze(0), before), block.hidden))
    return groups


def _left(scores: Tensor, kept: Sequence[Indices] | None) -> Tensor:
    """Return the scores with 0 for what an earlier method cut."""
    if kept is None:
        return scores
    left = torch.zeros_like(scores)
    for row, scored, dims in zip(left, scores, kept, strict=True):
        row[list(dims)] = scored[list(dims)]
    return left


def worth(group: BlockGroup) -> Tensor:
    """Return what the best, second best ... unit of a head is worth, the mean over heads, float64 [most].

    In units of the group's mean: layers differ in the size of their weights more than in what they matter.
    """
    scores = group.scores
    if group.turned:  # both dims of a pair are worth half of what it is in all heads
        scores = pair_scores(scores).repeat_interleave(2).unsqueeze(0) / (2 * len(scores))
    ranked = scores.sort(dim=1, descending=True).values[:, : group.most].mean(dim=0)
    return ranked / ranked.mean().clamp_min(torch.finfo(ranked.dtype).tiny)


@dataclass(frozen=True)
class _Step:
    """Some more units that a group may keep, all heads alike."""

    group: int
    count: int
    """What the group keeps with this step."""
    value: float
    """What one of the new units is worth, the mean."""


def _within_budget(model: SlimViT, plan: Plan, groups: Sequence[BlockGroup], options: IntraHead) -> list[int]:
    """Keep the units above one threshold for all groups, as low as the MACs allow, and fill up the rest."""
    assert options.macs is not None
    allowed = options.macs * model_cost(model.arch).total.macs
    counts = [aligned(_FLOORS[group.part], group.align(options.align), group.most) for group in groups]

    def macs(steps: Sequence[_Step]) -> int:
        kept = list(counts)
        for step in steps:  # of one group they stand in rising order
            kept[step.group] = step.count
        return model_cost(slim_arch(model.arch, _with_counts(plan, groups, kept))).total.macs

    if macs([]) > allowed:
        raise PlanError(_unreachable(model, options.macs, macs([])))
    steps = sorted(_steps(groups, counts, options.align), key=lambda step: -step.value)
    fit = smallest(len(steps), lambda count: macs(steps[: count + 1]) > allowed)
    taken, closed = steps[:fit], set[int]()
    for step in steps[fit:]:
        if step.group not in closed and macs([*taken, step]) <= allowed:
            taken.append(step)
        else:
            closed.add(step.group)
    for step in taken:
        counts[step.group] = step.count
    return counts


def _steps(groups: Sequence[BlockGroup], start: Sequence[int], align: int) -> Iterator[_Step]:
    for index, (group, first) in enumerate(zip(groups, start, strict=True)):
        value, step = worth(group), group.align(align)
        for below in range(first, group.most, step):
            count = min(group.most, below + step)
            yield _Step(index, count, float(value[below:count].mean()))


def _unreachable(model: SlimViT, wanted: float, least: int) -> str:
    dense = model_cost(model.arch).total.macs
    reachable = math.ceil(1000 * least / dense) / 1000
    kept = read_anatomy(model.arch).refused.get("qk_dim")
    return (
        f"macs: no plan reaches {wanted:g} of the dense model's {dense:,}: with {_LEAST_DIMS} dims in each"
        f" head and {_LEAST_NEURONS} neurons in each block {reachable:g} are left ({least:,}). Give that or"
        " more, or cut heads or tokens, too." + (f" QK is whole: {kept}" if kept else "")
    )


def _without_zeros(
    model: SlimViT, groups: Sequence[BlockGroup], heads: Sequence[Tensor], align: int
) -> list[int]:
    """Keep in each group as many as its fullest head needs, so that no output changes."""
    relations = read_relations(model.arch)
    counts = []
    for group in groups:
        related = relations.group_of(f"blocks.{group.block}.{group.part}")
        live = deletable_units(related, zero_dims(model, related)).logical_not().view(related.parts, -1)
        if group.turned:
            live = live.repeat(1, 2)  # a unit is a pair, in all heads
        elif group.part != "hidden":
            live = live[heads[group.block]]
        counts.append(min(group.most, aligned_count(live & (group.scores > 0), group.align(align))))
    return counts


def _by_shares(model: SlimViT, plan: Plan, groups: Sequence[BlockGroup], options: IntraHead) -> list[int]:
    for index, block in enumerate(plan.blocks):
        if options.hidden_drop is not None and block.per_image is not None:
            raise PlanError(
                f"hidden_drop: blocks.{index}: each image chooses which neurons it uses there. Cut them for"
                " all images, or for each."
            )
    given: dict[_Part, Schedule] = {
        "qk": Schedule("qk_dim", "qk_drop", None, options.qk_drop, False, options.align),
        "vo": Schedule("vo_dim", "vo_drop", None, options.vo_drop, False, options.align),
        "hidden": Schedule("hidden", "hidden_drop", None, options.hidden_drop, False, options.align),
    }
    kept = dict(zip(given, keep_counts(read_anatomy(model.arch), list(given.values())), strict=True))
    return [min(group.most, kept[group.part][group.block]) for group in groups]


def _with_counts(plan: Plan, groups: Sequence[BlockGroup], counts: Sequence[int]) -> Plan:
    """Return the plan with counts alone, for its cost."""
    blocks = list(plan.blocks)
    for group, count in zip(groups, counts, strict=True):
        blocks[group.block] = _with_count(blocks[group.block], group.part, count)
    return dataclasses.replace(plan, blocks=tuple(blocks))


def _with_count(block: BlockPlan, part: _Part, count: int) -> BlockPlan:
    match part:
        case "qk":
            return dataclasses.replace(block, qk_dim=count)
        case "vo":
            return dataclasses.replace(block, vo_dim=count)
        case "hidden":
            return dataclasses.replace(block, hidden=count)


def _write(plan: Plan, groups: Sequence[BlockGroup], counts: Sequence[int]) -> Plan:
    """Return the plan with counts and indices of what was cut."""
    blocks = list(_with_counts(plan, groups, counts).blocks)
    for group, count in zip(groups, counts, strict=True):
        if count == group.most:
            continue
        block = blocks[group.block]
        kept = _keep(block.kept, group.part, group.sets(count))
        blocks[group.block] = dataclasses.replace(block, kept=kept)
    return dataclasses.replace(plan, blocks=tuple(blocks))


def _keep(kept: Kept, part: _Part, sets: tuple[Indices, ...]) -> Kept:
    match part:
        case "qk":
            return dataclasses.replace(kept, qk=sets)
        case "vo":
            return dataclasses.replace(kept, vo=sets)
        case "hidden":
            return dataclasses.replace(kept, hidden=sets[0])
