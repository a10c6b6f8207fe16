"""timm's plain Vision Transformers (ViT, DeiT, DeiT-3, distilled, mean-pooled) turned into `SlimViT`."""

from __future__ import annotations

import torch
from timm import layers
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from edgevit.models.arch import Arch, BlockDims, Reads
from edgevit.models.layers import SlimBlock, SlimViT
from edgevit.models.timm_blocks import (
    NO_CLASSIFIER,
    activation_name,
    copy_block,
    copy_stem_and_head,
    is_gated,
    norm_place,
    refuse_forms,
    unknown_block_forms,
    unknown_norms,
)


def from_vit(model: VisionTransformer, name: str) -> SlimViT:
    """Convert a plain timm ViT into a dense `SlimViT` with equal outputs (to fp32 rounding).

    Args:
        model: what `timm.create_model` returned, with a classifier.
        name: what the user called it; used in messages.

    Raises:
        UnsupportedModelError: a form that edgevit does not know; each is listed.
    """
    refuse_forms(name, "Vision Transformer", _unknown_forms(model))
    slim = SlimViT(_read_arch(model)).eval()
    with torch.no_grad():
        copy_stem_and_head(model, slim)
        for source, target in zip(model.blocks, slim.blocks, strict=True):
            factors = _layer_scale(source.ls1, target), _layer_scale(source.ls2, target)
            copy_block(source, target, factors)
    return slim


def _unknown_forms(model: VisionTransformer) -> list[str]:
    """List, in words, what this model has that `SlimViT` has no place for."""
    pooling = model.global_pool
    checks = [
        (
            type(model.patch_embed) is not layers.PatchEmbed,
            f"patch embedding {type(model.patch_embed).__name__}",
        ),
        (
            not isinstance(getattr(model.patch_embed, "norm", None), nn.Identity),
            "a norm in the patch embedding",
        ),
        (not isinstance(model.patch_drop, nn.Identity), "patch dropout"),
        (model.attn_pool is not None, "an attention-pooling head (global_pool = 'map')"),
        (pooling not in ("token", "avg") and model.attn_pool is None, f"global_pool = {pooling!r}"),
        (not isinstance(model.head, nn.Linear), NO_CLASSIFIER),
        (model.dynamic_img_size, "dynamic_img_size = true: an exported graph has one image size"),
    ]
    problems = [problem for found, problem in checks if found]
    problems += unknown_norms((model.norm, model.fc_norm, model.norm_pre))
    for index, block in enumerate(model.blocks):
        problems += [f"blocks.{index}: {problem}" for problem in _unknown_block_forms(block)]
    return problems


def _unknown_block_forms(block: Block) -> list[str]:
    problems = unknown_block_forms(block, Block, Attention)
    for scale in (getattr(block, name, nn.Identity()) for name in ("ls1", "ls2")):
        if not isinstance(scale, layers.LayerScale | nn.Identity):
            problems.append(f"{type(scale).__name__} where LayerScale is expected")
    return problems


def _read_arch(model: VisionTransformer) -> Arch:
    embedding, first = model.patch_embed, model.blocks[0]
    height, width = embedding.img_size
    prefix = int(model.num_prefix_tokens)
    tokens = prefix + int(embedding.num_patches)
    activation = activation_name(first.mlp.act)
    assert activation is not None
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    return Arch(
        image=(int(model.in_chans), int(height), int(width)),
        patch=(int(embedding.patch_size[0]), int(embedding.patch_size[1])),
        classes=int(model.num_classes),
        prefix=prefix,
        reads=_reads(model),
        norm=norm_place(model),
        pre_norm=isinstance(model.norm_pre, nn.LayerNorm),
        norm_eps=float(norms[0].eps) if norms else 1e-6,
        activation=activation,
        qk_norm=isinstance(first.attn.q_norm, nn.LayerNorm),
        qkv_bias=first.attn.qkv.bias is not None,
        scale=float(first.attn.scale),
        blocks=tuple(
            BlockDims(
                heads=block.attn.num_heads,
                qk_dim=block.attn.head_dim,
                vo_dim=block.attn.head_dim,
                hidden=block.mlp.fc2.in_features,
                tokens_in=tokens,
                tokens_out=tokens,
                queries=tokens,
                embed=int(model.embed_dim),
            )
            for block in model.blocks
        ),
        gated=is_gated(first.mlp),
    )


def _reads(model: VisionTransformer) -> Reads:
    if hasattr(model, "head_dist"):
        return "class+distillation"
    if model.global_pool == "token":
        return "class"
    return "mean+prefix" if model.pool_include_prefix else "mean"


def _layer_scale(scale: layers.LayerScale | nn.Identity, target: SlimBlock) -> Tensor:
    """Return LayerScale's factors, [D]; ones where the block has none."""
    if isinstance(scale, nn.Identity):
        return torch.ones_like(target.norm1.weight)
    factors: Tensor = scale.gamma
    return factors
