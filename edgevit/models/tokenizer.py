"""Convolutional tokenizer: tokens from small overlapping convolutions instead of one patch each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from edgevit.models.arch import POOL, Tokenizer


class ConvTokenizer(nn.Module):
    """Maps images [B, C, H, W] to a grid of tokens, [B, D, rows, columns].

    Each convolution, without bias, is followed by ReLU and max-pooling.

    Reference: Hassani et al. 2021, Compact Transformers, arXiv:2104.05704, section 3.3.
    """

    def __init__(self, form: Tokenizer, channels: int, embed: int) -> None:
        """Make the layers.

        Args:
            form: number, sizes and inner widths of the convolutions.
            channels: of the image.
            embed: D.
        """
        super().__init__()
        widths = pairwise((channels, *form.inner, embed))
        convs = nn.ModuleList(
            nn.Conv2d(before, after, form.kernel, form.stride, form.padding, bias=False)
            for before, after in widths
        )
        self.convs = cast(Sequence[nn.Conv2d], convs)  # a ModuleList forgets what its modules are

    def forward(self, image: Tensor) -> Tensor:
        """Make the tokens of images."""
        for conv in self.convs:
            image = functional.max_pool2d(
                functional.relu(conv(image)), POOL.kernel, POOL.stride, POOL.padding
            )
        return image
