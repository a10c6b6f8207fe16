from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgevit.slim.moments import Moments


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _weights(*shape: int) -> Tensor:
    return _random(*shape, seed=9).square()


def _of(x: Tensor, weights: Tensor, targets: Tensor | None = None) -> Moments:
    moments = Moments()
    moments.add(x, weights, targets)
    return moments


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_moments_equal_the_direct_computation() -> None:
    x, t, w = _random(50, 6) + 3, _random(50, 4, seed=1) - 2, _weights(50)
    moments, share = _of(x, w, t), w / w.sum()
    mean, target_mean = share @ x, share @ t
    assert_close(moments.mean, mean)
    assert_close(moments.target_mean, target_mean)
    assert_close(moments.square, torch.einsum("n,ni,nj->ij", share, x, x))
    centred = x - mean
    assert_close(moments.covariance, torch.einsum("n,ni,nj->ij", share, centred, centred))
    assert_close(moments.cross_covariance, torch.einsum("n,ni,nj->ij", share, t - target_mean, centred))


def test_moments_of_equal_weights_are_those_of_torch() -> None:
    x = _random(50, 6) + 3
    assert_close(_of(x, torch.full((50,), 7.0)).covariance, torch.cov(x.T, correction=0))


def test_moments_of_heads_are_kept_apart() -> None:
    x, w = _random(3, 50, 6), _weights(3, 50)
    moments = _of(x, w)
    for head in range(3):
        alone = _of(x[head], w[head])
        assert_close(moments.mean[head], alone.mean)
        assert_close(moments.square[head], alone.square)
        assert_close(moments.covariance[head], alone.covariance)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_moments_do_not_depend_on_how_rows_stream_by(order: list[int]) -> None:
    x, t, w = _random(60, 6) + 3, _random(60, 4, seed=1), _weights(60)
    parts = [slice(0, 7), slice(7, 31), slice(31, 60)]
    streamed = Moments()
    for index in order:
        streamed.add(x[parts[index]], w[parts[index]], t[parts[index]])
    whole = _of(x, w, t)
    assert_close(streamed.covariance, whole.covariance)
    assert_close(streamed.cross_covariance, whole.cross_covariance)
    assert_close(streamed.target_mean, whole.target_mean)


def test_row_of_weight_two_counts_as_two_rows() -> None:
    x = _random(5, 3)
    twice = torch.cat([x, x[4:]])
    assert_close(
        _of(x, torch.tensor([1.0, 1, 1, 1, 2])).covariance,
        _of(twice, torch.ones(6)).covariance,
    )


def test_row_of_weight_zero_does_not_count() -> None:
    x = _random(5, 3)
    assert_close(_of(x, torch.tensor([1.0, 1, 1, 1, 0])).covariance, _of(x[:4], torch.ones(4)).covariance)


def test_float32_rows_with_a_large_mean_keep_their_covariance() -> None:
    x = (_random(400, 4) + 300).float()  # squares of float32 would lose 1e5 * 6e-8 = 0.6 % of the variance
    moments = _of(x, torch.ones(400))
    assert moments.covariance.dtype == torch.float64
    assert_close(moments.covariance, torch.cov(x.double().T, correction=0), 1e-8)


def test_moments_in_float32_streams_leave_their_inputs_alone() -> None:
    x, w = _random(20, 3).float(), _weights(20).float()
    before = x.clone()
    _of(x, w)
    assert torch.equal(x, before)
