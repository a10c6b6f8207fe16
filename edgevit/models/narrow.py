"""Residual streams without some of their channels, exact against a stream where those are zero.

A LayerNorm of a stream whose cut channels are zero still divides by the full width: with K of C channels,
mean = sum x / C, and var = sum (x - mean)^2 / C has C - K times mean^2 of the cut ones. What it gives for
those is not zero, (0 - mean) / sd * gamma + beta, and the layers behind read it. All of that is linear in
x / sd, so it is folded into their weights (`slim/channels.py`); what is left of the norm is the division.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor, nn

from edgevit.models.arch import Arch, BlockDims


class NarrowNorm(nn.LayerNorm):
    """A LayerNorm over channels of which only some are there; the others count as zeros.

    With weights it gives what the full norm gives for the channels that are there. Without, it divides by
    the standard deviation and does nothing else: what remains of a norm is in the weights that read it.
    """

    def __init__(self, channels: int, full: int, eps: float, *, affine: bool) -> None:
        super().__init__(channels, eps, elementwise_affine=affine)
        self.full = full

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., K] to [..., K]."""
        mean = x.sum(dim=-1, keepdim=True) / self.full
        centred = x - mean
        squares = centred.square().sum(dim=-1, keepdim=True)
        if self.full > x.shape[-1]:
            squares = squares + mean.square() * (self.full - x.shape[-1])
        deviation = (squares / self.full + self.eps).sqrt()
        if not self.elementwise_affine:
            return x / deviation
        return centred / deviation * self.weight + self.bias


def make_norm(channels: int, full: int | None, eps: float, *, on_stream: bool = False) -> nn.LayerNorm:
    """Return the norm of a stream: a LayerNorm, or a narrow one where channels were cut.

    Args:
        channels: those that are there.
        full: those that there were; None: all are there.
        eps: of the norm.
        on_stream: whether the stream goes on behind it, so that nothing can be folded into what reads it.
    """
    if full is None:
        return nn.LayerNorm(channels, eps)
    return NarrowNorm(channels, full, eps, affine=on_stream)


def narrow_arch(arch: Arch, widths: Sequence[int]) -> Arch:
    """Return the dims that are left when the stream of each stage keeps as many channels as `widths` says."""
    blocks: list[BlockDims] = []
    stage = 0
    for block in arch.blocks:
        if block.downsampled_from is not None and blocks:
            stage += 1
        before = None if block.downsampled_from is None else blocks[-1]
        blocks.append(
            dataclasses.replace(
                block,
                embed=widths[stage],
                full=block.full or block.embed,
                downsampled_from=None if before is None else before.embed,
                downsampled_full=None if before is None else before.full,
            )
        )
    return dataclasses.replace(arch, blocks=tuple(blocks))


def stages(arch: Arch) -> list[int]:
    """Return for each block the stage, counted from 0, whose stream it adds to."""
    found: list[int] = []
    for block in arch.blocks:
        found.append(found[-1] + (block.downsampled_from is not None) if found else 0)
    return found
