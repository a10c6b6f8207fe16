"""Toy models of every family whose residual streams are cut, and the same with zeros instead."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from toy_ccts import toy_slim_cct
from toy_dinos import toy_dino
from toy_swins import toy_swin
from toy_vits import ARCH, fill, toy_arch, toy_model

from edgevit.models.downsample import Downsample
from edgevit.models.layers import SlimViT
from edgevit.models.narrow import NarrowNorm, stages
from edgevit.plan import Indices

MODELS = {
    "plain": lambda: toy_model(),
    "distilled": lambda: toy_model(toy_arch("class+distillation", 2)),
    "mean": lambda: toy_model(dataclasses.replace(toy_arch("mean"), norm="after-pool")),
    "mean of all, no class token": lambda: toy_model(
        dataclasses.replace(toy_arch("mean", prefix=0), norm="none")
    ),
    "CLIP": lambda: toy_model(dataclasses.replace(ARCH, pre_norm=True)),
    "qk-norm": lambda: toy_model(dataclasses.replace(ARCH, qk_norm=True)),
    "no qkv bias": lambda: toy_model(dataclasses.replace(ARCH, qkv_bias=False)),
    "gated": lambda: toy_model(dataclasses.replace(ARCH, gated=True, activation="silu")),
    "Swin": toy_swin,
    "DINOv3": toy_dino,
    "CCT": toy_slim_cct,
}


def some_channels(model: SlimViT) -> tuple[Indices, ...]:
    """Return two thirds of the channels of each stage."""
    widths = dict(zip(stages(model.arch), (block.embed for block in model.arch.blocks), strict=True))
    return tuple(tuple(c for c in range(width) if c % 3 != 1) for width in widths.values())


def with_zero_channels(model: SlimViT, kept: Sequence[Indices]) -> SlimViT:
    """Return the model with zeros in everything that is added to the channels that go."""
    masked = copy.deepcopy(model)
    places = stages(model.arch)
    gone = [
        [c for c in range(model.arch.blocks[places.index(stage)].embed) if c not in channels]
        for stage, channels in enumerate(kept)
    ]
    with torch.no_grad():
        embedding = list(masked.patch_embed.modules())[-1]
        assert isinstance(embedding, torch.nn.Conv2d)
        layers = [(embedding, 0)]
        masked.prefix[..., gone[0]] = 0
        if masked.position is not None:
            masked.position[..., gone[0]] = 0
        norms = [(masked.norm_pre, 0)] if isinstance(masked.norm_pre, torch.nn.LayerNorm) else []
        for block, stage in zip(masked.blocks, places, strict=True):
            layers += [(block.attn.proj, stage), (block.mlp.fc2, stage)]
            if isinstance(block.downsample, Downsample):
                layers.append((block.downsample.reduction, stage))
            if model.arch.norm2_on_stream:
                norms.append((block.norm2, stage))
        for layer, stage in (*layers, *norms):
            layer.weight[gone[stage]] = 0
            if layer.bias is not None:
                layer.bias[gone[stage]] = 0
    return masked


def narrow_toy(name: str) -> SlimViT:
    """Return a toy model without a third of its channels, all its weights random again."""
    from edgevit.slim.channels import cut_channels

    dense = MODELS[name]()
    narrow = fill(cut_channels(dense, some_channels(dense)))
    assert any(isinstance(module, NarrowNorm) for module in narrow.modules())
    return narrow
