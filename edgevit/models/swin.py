"""timm's Swin Transformers turned into `SlimViT`: windows, their shift, and patch merging."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from timm import layers
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerStage,
    WindowAttention,
)
from torch import nn

from edgevit.models.arch import Arch, BlockDims, Window
from edgevit.models.downsample import Downsample
from edgevit.models.layers import SlimViT
from edgevit.models.timm_blocks import (
    NO_CLASSIFIER,
    activation_name,
    copy_affine,
    copy_block,
    refuse_forms,
    unknown_mlp_forms,
    unknown_norms,
)


def from_swin(model: SwinTransformer, name: str) -> SlimViT:
    """Convert a timm Swin Transformer into a dense `SlimViT` with equal outputs (to fp32 rounding).

    The table of relative position biases is written out, one number for each head and pair of tokens.

    Args:
        model: what `timm.create_model` returned, with a classifier.
        name: what the user called it; used in messages.

    Raises:
        UnsupportedModelError: a form that edgevit does not know; each is listed.
    """
    refuse_forms(name, "Swin Transformer", _unknown_forms(model))
    slim = SlimViT(_read_arch(model)).eval()
    with torch.no_grad():
        assert isinstance(slim.patch_embed, nn.Conv2d)
        copy_affine(model.patch_embed.proj, slim.patch_embed)
        if isinstance(slim.norm_pre, nn.LayerNorm):
            copy_affine(model.patch_embed.norm, slim.norm_pre)
        for (stage, source), target in zip(_blocks(model), slim.blocks, strict=True):
            if isinstance(target.downsample, Downsample):
                copy_affine(stage.downsample.norm, target.downsample.norm)
                copy_affine(stage.downsample.reduction, target.downsample.reduction)
            ones = torch.ones_like(target.norm1.weight)
            copy_block(source, target, (ones, ones))
            # The scale is one number for the model; a stage of wider heads has the rest in its queries.
            ratio = source.attn.scale / slim.arch.scale
            target.attn.q.weight.mul_(ratio)
            if target.attn.q.bias is not None:
                target.attn.q.bias.mul_(ratio)
            assert target.attn.position_bias is not None
            target.attn.position_bias.copy_(source.attn._get_rel_pos_bias()[0])
        assert isinstance(slim.norm, nn.LayerNorm)
        copy_affine(model.norm, slim.norm)
        copy_affine(model.head.fc, slim.head)
    return slim


def _blocks(model: SwinTransformer) -> Iterator[tuple[SwinTransformerStage, SwinTransformerBlock]]:
    """Yield every block with its stage."""
    for stage in model.layers:
        for block in stage.blocks:
            yield stage, block


def _unknown_forms(model: SwinTransformer) -> list[str]:
    """List, in words, what this model has that `SlimViT` has no place for."""
    embedding = model.patch_embed
    checks = [
        (type(embedding) is not layers.PatchEmbed, f"patch embedding {type(embedding).__name__}"),
        (model.global_pool != "avg", f"global_pool = {model.global_pool!r}"),
        (not isinstance(model.head.fc, nn.Linear), NO_CLASSIFIER),
        (model.dynamic_img_size, "dynamic_img_size = true: an exported graph has one image size"),
    ]
    problems = [problem for found, problem in checks if found]
    norms = [model.norm, embedding.norm]
    norms += [stage.downsample.norm for stage in model.layers[1:]]
    problems += unknown_norms(norms)
    for index, (_, block) in enumerate(_blocks(model)):
        problems += [f"blocks.{index}: {problem}" for problem in _unknown_block_forms(block)]
    return problems + _uneven_grids(model)


def _unknown_block_forms(block: SwinTransformerBlock) -> list[str]:
    if type(block.attn) is not WindowAttention or type(block.mlp) is not layers.Mlp:
        found = f"{type(block.attn).__name__} and {type(block.mlp).__name__}"
        return [f"{found} where WindowAttention and Mlp are expected"]
    return unknown_mlp_forms(block.mlp) + unknown_norms((block.norm1, block.norm2))


def _uneven_grids(model: SwinTransformer) -> list[str]:
    """List the stages whose grid needs padding, which timm does and a graph should not."""
    advice = "Set model.options img_size or window_size so that it divides."
    problems = []
    grids = [stage.blocks[0].input_resolution for stage in model.layers]
    for index, stage in enumerate(model.layers):
        (rows, columns), (height, width) = grids[index], stage.blocks[0].window_size
        if rows % height or columns % width:
            problems.append(
                f"stage {index}: a grid of {rows} x {columns} tokens is no multiple of its windows, "
                f"{height} x {width}. {advice}"
            )
    for index, (before, after) in enumerate(pairwise(grids)):
        if (before[0], before[1]) != (2 * after[0], 2 * after[1]):
            problems.append(
                f"stage {index}: a grid of {before[0]} x {before[1]} tokens cannot be merged 2 x 2. {advice}"
            )
    return problems


def _read_arch(model: SwinTransformer) -> Arch:
    embedding, first = model.patch_embed, model.layers[0].blocks[0]
    height, width = embedding.img_size
    activation = activation_name(first.mlp.act)
    assert activation is not None
    return Arch(
        image=(int(model.in_chans), int(height), int(width)),
        patch=(int(embedding.patch_size[0]), int(embedding.patch_size[1])),
        classes=int(model.num_classes),
        prefix=0,
        reads="mean",
        norm="before-pool",
        pre_norm=isinstance(embedding.norm, nn.LayerNorm),
        norm_eps=float(first.norm1.eps),
        activation=activation,
        qk_norm=False,
        qkv_bias=first.attn.qkv.bias is not None,
        scale=float(first.attn.scale),
        blocks=tuple(_read_block(stage, block) for stage, block in _blocks(model)),
        position=False,
    )


def _read_block(stage: SwinTransformerStage, block: SwinTransformerBlock) -> BlockDims:
    rows, columns = block.input_resolution
    head = block.attn.qkv.out_features // 3 // block.attn.num_heads
    merges = stage.blocks[0] is block and not isinstance(stage.downsample, nn.Identity)
    return BlockDims(
        heads=block.attn.num_heads,
        qk_dim=head,
        vo_dim=head,
        hidden=block.mlp.fc1.out_features,
        tokens_in=rows * columns,
        tokens_out=rows * columns,
        queries=rows * columns,
        embed=int(block.dim),
        window=Window(_pair(block.window_size), _pair(block.shift_size), (rows, columns)),
        downsampled_from=int(stage.downsample.dim) if merges else None,
    )


def _pair(values: tuple[int, int]) -> tuple[int, int]:
    return (int(values[0]), int(values[1]))
