"""What an allocation decided, a sentence for each large decision; plain ASCII."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise

from edgevit.budget import Unit
from edgevit.cost import model_cost
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch
from edgevit.plan import Kind, Plan, keep_all
from edgevit.prune.allocate import Allocation

_NAMES: dict[Kind, str] = {
    "heads": "attention heads",
    "qk_dim": "QK dims of each head",
    "vo_dim": "VO dims of each head",
    "hidden": "hidden neurons",
}


def decisions(dense: Arch, allocation: Allocation, unit: Unit) -> Iterator[str]:
    """Yield what was decided: where the savings come from, where tokens go, which widths go, what more buys.

    Args:
        dense: dims of the dense model.
        allocation: the plan.
        unit: what was limited.
    """
    plan, whole = allocation.plan, _amount(dense, keep_all(read_anatomy(dense)), unit)
    yield from _savings(dense, plan, unit, whole)
    if (text := _tokens(dense, plan)) is not None:
        yield text
    for kind, name in _NAMES.items():
        yield _widths(name, [getattr(b, kind) for b in dense.blocks], [getattr(b, kind) for b in plan.blocks])
    if 0 < allocation.price < float("inf"):
        gain = allocation.price * whole / 100
        yield f"1 % of the dense model's {_word(unit)} more would take about {gain:.2g} off the KL."


def _amount(dense: Arch, plan: Plan, unit: Unit) -> int:
    cost = model_cost(slim_arch(dense, plan)).total
    return cost.macs if unit == "macs" else cost.params


def _word(unit: Unit) -> str:
    return "MACs" if unit == "macs" else "params"


def _savings(dense: Arch, plan: Plan, unit: Unit, whole: int) -> Iterator[str]:
    """Say what dead tokens, fewer tokens and narrower layers save, each on top of those before."""
    full = keep_all(read_anatomy(dense))
    dead = dataclasses.replace(full, dead_tokens=plan.dead_tokens)
    pairs = zip(full.blocks, plan.blocks, strict=True)
    fewer = tuple(dataclasses.replace(block, tokens=cut.tokens) for block, cut in pairs)
    steps = [whole]
    steps += [_amount(dense, one, unit) for one in (dead, dataclasses.replace(dead, blocks=fewer), plan)]
    names = ("dropping dead tokens", "merging tokens", "narrower layers")
    shares = [100 * (before - after) / whole for before, after in pairwise(steps)]
    said = [f"{name} {share:.1f} %" for name, share in zip(names, shares, strict=True) if share > 0]
    if said:
        yield f"Of the dense model's {_word(unit)}, these are saved: {', '.join(said)}."


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
