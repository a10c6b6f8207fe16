"""Rotary positions: queries and keys are turned by angles that belong to their token's place."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Turns the pairs (i, i + K / 2) of the K dims of queries or keys.

    The angles are data of the model, one for each token and pair: tokens without a place (class, registers)
    have angle 0. They are in the state dict and, not being trained, constants of an ONNX file.

    Reference: Su et al. 2021, RoFormer, arXiv:2104.09864; for images Simeoni et al. 2025, DINOv3,
    arXiv:2508.10104.
    """

    cos: Tensor  # [N, K]
    sin: Tensor  # [N, K]

    def __init__(self, tokens: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("cos", torch.ones(tokens, dims))
        self.register_buffer("sin", torch.zeros(tokens, dims))

    def keep(self, full: Rotary, dims: Tensor) -> None:
        """Take over the angles of the dims that stay of a head, int64 [K]: whole pairs, see `best_pairs`."""
        self.cos.copy_(full.cos[:, dims])
        self.sin.copy_(full.sin[:, dims])

    def forward(self, x: Tensor) -> Tensor:
        """Turn [B, H, N', K], the first N' tokens."""
        tokens, half = x.shape[-2], x.shape[-1] // 2
        quarter = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * self.cos[:tokens] + quarter * self.sin[:tokens]


def pair_scores(scores: Tensor) -> Tensor:
    """Return what each pair of dims is worth in all heads together, [H, K] -> [K / 2].

    A pair goes from all heads or from none, as one table of angles serves them all.
    """
    pairs: Tensor = scores.unflatten(1, (2, -1)).sum(dim=(0, 1))
    return pairs


def best_pairs(scores: Tensor, keep: int) -> Tensor:
    """Return the dims of the pairs that are worth most, int64 [keep], rising; of equal pairs the first.

    Args:
        scores: what each dim is worth, [H, K].
        keep: how many dims stay, an even number.
    """
    order = pair_scores(scores).sort(descending=True, stable=True).indices
    return dims_of_pairs(order[: keep // 2], scores.shape[1])


def dims_of_pairs(pairs: Tensor, dims: int) -> Tensor:
    """Return the dims of pairs, int64 [p] -> int64 [2 * p], rising; `dims` is K."""
    first = pairs.sort().values
    return torch.cat([first, first + dims // 2])
