"""Fewer tokens with static counts: pairs of similar patches are merged, or patches are chosen to stay.

Everything is decided for each image by itself, in operators that every parser takes: products, TopK, gather
and one-hot products, no scatter.
Shapes: B batch, N tokens, P prefix tokens, n patches (N - P), k patches that stay, E width of the features
that patches are compared by, D embed width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from edgevit.plan import Choice

NEAREST = 5
"""Most similar patches whose mean is the score "knn"."""
_CELL_BONUS = 4.0  # more than two scores can be apart: what a cell keeps comes before all others
_TIE = 1e-3  # far above rounding, far below what tells patches apart
_GOLDEN = 0.6180339887498949


class Step(NamedTuple):
    """How many patches go in one place, and how they are chosen."""

    prefix: int
    removed: int
    choice: Choice | None  # None: pairs are merged
    grid: tuple[int, int]  # rows and columns of the patches; read where cells keep one patch each
    positioned: bool  # whether features tell places apart, so that hardly two patches are equal


class TokenMatch(NamedTuple):
    """Which patch tokens are merged into which: indices count within their own alternating set."""

    order: Tensor  # int64 [B, A]: set a by falling similarity; the first `merged` are merged
    onehot: Tensor  # float [B, C, merged]: 1 where a merged token goes into that token of set c
    prefix: int
    merged: int


class TokenChoice(NamedTuple):
    """Which patch tokens stay, and which of them stand for the others."""

    kept: Tensor  # int64 [B, k], rising
    onehot: Tensor | None  # float [B, k, n]: 1 where a patch counts to that kept one; None: dropped
    prefix: int


Reduction = TokenMatch | TokenChoice
"""What becomes of the tokens of a batch in one place."""


def find_reduction(features: Tensor, step: Step) -> Reduction:
    """Decide which patches go, from what they are compared by, [B, n, E]."""
    if step.choice is None:
        return match_tokens(features, step.prefix, step.removed, positioned=step.positioned)
    return choose_tokens(features, step, step.choice)


def reduce_tokens(x: Tensor, sizes: Tensor | None, how: Reduction) -> tuple[Tensor, Tensor | None]:
    """Return the tokens that stay, from [B, N, D], and how many original tokens each stands for, [B, N', 1].

    Sizes are None where all are 1: at first, and behind patches that were only dropped.
    """
    if isinstance(how, TokenMatch):
        return pool_tokens(x, sizes, how)
    return keep_tokens(x, sizes, how)


def match_tokens(features: Tensor, prefix: int, merged: int, *, positioned: bool = True) -> TokenMatch:
    """Match each patch of the even set with its most similar one of the odd set.

    Args:
        features: what similarity (cosine) is measured on, [B, n, E].
        prefix: P, the tokens in front of the patches, which are never merged.
        merged: how many of the best matches are merged; at most half of the patches, rounded up.
        positioned: whether features tell places apart. If not, equal patches are common (a plain background),
            and rounding must not choose among them: fixed numbers of at most 0.002 are added.

    Reference: Bolya et al. 2023, arXiv:2210.09461, bipartite soft matching.
    Differs: a constant number per block, keys of all heads compared in place of their mean, and pooling by a
        one-hot product, the form every parser takes.
    """
    scores = pair_similarity(features)
    if not positioned:
        rows, columns = (_spread(count, features) * _TIE for count in scores.shape[1:])
        scores = scores + (rows.unsqueeze(1) + columns)
    best, partner = scores.max(dim=-1)  # [B, A]
    order = best.topk(best.shape[1], dim=-1).indices
    target = partner.gather(1, order[:, :merged])  # [B, merged]
    return TokenMatch(order, _onehot(target, scores.shape[2], features.dtype), prefix, merged)


def pair_similarity(features: Tensor) -> Tensor:
    """Return the cosine of each patch of the even set with each of the odd set: [B, n, E] -> [B, A, C]."""
    metric = functional.normalize(features, dim=-1)
    return metric[:, 0::2] @ metric[:, 1::2].transpose(-2, -1)


def pool_tokens(x: Tensor, sizes: Tensor | None, match: TokenMatch) -> tuple[Tensor, Tensor]:
    """Replace merged tokens by size-weighted means.

    Args:
        x: tokens, [B, N, D].
        sizes: original tokens that each stands for, [B, N, 1]; None where all are 1.
        match: from `match_tokens`.

    Returns:
        Tokens [B, N - merged, D] (prefix, unmerged of set a, set c) and their sizes [B, N - merged, 1].
    """
    ones = torch.ones_like(x[:, :, :1]) if sizes is None else sizes
    a = _take(x[:, match.prefix :: 2], match.order)
    a_size = _take(ones[:, match.prefix :: 2], match.order)
    c, c_size = x[:, match.prefix + 1 :: 2], ones[:, match.prefix + 1 :: 2]
    moved, moved_size = a[:, : match.merged], a_size[:, : match.merged]
    size = c_size + match.onehot @ moved_size  # [B, C, 1]
    mean = (c * c_size + match.onehot @ (moved * moved_size)) / size  # [B, C, D]
    tokens = torch.cat([x[:, : match.prefix], a[:, match.merged :], mean], dim=1)
    return tokens, torch.cat([ones[:, : match.prefix], a_size[:, match.merged :], size], dim=1)


def choose_tokens(features: Tensor, step: Step, choice: Choice) -> TokenChoice:
    """Choose the least redundant patches, and with "clusters" what each of them stands for.

    Args:
        features: what patches are compared by, [B, n, E].
        step: how many go.
        choice: how redundancy is scored, and what becomes of the others.

    Reference: Preprints.org 202504.0596, of which the outline alone was at hand: cosine similarity of all
        pairs, its mean as redundancy, spatial diversity and clusters without their formulas.
    Differs: a constant number of patches; features are centred; cells, clusters, "count" and "knn" are ours.
    """
    unit = unit_features(features)
    scores = redundancy(unit, choice, step.grid)
    patches = unit.shape[1]
    kept = scores.topk(patches - step.removed, dim=1, largest=False).indices.sort(dim=1).values
    if choice.strategy != "clusters":
        return TokenChoice(kept, None, step.prefix)
    similar = _take(unit, kept) @ unit.transpose(-2, -1)  # [B, k, n]
    # A patch that stays stands for itself, also where another that stays is its equal.
    itself = kept.unsqueeze(-1) == torch.arange(patches, device=kept.device).view(1, 1, -1)
    nearest = similar + 4 * itself.to(unit.dtype) + _spread(kept.shape[1], unit).unsqueeze(-1) * _TIE
    return TokenChoice(kept, _onehot(nearest.argmax(dim=1), kept.shape[1], unit.dtype), step.prefix)


def unit_features(features: Tensor) -> Tensor:
    """Return features less their mean over the image's patches, each of length 1, [B, n, E].

    All patches share a large part, beside which their cosines are all near 1 and rank nothing.
    """
    return functional.normalize(features - features.mean(dim=1, keepdim=True), dim=-1)


def redundancy(unit: Tensor, choice: Choice, grid: tuple[int, int]) -> Tensor:
    """Score how redundant each patch is, -1..1: [B, n, E], each of length 1, -> [B, n].

    With "cells" the least redundant patch of each cell scores far below all others, so that it stays. Patches
    that are equal (a plain background) differ by at most `_TIE` of a score: without it rounding would choose,
    and no two runtimes would choose alike. What is added is spread, so that those that stay are.
    """
    others = unit.shape[1] - 1
    own = unit.square().sum(dim=-1)
    tie = _TIE
    match choice.score:
        case "avg":  # sum_j f_i f_j = f_i sum_j f_j: no product of all pairs
            scores = ((unit * unit.sum(dim=1, keepdim=True)).sum(dim=-1) - own) / others
        case "knn":
            nearest = min(NEAREST, others)
            top = (unit @ unit.transpose(-2, -1)).topk(nearest + 1, dim=-1).values  # itself among them
            scores = (top.sum(dim=-1) - own) / nearest
        case "count":
            near = (unit @ unit.transpose(-2, -1)) >= choice.similar
            # Less `own`, not 1: OpenVINO 2026.4 loses the sum below behind a reduction and mere numbers.
            scores = (near.to(unit.dtype).sum(dim=-1) - own) / others
            tie = 0.5 / others
    scores = scores + tie * _spread(unit.shape[1], unit)
    return _keep_cells(scores, choice.cell, grid) if choice.strategy == "cells" else scores


def _spread(count: int, like: Tensor) -> Tensor:
    """Return `count` numbers in 0..1 whose neighbours are far apart, and no two of which are near."""
    numbers = torch.arange(1, count + 1, dtype=torch.float64)
    spread: Tensor = (numbers * _GOLDEN).frac().to(like)
    return spread


def _keep_cells(scores: Tensor, cell: int, grid: tuple[int, int]) -> Tensor:
    """Lower the score of the least redundant patch of each cell below all others, [B, n]."""
    rows, columns = grid[0] // cell, grid[1] // cell
    by_cell = scores.unflatten(1, (rows, cell, columns, cell)).transpose(2, 3).flatten(3)  # [B, r, c, cell²]
    first = by_cell.argmin(dim=-1, keepdim=True)
    place = torch.arange(cell * cell, device=scores.device)
    bonus = (place == first).to(scores.dtype) * _CELL_BONUS
    lowered: Tensor = scores - bonus.unflatten(3, (cell, cell)).transpose(2, 3).flatten(1)
    return lowered


def keep_tokens(x: Tensor, sizes: Tensor | None, choice: TokenChoice) -> tuple[Tensor, Tensor | None]:
    """Return prefix and kept patches, [B, P + k, D]; where they stand for others, their means and sizes.

    Args:
        x: tokens, [B, N, D].
        sizes: original tokens that each stands for, [B, N, 1]; None where all are 1.
        choice: from `choose_tokens`.
    """
    if choice.onehot is None:
        return _gather(x, choice), None if sizes is None else _gather(sizes, choice)
    ones = torch.ones_like(x[:, :, :1]) if sizes is None else sizes
    weights = ones[:, choice.prefix :]
    size = choice.onehot @ weights  # [B, k, 1]
    mean = choice.onehot @ (x[:, choice.prefix :] * weights) / size  # [B, k, D]
    tokens = torch.cat([x[:, : choice.prefix], mean], dim=1)
    return tokens, torch.cat([ones[:, : choice.prefix], size], dim=1)


def _gather(x: Tensor, choice: TokenChoice) -> Tensor:
    return torch.cat([x[:, : choice.prefix], _take(x[:, choice.prefix :], choice.kept)], dim=1)


def _take(x: Tensor, order: Tensor) -> Tensor:
    """Return the tokens [B, m, D] of x, [B, n, D], whose places are in `order`, [B, m].

    One image is what devices run: rows of its matrix are copied as they are, where gathering by an index for
    each number would take longer than matching the tokens (docs/methods.md).
    """
    if x.shape[0] == 1:
        return functional.embedding(order, x.squeeze(0))  # ONNX's Gather, and nothing around it
    return x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _onehot(rows: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return [B, count, m] with a 1 in each column's row, from int64 [B, m]."""
    row = torch.arange(count, device=rows.device).view(1, -1, 1)
    return (row == rows.unsqueeze(1)).to(dtype)
