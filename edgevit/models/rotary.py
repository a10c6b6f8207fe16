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

    def forward(self, x: Tensor) -> Tensor:
        """Turn [B, H, N', K], the first N' tokens."""
        tokens, half = x.shape[-2], x.shape[-1] // 2
        quarter = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * self.cos[:tokens] + quarter * self.sin[:tokens]
