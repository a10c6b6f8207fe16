"""Toy Compact Convolutional Transformers, seeded, and the dims of one as data."""

from __future__ import annotations

from toy_vits import fill

from edgevit.models.arch import Arch, Tokenizer
from edgevit.models.cct import CCT, CctDims
from edgevit.models.from_cct import from_cct
from edgevit.models.layers import SlimViT

ONE_CONV = CctDims(embed=24, depth=3, heads=3, mlp_ratio=2, tokenizer=Tokenizer((), 3, 1, 1))
TWO_CONVS = CctDims(embed=24, depth=2, heads=3, mlp_ratio=3, tokenizer=Tokenizer((7,), 5, 2, 2))


def toy_cct(dims: CctDims = ONE_CONV, img_size: int = 8, seed: int = 0) -> CCT:
    """Return a seeded CCT whose every parameter is random and not zero: 4 x 4 tokens, K 8."""
    return fill(CCT(dims, img_size, num_classes=5), seed)


def toy_slim_cct(seed: int = 0) -> SlimViT:
    """Return the slim form of `toy_cct`."""
    return fill(from_cct(toy_cct(), "toy"), seed)


CCT_ARCH: Arch = toy_slim_cct().arch
