"""What an allocation decided, a sentence for each large decision; plain ASCII."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise

from edgevit.budget import Unit
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch
from edgevit.plan import Kind, Plan, keep_all
from edgevit.prune.allocate import Allocation, CostModel

_WORDS: dict[Unit, str] = {"macs": "MACs", "params": "params", "ms": "time"}
_NAMES: dict[Kind, str] = {
    "heads": "attention heads",
    "qk_dim": "QK dims of each head",
    "vo_dim": "VO dims of each head",
    "hidden": "hidden neurons",
}


def decisions(dense: Arch, allocation: Allocation, unit: Unit, costs: CostModel) -> Iterator[str]:
    """Yield what was decided: where the savings come from, where tokens go, which widths go, what more buys.

    Args:
        dense: dims of the dense model.
        allocation: the plan.
        unit: what was limited.
        costs: what models cost in it.
    """
    plan, word = allocation.plan, _WORDS[unit]
    whole = costs.total(dense)
    yield from _savings(dense, plan, word, costs)
    if (text := _tokens(dense, plan)) is not None:
        yield text
        if unit == "ms" and (text := _merge_price(dense, plan, costs)) is not None:
            yield text
    for kind, name in _NAMES.items():
        yield _widths(name, [getattr(b, kind) for b in dense.blocks], [getattr(b, kind) for b in plan.blocks])
    if 0 < allocation.price < float("inf"):
        gain = allocation.price * whole / 100
        yield f"1 % of the dense model's {word} more would take about {gain:.2g} off the KL."


def _savings(dense: Arch, plan: Plan, word: str, costs: CostModel) -> Iterator[str]:
    """Say what dead tokens, fewer tokens and narrower layers save, each on top of those before."""
    full = keep_all(read_anatomy(dense))
    dead = dataclasses.replace(full, dead_tokens=plan.dead_tokens)
    pairs = zip(full.blocks, plan.blocks, strict=True)
    fewer = tuple(dataclasses.replace(block, tokens=cut.tokens) for block, cut in pairs)
    plans = (full, dead, dataclasses.replace(dead, blocks=fewer), plan)
    steps = [costs.total(slim_arch(dense, one)) for one in plans]
    names = ("dropping dead tokens", "merging tokens", "narrower layers")
    shares = [100 * (before - after) / steps[0] for before, after in pairwise(steps)]
    said = [f"{name} {share:.1f} %" for name, share in zip(names, shares, strict=True) if share > 0]
    if said:
        yield f"Of the dense model's {word}, these are saved: {', '.join(said)}."


def _merge_price(dense: Arch, plan: Plan, costs: CostModel) -> str | None:
    """Say what one more merge takes before it saves anything: one that merges a single pair.

    It is set in the first block that merges none and behind which another follows.
    """
    before = dense.blocks[0].tokens_in
    for index, block in enumerate(plan.blocks[:-1]):
        if block.tokens == before:
            blocks = [
                dataclasses.replace(other, tokens=min(other.tokens, before - 1)) if place >= index else other
                for place, other in enumerate(plan.blocks)
            ]
            more = dataclasses.replace(plan, blocks=tuple(blocks))
            price = costs.total(slim_arch(dense, more)) - costs.total(slim_arch(dense, plan))
            if price > 0:
                return f"Another merge, in block {index}, would take {price:.2g} ms before it saves any."
        before = block.tokens
    return None


def _tokens(dense: Arch, plan: Plan) -> str | None:
    """Say where tokens are merged; None where they cannot be."""
    if "tokens" in read_anatomy(dense).refused:
        return None
    before, places = dense.blocks[0].tokens_in, []
    for index, block in enumerate(plan.blocks):
        if block.tokens < before:
            places.append(f"block {index} ({before} to {block.tokens})")
        before = block.tokens
    if not places:
        return "No tokens are merged."
    times = "once" if len(places) == 1 else f"{len(places)} times"
    return f"Tokens are merged {times}: in {', '.join(places)}."


def _widths(name: str, full: Sequence[int], kept: Sequence[int]) -> str:
    """Say how much of one kind goes, and where most of it does."""
    shares = [after / before for before, after in zip(full, kept, strict=True)]
    cut = [index for index, share in enumerate(shares) if share < 1]
    if not cut:
        return f"All {name} stay."
    most = min(cut, key=shares.__getitem__)
    where = "in every block" if len(cut) == len(full) else f"in {len(cut)} of {len(full)} blocks"
    text = f"Fewer {name} {where}, {100 * sum(kept) / sum(full):.0f} % stay"
    return f"{text}; least in block {most}, {kept[most]} of {full[most]}."
