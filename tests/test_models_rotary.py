from __future__ import annotations

import torch

from edgevit.models.rotary import Rotary, best_pairs, dims_of_pairs


def _turned(tokens: int = 5) -> Rotary:
    rotary = Rotary(tokens, 6)
    angles = torch.rand(tokens, 3, generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    rotary.cos.copy_(angles.cos())
    rotary.sin.copy_(angles.sin())
    return rotary


def test_new_rotary_turns_nothing() -> None:
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Rotary(5, 6)(x), x)


def test_rotary_keeps_the_length_of_each_pair() -> None:
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    y = _turned()(x)
    assert (y - x).abs().max() > 0.1
    lengths = [value.unflatten(-1, (2, 3)).square().sum(dim=-2) for value in (x, y)]
    torch.testing.assert_close(lengths[1], lengths[0])


def test_rotary_of_the_leading_tokens_is_the_start_of_all() -> None:
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    rotary = _turned()
    assert torch.equal(rotary(x[:, :, :2]), rotary(x)[:, :, :2])


def test_logits_of_turned_vectors_depend_on_the_difference_of_angles() -> None:
    rotary = Rotary(4, 2)
    angles = torch.tensor([0.3, 0.8, 1.3, 1.8]).unsqueeze(1).repeat(1, 2)
    rotary.cos.copy_(angles.cos())
    rotary.sin.copy_(angles.sin())
    q, k = rotary(torch.tensor([1.0, 2.0]).expand(4, 2)), rotary(torch.tensor([0.5, -1.0]).expand(4, 2))
    logits = q @ k.T
    torch.testing.assert_close(logits[0, 1], logits[2, 3])
    assert (logits[0, 1] - logits[0, 2]).abs() > 0.1


def test_best_pairs_are_those_of_the_highest_sums_over_heads_the_first_of_equals() -> None:
    scores = torch.tensor([[1.0, 0.0, 2.0, 0.0, 5.0, 1.0], [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]])
    assert best_pairs(scores, 4).tolist() == [1, 2, 4, 5]  # pairs are worth 3, 7, 4
    assert best_pairs(torch.ones(2, 6), 4).tolist() == [0, 1, 3, 4]


def test_rotary_of_the_pairs_that_stay_turns_them_as_before() -> None:
    full, dims = _turned(), dims_of_pairs(torch.tensor([2, 0]), 6)
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    cut = Rotary(5, 4)
    cut.keep(full, dims)
    assert dims.tolist() == [0, 2, 3, 5]
    torch.testing.assert_close(cut(x[..., dims]), full(x)[..., dims])
