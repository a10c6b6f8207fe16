"""Heads and hidden neurons by their learnt gates, compared over all blocks at once: scores in, plan out.

The smallest |gate| goes first: the sign of a gate can be folded away, so it says nothing about its worth. Of
equal gates the first stay. Every block keeps a head and a neuron (or `align` neurons), those of its largest
gates: a block without any would be another network, which no plan can say.
H heads of a block, F hidden neurons of a block, n parts of one kind in the whole model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from edgevit.cost import block_cost, model_cost
from edgevit.errors import PlanError
from edgevit.methods import EffiSelect
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch
from edgevit.models.group_scores import Scores
from edgevit.plan import BlockPlan, Indices, Kind, Plan
from edgevit.prune.counts import aligned, part, smallest
from edgevit.prune.rank import highest


def effiselect(arch: Arch, plan: Plan, options: EffiSelect, scores: Scores) -> Plan:
    """Choose the heads and hidden neurons that stay.

    Args:
        arch: dims of the dense model.
        plan: what remains so far.
        options: shares that go, or the MACs that may remain.
        scores: gates, "blocks.N.heads" [H] and "blocks.N.hidden" [F], for what is decided.

    Returns:
        The plan with counts and indices of what was cut; a block that keeps all gets no indices.

    Raises:
        PlanError: shares or a budget that no plan can meet, or a cut that this model cannot take.

    Reference: Huang et al. 2025, EffiSelecViT, CVIU 254:104326, and its code.
    Differs: |gate| in place of the signed gate; the share is removed exactly, whatever ties there are; no
        block loses all; parts are removed rather than masked. The budget is ours: the code has shares alone.
    """
    refused = read_anatomy(arch).refused
    ranked = _ranked(arch, options, scores)
    for kind in ranked:
        if kind in refused:
            option = "macs" if options.macs is not None else f"{kind}_drop"
            raise PlanError(f"{option}: {refused[kind]}")
    if options.macs is not None:
        return _within_budget(arch, plan, options, ranked)
    kept: dict[Kind, tuple[Indices, ...]] = {}
    for kind, ranking in ranked.items():
        drop = options.heads_drop if kind == "heads" else options.hidden_drop
        assert drop is not None
        removed = _removed(drop, ranking, f"{kind}_drop")
        kept[kind] = ranking.without(block for _, block in ranking.candidates()[:removed])
    return _planned(plan, kept)


@dataclass(frozen=True)
class _Ranking:
    """The parts of one kind in all blocks."""

    worth: tuple[Tensor, ...]
    """|gate| of the parts of each block, [H] or [F]."""
    least: tuple[int, ...]
    """How many each block keeps at least."""
    align: int

    @property
    def count(self) -> int:
        return sum(len(worth) for worth in self.worth)

    @property
    def removable(self) -> int:
        return self.count - sum(self.least)

    def candidates(self) -> list[tuple[float, int]]:
        """List the worth and the block of every part that may go, in the order in which they go."""
        found = []
        for block, (worth, least) in enumerate(zip(self.worth, self.least, strict=True)):
            ascending = worth.sort().values[: len(worth) - least]
            found += [(value, block) for value in ascending.tolist()]
        return sorted(found, key=_order)

    def without(self, blocks: Iterable[int]) -> tuple[Indices, ...]:
        """Return what each block keeps, sorted, if it loses a part each time that it is named.

        Counts are rounded up to a multiple of `align`.
        """
        lost = Counter(blocks)
        return tuple(
            tuple(highest(worth, aligned(len(worth) - lost[index], self.align, len(worth))).tolist())
            for index, worth in enumerate(self.worth)
        )


def _order(part: tuple[float, int]) -> tuple[float, int]:
    """Return what parts are sorted by: the lowest worth goes first, of equal ones the last block's."""
    return part[0], -part[1]


def _ranked(arch: Arch, options: EffiSelect, scores: Scores) -> dict[Kind, _Ranking]:
    """Return the rankings of the kinds that are decided."""
    drops: dict[Kind, float | None] = {"heads": options.heads_drop, "hidden": options.hidden_drop}
    found: dict[Kind, _Ranking] = {}
    for kind, drop in drops.items():
        if drop is None and options.macs is None:
            continue
        align = options.align if kind == "hidden" else 1
        worth = tuple(scores[f"blocks.{index}.{kind}"].double().abs() for index in range(len(arch.blocks)))
        least = tuple(min(len(values), align) for values in worth)
        found[kind] = _Ranking(worth, least, align)
    return found


def _removed(drop: float, ranking: _Ranking, key: str) -> int:
    """Return how many parts a share removes, rounded down.

    Raises:
        PlanError: more than may go.
    """
    removed = part(ranking.count, drop)
    if removed > ranking.removable:
        most = math.floor(1e4 * ranking.removable / ranking.count) / 1e4
        raise PlanError(
            f"{key}: {drop:g} removes {removed} of {ranking.count}, but every block keeps"
            f" {ranking.least[0]}: {ranking.removable} can go. Give at most {most:g}."
        )
    return removed


def _within_budget(arch: Arch, plan: Plan, options: EffiSelect, ranked: Mapping[Kind, _Ranking]) -> Plan:
    """Remove what is worth least for its MACs, one after the other, until the budget holds.

    A gate at rest is held up against L1 by as much gradient of the cross-entropy as its weight in the loss:
    so that weight times |gate| is what a head or a neuron is worth, in the same units for both.
    """
    budget = options.macs
    assert budget is not None
    weights: dict[Kind, float] = {"heads": options.heads_weight, "hidden": options.hidden_weight}
    before = slim_arch(arch, plan)
    order: list[tuple[float, int, Kind]] = []
    for kind, ranking in ranked.items():
        macs = [_part_macs(before, kind, block) for block in range(len(arch.blocks))]
        order += [(weights[kind] * worth / macs[block], block, kind) for worth, block in ranking.candidates()]
    order.sort(key=lambda part: _order(part[:2]))
    dense = model_cost(arch).total.macs

    def planned(removed: int) -> Plan:
        kept = {
            kind: ranking.without(block for _, block, other in order[:removed] if other == kind)
            for kind, ranking in ranked.items()
        }
        return _planned(plan, kept)

    def share(removed: int) -> float:
        return model_cost(slim_arch(arch, planned(removed))).total.macs / dense

    least = share(len(order))
    if least > budget:
        raise PlanError(
            f"macs: expected {math.ceil(1e4 * least) / 1e4:g} or more, the smallest share of the dense"
            f" model's MACs that cutting heads and neurons reaches, got {budget:g}."
        )
    return planned(smallest(len(order), lambda removed: share(removed) <= budget))


def _part_macs(arch: Arch, kind: Kind, index: int) -> int:
    """Return the MACs of one head or neuron of a block."""
    dims = arch.blocks[index]
    fewer = replace(dims, heads=dims.heads - 1) if kind == "heads" else replace(dims, hidden=dims.hidden - 1)
    return block_cost(arch, dims).macs - block_cost(arch, fewer).macs


def _planned(plan: Plan, kept: Mapping[Kind, Sequence[Indices]]) -> Plan:
    """Return the plan with what is kept of heads and neurons."""
    unknown = [None] * len(plan.blocks)
    columns = zip(plan.blocks, kept.get("heads", unknown), kept.get("hidden", unknown), strict=True)
    return replace(plan, blocks=tuple(_block(*column) for column in columns))


def _block(block: BlockPlan, heads: Indices | None, hidden: Indices | None) -> BlockPlan:
    if heads is not None and len(heads) < block.heads:
        kept = replace(block.kept, heads=heads, qk=_of(block.kept.qk, heads), vo=_of(block.kept.vo, heads))
        block = replace(block, heads=len(heads), kept=kept)
    if hidden is not None and len(hidden) < block.hidden:
        block = replace(block, hidden=len(hidden), kept=replace(block.kept, hidden=hidden))
    return block


def _of(sets: tuple[Indices, ...] | None, heads: Indices) -> tuple[Indices, ...] | None:
    """Return the sets of dims, one for each head so far, of the heads that stay."""
    return None if sets is None else tuple(sets[head] for head in heads)
