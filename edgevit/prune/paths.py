"""Paths through the blocks of a network, which tokens couple: the cheapest, and those next to a path.

A path says of each block which tokens enter and leave it and which widths it has. The tokens are states and a
block is what lies between two of them, so that the cheapest path is found exactly, widths first, then tokens
(a dynamic programme).

Shapes: L token counts, A choices of (heads, QK, VO), M of hidden neurons.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Edges:
    """All that one block may be: KL and cost of widths, and of the ways from tokens in to tokens out.

    Costs of widths are relative to the whole block's, at the tokens that the part works on.
    """

    attention: tuple[tuple[int, int, int], ...]
    hidden: tuple[int, ...]
    attention_kl: Array  # [A]
    hidden_kl: Array  # [M]
    attention_cost: Array  # [L, A] by tokens in
    hidden_cost: Array  # [L, M] by tokens out
    tokens_kl: Array  # [L, L] by tokens in and out; infinite where there is no way
    tokens_cost: Array  # [L, L] of the whole block


@dataclass(frozen=True)
class Pick:
    """What one block is: levels of tokens, and places in the lists of widths."""

    entering: int
    leaving: int
    attention: int
    hidden: int


Path = tuple[Pick, ...]


@dataclass(frozen=True)
class Paths:
    """All paths through blocks of these edges; the first token count of each block is the dense model's."""

    edges: list[Edges]

    def cheapest(self, price: float) -> Path:
        """Return the path of least KL + price * cost; of least cost, then KL, where the price is infinite."""
        weigh = _weigher(price)
        best = np.full(len(self.edges[0].tokens_cost), math.inf)
        best[0] = 0.0
        steps: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]] = []
        for edge in self.edges:
            attention = weigh(edge.attention_kl, edge.attention_cost)
            hidden = weigh(edge.hidden_kl, edge.hidden_cost)
            ways = weigh(edge.tokens_kl, edge.tokens_cost)
            total = best[:, None] + ways + attention.min(axis=1)[:, None] + hidden.min(axis=1)[None, :]
            steps.append((total.argmin(axis=0), attention.argmin(axis=1), hidden.argmin(axis=1)))
            best = total.min(axis=0)
        level, path = int(best.argmin()), list[Pick]()
        for came, attentions, hiddens in reversed(steps):
            before = int(came[level])
            path.append(Pick(before, level, int(attentions[before]), int(hiddens[level])))
            level = before
        return tuple(reversed(path))

    def block_kl(self, index: int, pick: Pick) -> float:
        """Return what one block loses."""
        edge = self.edges[index]
        widths = edge.attention_kl[pick.attention] + edge.hidden_kl[pick.hidden]
        return float(widths + edge.tokens_kl[pick.entering, pick.leaving])

    def kl(self, path: Path) -> float:
        """Return what a path loses."""
        return sum(self.block_kl(index, pick) for index, pick in enumerate(path))

    def wider(self, path: Path, left: float) -> Iterator[Path]:
        """Yield, for each block, the path with the wider attention or MLP that is worth most there."""
        for index, (edge, pick) in enumerate(zip(self.edges, path, strict=True)):
            for kls, costs, now, name in (
                (edge.attention_kl, edge.attention_cost[pick.entering], pick.attention, "attention"),
                (edge.hidden_kl, edge.hidden_cost[pick.leaving], pick.hidden, "hidden"),
            ):
                gain, price = kls[now] - kls, costs - costs[now]
                worth = np.where((gain > 0) & (price <= left), gain / np.maximum(price, 1e-12), 0.0)
                if worth.max() > 0:
                    changed = dataclasses.replace(pick, **{name: int(worth.argmax())})
                    yield (*path[:index], changed, *path[index + 1 :])

    def with_more_tokens(self, path: Path) -> Iterator[Path]:
        """Yield paths in which tokens are one level more from some block to some other."""
        levels = [pick.leaving for pick in path]
        for first in range(len(path)):
            for last in range(first, len(path)):
                raised = [
                    level - (first <= index <= last and level > 0) for index, level in enumerate(levels)
                ]
                changed = tuple(
                    dataclasses.replace(pick, entering=before, leaving=after)
                    for pick, before, after in zip(path, (0, *raised), raised, strict=False)
                )
                if changed != path and math.isfinite(self.kl(changed)):
                    yield changed


def _weigher(price: float) -> Callable[[Array, Array], Array]:
    """Return how KL and cost make one number to be minimised."""
    if math.isinf(price):
        return lambda kl, cost: cost + 1e-9 * np.minimum(kl, 1e6) + np.where(np.isinf(kl), math.inf, 0.0)
    return lambda kl, cost: kl + (price * cost if price else np.where(np.isinf(cost), math.inf, 0.0))
