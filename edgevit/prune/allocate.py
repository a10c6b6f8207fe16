"""Spend a budget on cuts: the counts that keep KL(dense || slim) least while the cost stays within a limit.

The KL of a plan is taken as the sum over its cuts, each measured alone (`curves.py`). Token counts couple the
blocks: a plan is a path over the states (block, tokens), and each edge has widths inside. For a price on
cost, the cheapest path is found exactly (`paths.py`); the price is bisected until the cost meets the limit
(Lagrangian relaxation), and what is left is spent step by step.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgevit.budget import Unit
from edgevit.cost import Cost, block_cost, model_cost
from edgevit.errors import PlanError
from edgevit.models.anatomy import BlockCounts, block_with
from edgevit.models.arch import Arch
from edgevit.plan import Anatomy, Kind, Plan, fewest_merged, keep_all
from edgevit.prune.curves import Curve, Sensitivity
from edgevit.prune.paths import Edges, Path, Paths, Pick

_BISECTIONS = 48
_FILLED = 4
"""Paths next to the limit whose slack is spent, of which the best is taken."""
_STEPS: dict[Kind, int] = {"heads": 1, "qk_dim": 8, "vo_dim": 8, "hidden": 32, "tokens": 8}
"""How far two counts that may be chosen lie apart; a target's multiples make the steps larger."""
_LEAST_SHARE: dict[Kind, float] = {
    "heads": 0.5,
    "qk_dim": 0.25,
    "vo_dim": 0.25,
    "hidden": 0.25,
    "tokens": 0.25,
}
"""What a block keeps at least: beyond it the sum over cuts says little."""


class OutOfReachError(PlanError):
    """No choice is within a limit."""

    def __init__(self, least: float, limit: float) -> None:
        super().__init__(f"expected at least {least:.6g}, the smallest that cuts reach, got {limit:.6g}")
        self.least = least
        """The smallest cost that can be reached."""


class CostModel(Protocol):
    """What a model costs, in one unit: MACs, params or milliseconds.

    Within a block, what attention (heads, QK, VO) and MLP (hidden neurons) save is taken to add up.
    """

    def block(self, index: int, counts: BlockCounts) -> float:
        """Return the cost of block `index` that keeps `counts`."""
        ...

    def blocks(self, arch: Arch) -> tuple[float, ...]:
        """Return the cost of each block of a whole model of these dims."""
        ...

    def rest(self) -> float:
        """Return the cost of everything that is no block."""
        ...

    def total(self, arch: Arch) -> float:
        """Return the cost of a whole model of these dims."""
        ...


@dataclass(frozen=True)
class ArchCosts:
    """MACs or params, counted from dims."""

    arch: Arch
    """Of the dense model."""
    unit: Unit
    dead_tokens: bool

    def block(self, index: int, counts: BlockCounts) -> float:
        """Count one block."""
        dims = block_with(self.arch, index, counts, dead_tokens=self.dead_tokens)
        return self._of(block_cost(self.arch, dims))

    def blocks(self, arch: Arch) -> tuple[float, ...]:
        """Count each block of a whole model."""
        return tuple(map(self._of, model_cost(arch).blocks))

    def rest(self) -> float:
        """Count stem and head."""
        cost = model_cost(self.arch)
        return self._of(cost.stem + cost.head)

    def total(self, arch: Arch) -> float:
        """Count a whole model."""
        return self._of(model_cost(arch).total)

    def _of(self, cost: Cost) -> float:
        return float(cost.macs if self.unit == "macs" else cost.params)


FitsAttention = Callable[[int, int, int], bool]
"""Whether a block, by its index, may have an attention of these QK and VO dims of a head."""


def any_attention(index: int, qk_dim: int, vo_dim: int) -> bool:
    """Let every attention be chosen."""
    return True


@dataclass(frozen=True)
class BlockChoices:
    """Counts that one block may keep, each list falling from what the dense block has."""

    heads: tuple[int, ...]
    qk_dim: tuple[int, ...]
    vo_dim: tuple[int, ...]
    hidden: tuple[int, ...]
    tokens: tuple[int, ...]
    """Tokens that may leave it; the lists of all blocks are equally long."""


@dataclass(frozen=True)
class Choices:
    """What an allocation may choose from."""

    anatomy: Anatomy
    blocks: tuple[BlockChoices, ...]
    dead_tokens: bool
    fits: FitsAttention = any_attention
    """Which attentions that are cut may be chosen."""


@dataclass(frozen=True)
class Allocation:
    """A plan within a limit, and what it is predicted to cost and to lose."""

    plan: Plan
    cost: float
    """Of the whole model, in the unit of the limit."""
    kl: float
    """Sum over all cuts, nats."""
    block_costs: tuple[float, ...]
    block_kls: tuple[float, ...]
    price: float
    """KL that one more unit of cost would save."""


def choices_of(
    anatomy: Anatomy,
    sensitivity: Sensitivity,
    multiples: dict[Kind, int],
    *,
    dead_tokens: bool,
    fits: FitsAttention = any_attention,
) -> Choices:
    """List the counts that an allocation may choose from.

    Args:
        anatomy: what can be cut.
        sensitivity: kinds that it has no curve of stay whole.
        multiples: of what a count that is cut has to be a multiple, by kind; absent: of nothing.
        dead_tokens: whether the plan drops tokens that nothing reads.
        fits: which attentions that are cut may be chosen; the dense model's always may.
    """
    blocks = []
    merges = all(
        sensitivity.curve(index, "tokens") is not None for index in range(len(anatomy.blocks) - 1)
    ) and bool(anatomy.blocks[1:])
    for index, block in enumerate(anatomy.blocks):
        found: dict[Kind, tuple[int, ...]] = {}
        for kind in _STEPS:
            most = int(getattr(block, kind))
            free = merges if kind == "tokens" else sensitivity.curve(index, kind) is not None
            found[kind] = _counts(most, kind, multiples.get(kind, 1)) if free else (most,)
        blocks.append(
            BlockChoices(found["heads"], found["qk_dim"], found["vo_dim"], found["hidden"], found["tokens"])
        )
    return Choices(anatomy, tuple(blocks), dead_tokens, fits)


def _counts(most: int, kind: Kind, multiple: int) -> tuple[int, ...]:
    """Return `most` and the counts below it that may be chosen, falling."""
    step = math.lcm(_STEPS[kind], multiple)
    if step * 4 > most:  # a small model: at least four counts, where the multiple allows it
        step = max(multiple, most // 4 // multiple * multiple)
    start = most if kind == "tokens" and multiple == 1 else (most - 1) // step * step
    least = max(1, math.ceil(_LEAST_SHARE[kind] * most))
    return (most, *(count for count in range(start, least - 1, -step) if count < most))


def allocate(sensitivity: Sensitivity, choices: Choices, costs: CostModel, limit: float) -> Allocation:
    """Choose the counts that lose least within a limit.

    Args:
        sensitivity: what each cut loses.
        choices: counts that may be chosen.
        costs: what they cost.
        limit: most that the model may cost, in the unit of `costs`.

    Raises:
        OutOfReachError: no choice is within the limit.
    """
    edges = [_edges(index, sensitivity, choices, costs) for index in range(len(choices.blocks))]
    problem = _Problem(choices, costs, Paths(edges))
    smallest = problem.paths.cheapest(math.inf)
    least = problem.cost(smallest)
    if least > limit:
        raise OutOfReachError(least, limit)
    whole = problem.paths.cheapest(0.0)
    if problem.cost(whole) <= limit:
        return problem.describe(whole, 0.0)
    low, high = _bracket(problem, limit)
    within = {smallest: math.inf}
    for _ in range(_BISECTIONS):
        price = math.sqrt(low * high)
        path = problem.paths.cheapest(price)
        if problem.cost(path) <= limit:
            high = price
            within[path] = price
        else:
            low = price
    near = list(within.items())[-_FILLED:]  # the last cost most
    filled = [(problem.fill(path, limit), price) for path, price in near]
    best, price = min(filled, key=lambda one: problem.paths.kl(one[0]))
    return problem.describe(best, price)


def _bracket(problem: _Problem, limit: float) -> tuple[float, float]:
    """Return two prices, of which the first costs more than the limit and the second does not."""
    high = 1e-12 / max(limit, 1e-12)
    while problem.cost(problem.paths.cheapest(high)) > limit:
        high *= 16.0
    return high / 16.0, high


def _edges(index: int, sensitivity: Sensitivity, choices: Choices, costs: CostModel) -> Edges:
    """Ask sensitivities and costs for everything that block `index` may be."""
    own = choices.blocks[index]
    full = own.heads[0], own.qk_dim[0], own.vo_dim[0], own.hidden[0]
    attention = tuple(_attentions(choices, index))
    kl = {kind: _kls(sensitivity.curve(index, kind), getattr(own, kind)) for kind in _WIDTHS}
    entering, leaving = tokens_around(choices, index)

    def cost(level: int, *widths: int) -> float:
        return costs.block(index, BlockCounts(entering[level], leaving[level], *widths))

    levels = range(len(entering))
    whole = [cost(level, *full) for level in levels]
    base = np.full((len(entering),) * 2, math.inf)
    merge_kl = np.full_like(base, math.inf)
    curve = sensitivity.curve(index, "tokens")
    for first, last in _ways(choices, index):
        base[first, last] = costs.block(index, BlockCounts(entering[first], leaving[last], *full))
        merge_kl[first, last] = _merge_kl(curve, entering[first], entering[last])
    return Edges(
        attention=attention,
        hidden=own.hidden,
        attention_kl=np.array(
            [kl["heads"][h] + kl["qk_dim"][qk] + kl["vo_dim"][vo] for h, qk, vo in attention]
        ),
        hidden_kl=np.array([kl["hidden"][count] for count in own.hidden]),
        attention_cost=np.array(
            [[cost(level, *widths, full[3]) - whole[level] for widths in attention] for level in levels]
        ),
        hidden_cost=np.array(
            [[cost(level, *full[:3], count) - whole[level] for count in own.hidden] for level in levels]
        ),
        tokens_kl=merge_kl,
        tokens_cost=base,
    )


def _attentions(choices: Choices, index: int) -> Iterator[tuple[int, int, int]]:
    """Yield what the attention of a block may keep: heads, QK and VO dims of each."""
    own = choices.blocks[index]
    for heads, qk, vo in itertools.product(own.heads, own.qk_dim, own.vo_dim):
        if (qk, vo) == (own.qk_dim[0], own.vo_dim[0]) or choices.fits(index, qk, vo):
            yield heads, qk, vo


_WIDTHS: tuple[Kind, ...] = ("heads", "qk_dim", "vo_dim", "hidden")


def tokens_around(choices: Choices, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that may enter a block, and those that leave it where none are merged."""
    entering = choices.blocks[index].tokens
    read = choices.anatomy.read_tokens
    if choices.dead_tokens and index == len(choices.blocks) - 1 and read is not None:
        return entering, (read,) * len(entering)
    return entering, entering


def _ways(choices: Choices, index: int) -> list[tuple[int, int]]:
    """List the levels (in, out) between which a block may go: it merges at most half of its patches."""
    entering = choices.blocks[index].tokens
    levels = range(len(entering))
    dead = choices.dead_tokens and index == len(choices.blocks) - 1
    found = []
    for first in levels:
        least = fewest_merged(entering[first], choices.anatomy.prefix)
        stop = first + 1 if dead else len(entering)
        found += [(first, last) for last in levels[first:stop] if entering[last] >= least]
    return found


def _kls(curve: Curve | None, counts: Sequence[int]) -> dict[int, float]:
    return {count: 0.0 if curve is None else curve.at(count) for count in counts}


def _merge_kl(curve: Curve | None, before: int, after: int) -> float:
    """Return the KL of merging where fewer tokens are left than the dense model has.

    What was measured on all tokens counts (dense / before)² times as many: the fewer there are, the more each
    of them stands for (docs/methods.md).
    """
    if before == after or curve is None:
        return 0.0 if before == after else math.inf
    return curve.at(curve.most - (before - after) * (curve.most / before) ** 2)


@dataclass(frozen=True)
class _Problem:
    choices: Choices
    costs: CostModel
    paths: Paths
    known: dict[tuple[int, Pick], float] = field(default_factory=dict)
    """Costs of blocks that were asked for before."""

    def block_cost(self, index: int, pick: Pick) -> float:
        """Return what one block costs, asked as it is."""
        if (found := self.known.get((index, pick))) is not None:
            return found
        edge, (entering, leaving) = self.paths.edges[index], tokens_around(self.choices, index)
        widths = *edge.attention[pick.attention], edge.hidden[pick.hidden]
        cost = self.costs.block(index, BlockCounts(entering[pick.entering], leaving[pick.leaving], *widths))
        return self.known.setdefault((index, pick), cost)

    def cost(self, path: Path) -> float:
        """Return what a path costs, with all that is no block."""
        return self.costs.rest() + sum(self.block_cost(index, pick) for index, pick in enumerate(path))

    def fill(self, path: Path, limit: float) -> Path:
        """Spend what is left below the limit, each time where a unit of cost saves most KL."""
        cost, kl = self.cost(path), self.paths.kl(path)
        while True:
            worth, best = 0.0, path
            for changed in itertools.chain(
                self.paths.wider(path, limit - cost), self.paths.with_more_tokens(path)
            ):
                gain, price = kl - self.paths.kl(changed), self.cost(changed) - cost
                if gain > 1e-12 and price <= limit - cost and gain / max(price, 1e-12) > worth:
                    worth, best = gain / max(price, 1e-12), changed
            if best is path:
                return path
            path, cost, kl = best, self.cost(best), self.paths.kl(best)

    def describe(self, path: Path, price: float) -> Allocation:
        """Turn a path into a plan with what it costs and loses."""
        full = keep_all(self.choices.anatomy)
        blocks = []
        for index, (pick, block) in enumerate(zip(path, full.blocks, strict=True)):
            heads, qk, vo = self.paths.edges[index].attention[pick.attention]
            hidden = self.paths.edges[index].hidden[pick.hidden]
            tokens = self.choices.blocks[index].tokens[pick.leaving]
            blocks.append(
                dataclasses.replace(block, heads=heads, qk_dim=qk, vo_dim=vo, hidden=hidden, tokens=tokens)
            )
        return Allocation(
            plan=Plan(tuple(blocks), self.choices.dead_tokens),
            cost=self.cost(path),
            kl=self.paths.kl(path),
            block_costs=tuple(self.block_cost(index, pick) for index, pick in enumerate(path)),
            block_kls=tuple(self.paths.block_kl(index, pick) for index, pick in enumerate(path)),
            price=price,
        )
