from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from edgevit.slim.closed_form import (
    RIDGE,
    eliminate_heads,
    eliminate_neurons,
    order_pairs,
    pair_errors,
    reduce_qk,
    reduce_vo,
    refit,
    roots,
)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _correlated(rows: int, width: int, seed: int = 0) -> Tensor:
    """Return rows whose columns are correlated, with means that are not zero."""
    mixing = _random(width, width, seed=seed + 50) * torch.logspace(0, -1.5, width).double()
    return _random(rows, width, seed=seed) @ mixing.T + 2 * _random(width, seed=seed + 51)


def _cov(x: Tensor) -> Tensor:
    return torch.cov(x.T, correction=0)


def _ridged(covariance: Tensor) -> Tensor:
    eye = torch.eye(len(covariance), dtype=torch.float64)
    return covariance + RIDGE * covariance.diagonal().mean() * eye


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_roots_multiply_back() -> None:
    matrices = torch.stack([_cov(_correlated(80, 6)), _cov(_correlated(80, 6, seed=1))])
    root, inverse = roots(matrices)
    assert_close(root @ root, matrices)
    assert_close(root @ inverse, torch.eye(6, dtype=torch.float64).expand(2, 6, 6))
    assert_close(root, root.mT)


def test_roots_of_a_singular_matrix_stay_finite() -> None:
    thin = _random(6, 2)
    root, inverse = roots(thin @ thin.T)
    assert inverse.isfinite().all()
    assert_close(root @ root, thin @ thin.T, 1e-4)


def test_roots_of_zeros_are_finite() -> None:
    root, inverse = roots(torch.zeros(3, 3, dtype=torch.float64))
    assert root.isfinite().all()
    assert inverse.isfinite().all()


def _centred_logits(queries: Tensor, keys: Tensor) -> Tensor:
    logits = queries @ keys.T
    return logits - logits.mean(dim=1, keepdim=True)


def test_qk_at_full_rank_gives_the_logits_up_to_a_constant_per_query() -> None:
    queries, keys = _correlated(70, 6), _correlated(60, 6, seed=1)
    map_q, map_k = reduce_qk((queries.T @ queries / 70)[None], _cov(keys)[None], 6)
    assert_close(
        _centred_logits(queries @ map_q[0].T, keys @ map_k[0].T), _centred_logits(queries, keys), 1e-7
    )


@pytest.mark.parametrize("rank", [1, 2, 4, 5])
def test_qk_at_a_lower_rank_is_the_best_that_the_rank_allows(rank: int) -> None:
    queries, keys = _correlated(70, 6), _correlated(60, 6, seed=1)
    map_q, map_k = reduce_qk((queries.T @ queries / 70)[None], _cov(keys)[None], rank)
    assert map_q.shape == map_k.shape == (1, rank, 6)
    whole = _centred_logits(queries, keys)
    error = (whole - _centred_logits(queries @ map_q[0].T, keys @ map_k[0].T)).square().sum()
    assert_close(error, torch.linalg.svdvals(whole)[rank:].square().sum(), 1e-7)


def test_qk_of_each_head_is_its_own() -> None:
    squares = torch.stack([_cov(_correlated(70, 6, seed)) for seed in (0, 1)])
    covariances = torch.stack([_cov(_correlated(70, 6, seed)) for seed in (2, 3)])
    map_q, map_k = reduce_qk(squares, covariances, 3)
    for head in (0, 1):
        alone_q, alone_k = reduce_qk(squares[head : head + 1], covariances[head : head + 1], 3)
        assert_close(map_q[head].T @ map_k[head], alone_q[0].T @ alone_k[0])


def test_vo_at_full_rank_gives_the_output() -> None:
    u, out = _correlated(90, 5), _random(8, 5, seed=3)
    turn, columns = reduce_vo(out, _cov(u), 5)
    assert_close(columns @ turn, out)


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_vo_at_a_lower_rank_is_the_best_that_the_rank_allows(rank: int) -> None:
    u, out = _correlated(90, 5), _random(8, 5, seed=3)
    turn, columns = reduce_vo(out, _cov(u), rank)
    assert turn.shape == (rank, 5)
    assert columns.shape == (8, rank)
    centred = u - u.mean(dim=0)
    whole = centred @ out.T
    error = (whole - centred @ turn.T @ columns.T).square().sum()
    assert_close(error, torch.linalg.svdvals(whole)[rank:].square().sum(), 1e-7)


def test_vo_beats_every_choice_of_dims() -> None:
    u, out = _correlated(90, 5), _random(8, 5, seed=3)
    centred = u - u.mean(dim=0)
    turn, columns = reduce_vo(out, _cov(u), 3)
    best = (centred @ (out - columns @ turn).T).square().sum()
    for kept in itertools.combinations(range(5), 3):
        mask = torch.zeros(5, dtype=torch.float64)
        mask[list(kept)] = 1
        assert best < (centred @ (out * (1 - mask)).T).square().sum()


def _loss_without(weight: Tensor, hessian: Tensor, kept: list[int]) -> float:
    """Return tr(D H D^T) for D = weight - the best refit of `kept`, solved directly."""
    rows = hessian[kept][:, kept]
    new = torch.linalg.solve(rows, (weight @ hessian[:, kept]).T).T
    difference = weight.clone()
    difference[:, kept] -= new
    return float(torch.trace(difference @ hessian @ difference.T))


def _naive_neurons(weight: Tensor, covariance: Tensor, keep: int) -> list[int]:
    """Remove one neuron at a time by the inverse of what is left, recomputed every time."""
    hessian = _ridged(covariance)
    left, current = list(range(len(covariance))), weight.clone()
    while len(left) > keep:
        inverse = torch.linalg.inv(hessian[left][:, left])
        losses = current.square().sum(dim=0) / inverse.diagonal()
        p = int(losses.argmin())
        current = current - torch.outer(current[:, p] / inverse[p, p], inverse[p])
        current = torch.cat([current[:, :p], current[:, p + 1 :]], dim=1)
        del left[p]
    return left


@pytest.mark.parametrize(
    ("neurons", "keep"), [(12, 11), (12, 5), (12, 1), (65, 1), (100, 36), (100, 35), (200, 60)]
)
def test_neurons_are_those_of_the_naive_greedy_reference(neurons: int, keep: int) -> None:
    weight, covariance = _random(10, neurons), _cov(_correlated(3 * neurons, neurons))
    kept = eliminate_neurons(weight, covariance, keep)
    assert kept.dtype == torch.int64
    assert kept.tolist() == _naive_neurons(weight, covariance, keep)


def test_first_neuron_to_go_is_the_one_with_the_smallest_refit_loss() -> None:
    weight, covariance = _random(5, 8), _cov(_correlated(40, 8))
    hessian = _ridged(covariance)
    losses = [_loss_without(weight, hessian, [j for j in range(8) if j != gone]) for gone in range(8)]
    kept = eliminate_neurons(weight, covariance, 7).tolist()
    assert set(range(8)) - set(kept) == {losses.index(min(losses))}


def test_neuron_that_copies_another_goes_first() -> None:
    x = _correlated(60, 6)
    x[:, 4] = 2 * x[:, 1] + 0.7
    weight = _random(5, 6)
    kept = eliminate_neurons(weight, _cov(x), 5).tolist()
    assert set(range(6)) - set(kept) <= {1, 4}


def test_keeping_all_neurons_keeps_all() -> None:
    assert eliminate_neurons(_random(5, 6), _cov(_correlated(40, 6)), 6).tolist() == list(range(6))


def test_neurons_leave_their_inputs_alone() -> None:
    weight, covariance = _random(5, 80), _cov(_correlated(200, 80))
    before = weight.clone(), covariance.clone()
    eliminate_neurons(weight, covariance, 3)
    assert torch.equal(weight, before[0])
    assert torch.equal(covariance, before[1])


def _columns(heads: list[int], width: int) -> list[int]:
    return [head * width + dim for head in heads for dim in range(width)]


def _naive_heads(weight: Tensor, covariance: Tensor, heads: int, keep: int) -> list[int]:
    width, hessian = covariance.shape[0] // heads, _ridged(covariance)
    left = list(range(heads))
    while len(left) > keep:
        rests = [[head for head in left if head != gone] for gone in left]
        losses = [_loss_without(weight, hessian, _columns(rest, width)) for rest in rests]
        left = rests[losses.index(min(losses))]
    return left


@pytest.mark.parametrize(("heads", "keep"), [(4, 3), (4, 1), (6, 3), (3, 3)])
def test_heads_are_those_of_naive_refit_losses(heads: int, keep: int) -> None:
    weight, covariance = _random(7, heads * 3), _cov(_correlated(100, heads * 3))
    kept, columns = eliminate_heads(weight, covariance, heads, keep)
    assert kept.dtype == torch.int64
    assert kept.tolist() == _naive_heads(weight, covariance, heads, keep)
    hessian, chosen = _ridged(covariance), _columns(kept.tolist(), 3)
    best = torch.linalg.solve(hessian[chosen][:, chosen], (weight @ hessian[:, chosen]).T).T
    assert_close(columns, best, 1e-6)


def test_refit_without_pull_is_least_squares() -> None:
    x, t = _correlated(80, 6), _random(80, 4, seed=7)
    x_centred, t_centred = x - x.mean(dim=0), t - t.mean(dim=0)
    found = refit(_cov(x), t_centred.T @ x_centred / 80, _random(4, 6), 0.0)
    assert_close(found, torch.linalg.lstsq(x_centred, t_centred).solution.T, 1e-7)


def test_refit_with_pull_is_least_squares_of_the_augmented_system() -> None:
    x, t, start, pull = _correlated(80, 6), _random(80, 4, seed=7), _random(4, 6, seed=8), 0.3
    x_centred, t_centred = x - x.mean(dim=0), t - t.mean(dim=0)
    found = refit(_cov(x), t_centred.T @ x_centred / 80, start, pull)
    strength = (80 * pull * _cov(x).diagonal().mean()).sqrt()
    rows = torch.cat([x_centred, strength * torch.eye(6, dtype=torch.float64)])
    targets = torch.cat([t_centred, strength * start.T])
    assert_close(found, torch.linalg.lstsq(rows, targets).solution.T)


def test_refit_with_a_strong_pull_stays_at_the_start() -> None:
    start = _random(4, 6, seed=8)
    found = refit(_cov(_correlated(80, 6)), _random(4, 6), start, 1e9)
    assert_close(found, start, 1e-6)


def test_pairs_go_by_what_the_logits_miss_without_them() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=generator)
    squares, covariances = factors[0] @ factors[0].mT, factors[1] @ factors[1].mT

    def missed(pairs: tuple[int, ...]) -> float:
        gone = [*pairs, *(pair + 4 for pair in pairs)]
        return float((squares * covariances)[:, gone][:, :, gone].sum())

    found = order_pairs(squares, covariances)
    left: tuple[int, ...] = ()
    for pair, loss in zip(found.order, found.losses, strict=True):
        best = min({0, 1, 2, 3} - set(left), key=lambda other: missed((*left, other)))
        assert pair == best
        assert loss == pytest.approx(missed((*left, pair)) - missed(left))
        left = (*left, pair)
    errors = pair_errors(squares, covariances).tolist()
    assert errors[0::2] == pytest.approx([missed(left[:count]) for count in (4, 3, 2, 1, 0)])
    assert errors[1::2] == errors[0:8:2]


def test_errors_of_pairs_are_those_of_the_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 400, 8, dtype=torch.float64, generator=generator)
    k = k - k.mean(dim=1, keepdim=True)
    first = order_pairs(q.mT @ q / 400, k.mT @ k / 400).order[0]
    gone = [first, first + 4]
    error = (q[..., gone] @ k[..., gone].mT).square().mean()
    assert float(pair_errors(q.mT @ q / 400, k.mT @ k / 400)[6]) == pytest.approx(float(error))
