"""The linear algebra of closed-form slimming: pure functions of moments, in float64.

Selection keeps rows of a weight; here the best lower-dimensional basis under the statistics of real inputs is
computed instead, and what follows is refitted by least squares (docs/methods.md).
Shapes: C embed width, K/V dims per head, r the dims that remain, F hidden neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-4  # of the mean variance, on the diagonal of what is inverted
EIGENVALUE_FLOOR = 1e-6  # of the largest: directions below it carry rounding, not signal


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep LAPACK on one thread: for one 64 x 64 SVD a busy machine's pool needs 0.2 s, one thread 2 ms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def roots(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square root and inverse square root of positive semi-definite matrices [..., p, p]."""
    values, vectors = torch.linalg.eigh(symmetric)
    floor = values[..., -1:].clamp_min(torch.finfo(values.dtype).tiny) * EIGENVALUE_FLOOR
    root = values.clamp_min(floor).sqrt()
    return (vectors * root.unsqueeze(-2)) @ vectors.mT, (vectors / root.unsqueeze(-2)) @ vectors.mT


@_one_thread()
def qk_errors(query_square: Tensor, key_covariance: Tensor) -> Tensor:
    """Return what is lost for each rank 0..K, summed over heads: mean squared logit errors, [K + 1].

    Args:
        query_square: E[q qᵀ] of each head's queries, [H, K, K].
        key_covariance: Cov(k) of each head's keys, [H, K, K].
    """
    return _tail_sums(torch.linalg.svdvals(roots(query_square)[0] @ roots(key_covariance)[0]))


@_one_thread()
def vo_errors(out_weights: Tensor, covariances: Tensor) -> Tensor:
    """Return what is lost for each rank 0..V, summed over heads: squared errors of the output, [V + 1].

    Args:
        out_weights: the heads' columns of the output projection, [H, C, V].
        covariances: Cov(u) of each head's attention output u, [H, V, V].
    """
    return _tail_sums(torch.linalg.svdvals(out_weights @ roots(covariances)[0]))


def _tail_sums(singular: Tensor) -> Tensor:
    """Return the sums over heads of the squares from each place on: [H, K] -> [K + 1], the last 0."""
    squares = singular.square().sum(dim=0)
    tails = squares.flip(0).cumsum(0).flip(0)
    return torch.cat([tails, tails.new_zeros(1)])


@_one_thread()
def reduce_qk(query_square: Tensor, key_covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Find the best rank-r form of the logits qᵀk of each head.

    Logits depend on q and k through their product only, and softmax ignores what is constant over keys: so
    the truncated SVD of E[q qᵀ]^½ Cov(k)^½ minimises the mean squared logit error (Eckart-Young), whatever
    basis q and k had.

    Args:
        query_square: E[q qᵀ] of each head's queries, [H, K, K].
        key_covariance: Cov(k) of each head's keys, [H, K, K].
        rank: r.

    Returns:
        Maps [H, r, K] to apply to queries (with their bias) and to keys.
    """
    root_q, inverse_q = roots(query_square)
    root_k, inverse_k = roots(key_covariance)
    left, singular, right = torch.linalg.svd(root_q @ root_k)
    scale = singular[..., :rank].sqrt().unsqueeze(-1)
    return scale * left.mT[..., :rank, :] @ inverse_q, scale * right[..., :rank, :] @ inverse_k


def order_pairs(query_square: Tensor, key_covariance: Tensor) -> Elimination:
    """Remove pairs of QK dims (j, j + K / 2) one after the other, each time the one that logits miss least.

    For models whose positions turn the pairs by angles of their own: they cannot be mixed, so a pair goes
    from all heads or stays as it is. Without the dims D the mean squared error of a head's logits is the sum
    of E[q qᵀ] Cov(k), element by element, over D x D.

    Args:
        query_square: E[q qᵀ] of each head's turned queries, [H, K, K].
        key_covariance: Cov(k) of each head's turned keys, [H, K, K].
    """
    half = query_square.shape[1] // 2
    products = (query_square * key_covariance).sum(dim=0)  # [K, K]
    of_pairs = products.unflatten(1, (2, half)).unflatten(0, (2, half)).sum(dim=(0, 2))  # [K / 2, K / 2]
    losses, found = of_pairs.diagonal().clone(), Elimination([], [])
    for _ in range(half):
        p = int(losses.argmin())
        found.order.append(p)
        found.losses.append(float(losses[p]))
        losses = losses + 2 * of_pairs[p]
        losses[p] = torch.inf
    return found


def pair_errors(query_square: Tensor, key_covariance: Tensor) -> Tensor:
    """Return what is lost for each rank 0..K as `order_pairs` removes pairs, [K + 1]; odd ranks as below."""
    losses = order_pairs(query_square, key_covariance).losses
    sums = torch.tensor([0.0, *losses], dtype=torch.float64, device=query_square.device).cumsum(0)
    errors = sums.flip(0)
    return errors.repeat_interleave(2)[:-1]


@_one_thread()
def reduce_vo(out_weight: Tensor, covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Find the best rank-r form of what one head adds to the residual stream.

    Args:
        out_weight: the head's columns of the output projection, [C, V].
        covariance: Cov(u) of the head's attention output u, [V, V].
        rank: r.

    Returns:
        The map [r, V] to apply to values, and the new columns [C, r].
    """
    root, inverse = roots(covariance)
    left, singular, right = torch.linalg.svd(out_weight @ root, full_matrices=False)
    return right[:rank] @ inverse, left[:, :rank] * singular[:rank]


def eliminate_heads(out_weight: Tensor, covariance: Tensor, heads: int, keep: int) -> tuple[Tensor, Tensor]:
    """Remove heads one after the other, each time the one whose loss the remaining heads repair best.

    Args:
        out_weight: output projection, [C, H*V].
        covariance: Cov of all heads' attention outputs side by side, [H*V, H*V].
        heads: H.
        keep: number of heads that remain.

    Returns:
        Sorted indices of the kept heads, int64 [keep], and the refitted columns of those heads, [C, keep*V].

    Reference: the block form of Hassibi and Stork 1993, Optimal Brain Surgeon.
    """
    width = covariance.shape[0] // heads
    inverse = torch.linalg.inv(covariance + _ridge(covariance))
    weight, left = out_weight.clone(), list(range(heads))
    while len(left) > keep:
        losses = []
        for position in range(len(left)):
            part = slice(position * width, (position + 1) * width)
            losses.append(
                float(
                    torch.trace(weight[:, part] @ torch.linalg.solve(inverse[part, part], weight[:, part].T))
                )
            )
        position = min(range(len(left)), key=losses.__getitem__)
        part = slice(position * width, (position + 1) * width)
        rest = torch.ones(inverse.shape[0], dtype=torch.bool, device=inverse.device)
        rest[part] = False
        update = torch.linalg.solve(inverse[part, part], inverse[part])  # [V, rest + V]
        weight = (weight - weight[:, part] @ update)[:, rest]
        inverse = (inverse - inverse[:, part] @ update)[rest][:, rest]
        del left[position]
    return torch.tensor(left, dtype=torch.int64, device=weight.device), weight


class Elimination(NamedTuple):
    """The order in which parts go, and what each removal loses."""

    order: list[int]
    losses: list[float]
    """Rise of the squared error of the output, with the others refitted."""


def eliminate_neurons(out_weight: Tensor, covariance: Tensor, keep: int) -> Tensor:
    """Return the sorted indices of the neurons that stay, int64 [keep]; see `order_neurons`."""
    gone = order_neurons(out_weight, covariance, keep).order
    return left_of(gone, len(covariance), covariance.device)


def left_of(removed: Sequence[int], count: int, device: torch.device) -> Tensor:
    """Return the sorted indices of those of `count` that were not removed, int64, on `device`."""
    kept = torch.ones(count, dtype=torch.bool)
    kept[list(removed)] = False
    return kept.nonzero().flatten().to(device)


def order_neurons(out_weight: Tensor, covariance: Tensor, keep: int) -> Elimination:
    """Remove hidden neurons one after the other, each time the one that the others replace best.

    The loss of removing neuron j and refitting the others is ||W[:, j]||² / [H⁻¹]_jj with H = Cov + ridge;
    WᵀW and H⁻¹ follow by updates of low rank, which are collected and applied in blocks so that memory
    traffic stays small. What stays for a smaller `keep` is part of what stays for a larger one.

    Args:
        out_weight: fc2's weight, [C, F].
        covariance: Cov of the neurons' activations, [F, F].
        keep: number of neurons that remain.

    Reference: Hassibi and Stork 1993, Optimal Brain Surgeon, for the linear least-squares layer.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance + _ridge(covariance)))
    gram = out_weight.T @ out_weight
    removed = torch.zeros(len(covariance), dtype=torch.bool, device=covariance.device)
    found = Elimination([], [])
    for start in range(0, len(covariance) - keep, _BLOCK):
        count = min(_BLOCK, len(covariance) - keep - start)
        steps, shifts = _eliminate_block(removed, gram, inverse, count, found)
        inverse.addmm_(steps.T, steps, alpha=-1)
        gram.addmm_(shifts.T, steps, alpha=-1).addmm_(steps.T, shifts, alpha=-1)
    return found


_BLOCK = 64  # rank-one updates collected before they are applied


@_one_thread()
def _eliminate_block(
    removed: Tensor, gram: Tensor, inverse: Tensor, count: int, found: Elimination
) -> tuple[Tensor, Tensor]:
    """Remove `count` more neurons; `removed` is changed in place, and `found` gets them.

    Of W only WᵀW is needed, which follows as W -> W - W[:, p] H⁻¹[p] / H⁻¹[p, p] does: by a symmetric update
    of rank two. Rows and columns of removed neurons stay, as zeros: taking them out would copy both matrices.

    Returns:
        S and U, each [count, F]: H⁻¹ loses SᵀS, and WᵀW loses UᵀS + SᵀU.
    """
    diagonal, norms = inverse.diagonal().clone(), gram.diagonal().clone()
    steps = inverse.new_zeros(count, len(inverse))  # s = H⁻¹[p] / sqrt(H⁻¹[p, p]) at the time of removal
    shifts = torch.zeros_like(steps)  # u, where WᵀW loses u sᵀ + s uᵀ
    for step in range(count):
        losses = torch.where(removed, torch.inf, norms / diagonal)
        p = int(losses.argmin())
        found.order.append(p)
        found.losses.append(float(losses[p]))
        row = inverse[p] - steps[:step, p] @ steps[:step]
        products = gram[p] - shifts[:step, p] @ steps[:step] - steps[:step, p] @ shifts[:step]
        root = row[p].sqrt()
        steps[step] = row / root
        shifts[step] = products / root - steps[step] * products[p] / (2 * row[p])
        norms = norms - 2 * shifts[step] * steps[step]
        diagonal = diagonal - steps[step].square()
        removed[p] = True
    return steps, shifts


def refit(covariance: Tensor, cross: Tensor, start: Tensor, pull: float) -> Tensor:
    """Solve min_W E‖t - W x‖² + pull * mean(diag Cov(x)) * ‖W - start‖² for centred x and t.

    Args:
        covariance: Cov(x), [p, p].
        cross: Cov(t, x), [c, p].
        start: the weight that is pulled towards, [c, p].
        pull: strength of the pull, relative to the mean variance of x.
    """
    strength = pull * covariance.diagonal().mean()
    system = covariance + strength * _eye(covariance)
    solution: Tensor = torch.linalg.solve(system, (cross + strength * start).T).T
    return solution


def _ridge(covariance: Tensor) -> Tensor:
    """Return `RIDGE` of the mean variance on the diagonal."""
    return RIDGE * covariance.diagonal().mean() * _eye(covariance)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)
