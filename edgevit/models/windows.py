"""Windows on a grid of tokens: attention inside each of them, with the grid shifted in every other block.

Shapes: B batch, N tokens of the grid row by row, W windows, n tokens of a window (N = W * n), D width,
H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevit.models.arch import Window

_BLOCKED = -100.0  # added to logits between tokens that only the shift made neighbours; exp(-100) is 0


class Windows(nn.Module):
    """Cuts a grid of tokens into windows and puts it together again.

    The shift and the cut are one permutation, so each way is one gather of whole tokens. The permutations and
    the mask are constants of the window's dims: no state dict has them.

    Reference: Liu et al. 2021, Swin Transformer, arXiv:2103.14030, section 3.2.
    """

    order: Tensor | None  # int64 [N]: which token stands at each place of the windows
    back: Tensor | None  # int64 [N], the inverse
    mask: Tensor | None  # [W, 1, n, n], added to the logits of a shifted grid

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.count = window.count
        order = window_order(window)
        sorted_already = bool((order == torch.arange(len(order))).all())
        self.register_buffer("order", None if sorted_already else order, persistent=False)
        self.register_buffer("back", None if sorted_already else order.argsort(), persistent=False)
        self.register_buffer("mask", shift_mask(window) if any(window.shift) else None, persistent=False)

    def split(self, x: Tensor) -> Tensor:
        """Cut [B, N, D] into windows, [B * W, n, D]."""
        ordered = x if self.order is None else x.index_select(1, self.order)
        cut: Tensor = ordered.unflatten(1, (self.count, -1)).flatten(0, 1)
        return cut

    def join(self, x: Tensor) -> Tensor:
        """Put windows [B * W, n, D] together again, [B, N, D]."""
        ordered: Tensor = x.unflatten(0, (-1, self.count)).flatten(1, 2)
        return ordered if self.back is None else ordered.index_select(1, self.back)

    def block_strangers(self, logits: Tensor) -> Tensor:
        """Keep tokens that only the shift made neighbours from seeing each other, [B * W, H, n, n]."""
        if self.mask is None:
            return logits
        masked: Tensor = (logits.unflatten(0, (-1, self.count)) + self.mask).flatten(0, 1)
        return masked


def window_order(window: Window) -> Tensor:
    """Return which token of the grid stands at each place of the windows, int64 [N]."""
    height, width = window.grid
    grid = torch.arange(height * width).view(height, width)
    shifted = grid.roll((-window.shift[0], -window.shift[1]), dims=(0, 1))
    return _by_window(shifted, window).flatten()


def shift_mask(window: Window) -> Tensor:
    """Return what is added to the logits of each window of a shifted grid, [W, 1, n, n]."""
    rows, columns = (_region(*sizes) for sizes in zip(window.grid, window.size, window.shift, strict=True))
    regions = _by_window(rows.unsqueeze(1) * 3 + columns, window)  # [W, n]
    strangers = regions.unsqueeze(1) != regions.unsqueeze(2)
    return torch.where(strangers, _BLOCKED, 0.0).unsqueeze(1)


def _region(length: int, size: int, shift: int) -> Tensor:
    """Return the number of the part, connected before the shift, of each place of an axis, int64 [length]."""
    places = torch.arange(length)
    return (places >= length - size).long() + (places >= length - shift).long()


def _by_window(grid: Tensor, window: Window) -> Tensor:
    """Cut [height, width] into windows, [W, n]."""
    height, width = window.size
    parts = grid.unflatten(0, (-1, height)).unflatten(2, (-1, width))  # [rows, height, columns, width]
    cut: Tensor = parts.transpose(1, 2).flatten(2).flatten(0, 1)
    return cut
