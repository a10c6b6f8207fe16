"""Toy models whose weights are all random and not zero, made from dims alone, and images with few causes."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from edgevit.export.parity import Batch
from edgevit.models.anatomy import read_anatomy
from edgevit.models.arch import Arch, BlockDims, Reads
from edgevit.models.layers import SlimViT
from edgevit.plan import Choice, Counts, InputPlan, Plan, plan_from_counts
from edgevit.preprocess import Preprocess

TOKENS = 17  # a class token and 4 x 4 patches
DIMS = BlockDims(
    heads=3, qk_dim=8, vo_dim=8, hidden=40, tokens_in=TOKENS, tokens_out=TOKENS, queries=TOKENS, embed=24
)
ARCH = Arch(
    image=(3, 16, 16),
    patch=(4, 4),
    classes=5,
    prefix=1,
    reads="class",
    norm="before-pool",
    pre_norm=False,
    norm_eps=1e-6,
    activation="gelu",
    qk_norm=False,
    qkv_bias=True,
    scale=8**-0.5,
    blocks=(DIMS, DIMS, DIMS),
)
SOME_CHANNELS = dataclasses.replace(
    ARCH, gated=True, blocks=tuple(dataclasses.replace(block, mlp_inputs=16) for block in ARCH.blocks)
)
"""Gated, its MLPs reading 16 of 24 channels."""
PREPROCESS = Preprocess(
    resize=(20, 21), crop=(16, 16), interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
)


def toy_arch(reads: Reads = "class", prefix: int = 1, depth: int = 3) -> Arch:
    """Return the dims of a dense toy model: D 24, H 3, K = V = 8, F 40, image 16, patch 4, 5 classes."""
    tokens = 16 + prefix
    dims = dataclasses.replace(DIMS, tokens_in=tokens, tokens_out=tokens, queries=tokens)
    return dataclasses.replace(ARCH, reads=reads, prefix=prefix, blocks=(dims,) * depth)


FORMS = {
    "plain": ARCH,
    "distilled": toy_arch("class+distillation", 2),
    "mean": dataclasses.replace(toy_arch("mean"), norm="after-pool"),
    "qk-norm": dataclasses.replace(ARCH, qk_norm=True),
    "no qkv bias": dataclasses.replace(ARCH, qkv_bias=False),
    "pre-norm": dataclasses.replace(ARCH, pre_norm=True),
}
"""What plain Vision Transformers differ in."""

Model = TypeVar("Model", bound=nn.Module)


def fill(model: Model, seed: int = 0, spread: float = 0.3) -> Model:
    """Give every parameter a seeded random value; norms scale by about 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = spread * torch.randn(parameter.shape, generator=generator)
            is_norm_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + noise if is_norm_scale else noise)
    return model.eval().requires_grad_(False)


def toy_model(arch: Arch = ARCH, seed: int = 0) -> SlimViT:
    """Return a seeded random model of these dims."""
    return fill(SlimViT(arch), seed)


def toy_plan(model: SlimViT, counts: Counts, *, dead_tokens: bool = False) -> Plan:
    """Return the plan that keeps `counts` of a model."""
    return plan_from_counts(read_anatomy(model.arch), counts, dead_tokens=dead_tokens)


def fewer_tokens(plan: Plan, place: int | None, tokens: int, choice: Choice | None) -> Plan:
    """Return the plan with `tokens` from behind a block's attention on, or from the first block on (None)."""
    blocks = [
        dataclasses.replace(
            block,
            tokens=block.tokens if index < (place or 0) else tokens,
            choice=choice if index == place else block.choice,
        )
        for index, block in enumerate(plan.blocks)
    ]
    entering = InputPlan(tokens, choice) if place is None else plan.input
    return dataclasses.replace(plan, blocks=tuple(blocks), input=entering)


def noise_images(count: int, arch: Arch = ARCH, seed: int = 1) -> Tensor:
    """Return images of independent pixels."""
    return torch.randn(count, *arch.image, generator=torch.Generator().manual_seed(seed))


def single_images(count: int, arch: Arch = ARCH) -> list[Batch]:
    """Return images of independent pixels one by one, [1, C, H, W] each, float32, as runtimes take them."""
    return list(np.random.default_rng(0).standard_normal((count, 1, *arch.image)).astype(np.float32))


def few_cause_images(count: int, arch: Arch = ARCH, seed: int = 2, causes: int = 6) -> Tensor:
    """Return images that mix a few patterns, so that activations are correlated as those of photos are."""
    mixing = torch.randn(causes, *arch.image, generator=torch.Generator().manual_seed(99))
    amounts = torch.randn(count, causes, generator=torch.Generator().manual_seed(seed))
    return torch.einsum("nc,cxyz->nxyz", amounts, mixing) + 0.05 * noise_images(count, arch, seed + 1)
