"""Toy Swin Transformers: timm's, seeded, and the dims of one as data."""

from __future__ import annotations

from functools import partial

from timm.models.swin_transformer import SwinTransformer
from toy_vits import fill

from edgevit.models.arch import Arch
from edgevit.models.layers import SlimViT
from edgevit.models.swin import from_swin

swin = partial(
    SwinTransformer,
    img_size=32,
    patch_size=4,
    window_size=4,
    embed_dim=16,
    depths=(2, 2),
    num_heads=(2, 4),
    num_classes=5,
)
"""8 x 8 tokens in windows of 4 x 4, every other one shifted, then 4 x 4 tokens in one; D 16 and 32, K 8."""


def toy_swin(seed: int = 0, spread: float = 0.3) -> SlimViT:
    """Return a slim form of a seeded Swin whose weights, biases and position biases are not zero."""
    return fill(from_swin(fill(swin(), seed, spread), "toy"), seed, spread)


SWIN: Arch = toy_swin().arch
