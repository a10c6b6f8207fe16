"""Stochastic depth: while a model trains, the residual branches of some images are left out.

B batch, N tokens, D embed width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from edgevit.models.layers import SlimViT


@contextmanager
def dropping_paths(model: SlimViT, rate: float) -> Iterator[None]:
    """Leave out branches of `model` in training mode, until the block ends; the model itself stays as it is.

    The rate rises from 0 in the first block to `rate` in the last, as timm has it. What a branch adds is
    scaled by 1 / (1 - rate) where it stays, so that its mean is the same.

    Args:
        model: whose attentions and MLPs are left out.
        rate: share of images, 0..1, in the last block.

    Reference: Huang et al. 2016, arXiv:1603.09382; per image as in timm.
    """
    with ExitStack() as stack:
        last = max(1, len(model.blocks) - 1)
        for index, block in enumerate(model.blocks):
            own = rate * index / last
            for branch in (block.attn.proj, block.mlp) if own else ():
                stack.callback(branch.register_forward_hook(_Drop(own)).remove)
        yield


class _Drop:
    """A forward hook that multiplies what a branch adds, [B, N, D], by 0 or 1 / (1 - rate) for each image."""

    def __init__(self, rate: float) -> None:
        self.keep = 1 - rate

    def __call__(self, branch: nn.Module, inputs: tuple[Tensor, ...], added: Tensor) -> Tensor | None:
        if not branch.training:
            return None
        kept = torch.empty(len(added), 1, 1, dtype=added.dtype, device=added.device).bernoulli_(self.keep)
        return added * (kept / self.keep)
