"""Toy models whose images choose hidden neurons, and whose MLPs read some channels only."""

from __future__ import annotations

import dataclasses

import torch
from toy_vits import ARCH, toy_model

from edgevit.models.arch import Arch
from edgevit.models.layers import SlimViT
from edgevit.plan import PerImage


def choosing_arch(arch: Arch = ARCH, how: PerImage | None = None, inputs: int | None = None) -> Arch:
    """Return dims whose blocks, but for the first, choose neurons and read `inputs` channels."""
    how = how or PerImage(10, class_weight=2.0 if arch.prefix else None)
    first, *others = arch.blocks
    blocks = (first, *(dataclasses.replace(b, per_image=how, mlp_inputs=inputs) for b in others))
    return dataclasses.replace(arch, blocks=blocks)


def chooser(arch: Arch | None = None, seed: int = 0) -> SlimViT:
    """Return a seeded random model of these dims (default: `choosing_arch` with 9 inputs).

    What its neurons are worth, and which channels its MLPs read, is random too.
    """
    model = toy_model(arch or choosing_arch(inputs=9), seed)
    generator = torch.Generator().manual_seed(seed + 7)
    for block in model.blocks:
        if block.mlp.choice is not None and block.mlp.choice.worth is not None:
            block.mlp.choice.worth.copy_(0.5 + torch.rand(block.dims.hidden, generator=generator))
        if block.mlp.inputs is not None:
            order = torch.randperm(block.dims.embed, generator=generator)
            block.mlp.inputs.copy_(order[: block.dims.mlp_width].sort().values)
    return model
