"""timm's EVA Vision Transformers, DINOv3 among them, turned into `SlimViT`: rotary positions, gated MLPs."""

from __future__ import annotations

import torch
from timm import layers
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn

from edgevit.models.arch import Arch, BlockDims
from edgevit.models.layers import SlimAttention, SlimViT
from edgevit.models.timm_blocks import (
    NO_CLASSIFIER,
    activation_name,
    copy_affine,
    copy_mlp,
    copy_stem_and_head,
    is_gated,
    norm_place,
    refuse_forms,
    unknown_block_forms,
    unknown_norms,
)

_ROPES = (layers.RotaryEmbeddingCat, layers.RotaryEmbeddingDinoV3)


def from_eva(model: Eva, name: str) -> SlimViT:
    """Convert a timm EVA or DINOv3 model into a dense `SlimViT` with equal outputs (to fp32 rounding).

    Rotary angles are those of the image size that the model was made with.

    Args:
        model: what `timm.create_model` returned, with a classifier.
        name: what the user called it; used in messages.

    Raises:
        UnsupportedModelError: a form that edgevit does not know; each is listed.
    """
    refuse_forms(name, "Vision Transformer of timm's EVA kind", _unknown_forms(model))
    slim = SlimViT(_read_arch(model)).eval()
    with torch.no_grad():
        copy_stem_and_head(model, slim)
        for source, target in zip(model.blocks, slim.blocks, strict=True):
            copy_affine(source.norm1, target.norm1)
            copy_affine(source.norm2, target.norm2)
            ones = torch.ones_like(target.norm1.weight)
            _copy_attention(source.attn, target.attn, ones if source.gamma_1 is None else source.gamma_1)
            _copy_angles(model, target.attn)
            copy_mlp(source.mlp, target.mlp, ones if source.gamma_2 is None else source.gamma_2)
    return slim


def _unknown_forms(model: Eva) -> list[str]:
    """List, in words, what this model has that `SlimViT` has no place for."""
    checks = [
        (model.patch_drop is not None, "patch dropout"),
        (model.global_pool not in ("token", "avg"), f"global_pool = {model.global_pool!r}"),
        (not isinstance(model.head, nn.Linear), NO_CLASSIFIER),
        (model.rope is not None and type(model.rope) not in _ROPES, f"positions {type(model.rope).__name__}"),
    ]
    problems = [problem for found, problem in checks if found]
    problems += unknown_norms((model.norm, model.fc_norm, model.norm_pre))
    for index, block in enumerate(model.blocks):
        found = unknown_block_forms(block, EvaBlock, EvaAttention)
        problems += [f"blocks.{index}: {problem}" for problem in found]
    return problems


def _read_arch(model: Eva) -> Arch:
    embedding, first = model.patch_embed, model.blocks[0]
    height, width = embedding.img_size
    prefix = int(model.num_prefix_tokens)
    tokens = prefix + int(embedding.num_patches)
    activation = activation_name(first.mlp.act)
    assert activation is not None
    dims = BlockDims(
        heads=first.attn.num_heads,
        qk_dim=first.attn.head_dim,
        vo_dim=first.attn.head_dim,
        hidden=first.mlp.fc2.in_features,
        tokens_in=tokens,
        tokens_out=tokens,
        queries=tokens,
        embed=int(model.embed_dim),
    )
    return Arch(
        image=(int(model.in_chans), int(height), int(width)),
        patch=(int(embedding.patch_size[0]), int(embedding.patch_size[1])),
        classes=int(model.num_classes),
        prefix=prefix,
        reads="class" if model.global_pool == "token" else "mean",
        norm=norm_place(model),
        pre_norm=isinstance(model.norm_pre, nn.LayerNorm),
        norm_eps=float(first.norm1.eps),
        activation=activation,
        qk_norm=isinstance(first.attn.q_norm, nn.LayerNorm),
        qkv_bias=_biases(first.attn)[0] is not None,
        scale=float(first.attn.scale),
        blocks=(dims,) * len(model.blocks),
        position=model.pos_embed is not None,
        gated=is_gated(first.mlp),
        rotary=model.rope is not None,
    )


def _weights(source: EvaAttention) -> tuple[Tensor, Tensor, Tensor]:
    if source.qkv is None:
        return source.q_proj.weight, source.k_proj.weight, source.v_proj.weight
    q, k, v = source.qkv.weight.chunk(3)
    return q, k, v


def _biases(source: EvaAttention) -> tuple[Tensor | None, Tensor | None]:
    """Return the biases of queries and values; keys have none."""
    if source.qkv is None:
        return source.q_proj.bias, source.v_proj.bias
    return source.q_bias, source.v_bias


def _copy_attention(source: EvaAttention, target: SlimAttention, factors: Tensor) -> None:
    """Copy an attention; value bias and `factors` (LayerScale, [D]) are folded into the projection."""
    order = _halves_of_pairs(source)
    rows = torch.arange(target.heads).unsqueeze(1) * target.qk_dim + order  # [H, K]
    q, k, v = _weights(source)
    q_bias, v_bias = _biases(source)
    target.q.weight.copy_(q[rows.flatten()])
    target.k.weight.copy_(k[rows.flatten()])
    target.v.weight.copy_(v)
    if q_bias is not None:
        target.q.bias.copy_(q_bias[rows.flatten()])
    if target.k.bias is not None:
        target.k.bias.zero_()
    for norm, ours in ((source.q_norm, target.q_norm), (source.k_norm, target.k_norm)):
        if isinstance(ours, nn.LayerNorm):
            ours.weight.copy_(norm.weight[order])
            ours.bias.copy_(norm.bias[order])
    bias = source.proj.bias if v_bias is None else source.proj.bias + source.proj.weight @ v_bias
    target.proj.weight.copy_(source.proj.weight * factors.unsqueeze(1))
    target.proj.bias.copy_(bias * factors)


def _halves_of_pairs(source: EvaAttention) -> Tensor:
    """Return the QK dims of a head in the order that puts the partners of a rotation K / 2 apart, int64 [K].

    Where timm turns neighbours instead, reordering the dims of queries and keys alike changes no logit.
    """
    dims = torch.arange(source.head_dim)
    return dims if source.rotate_half else torch.cat([dims[0::2], dims[1::2]])


def _copy_angles(model: Eva, target: SlimAttention) -> None:
    """Copy the angles of the patches; prefix tokens keep angle 0."""
    if target.rotary is None:
        return
    sin, cos = model.rope.get_embed(shape=list(model.patch_embed.grid_size)).chunk(2, dim=-1)
    order, prefix = _halves_of_pairs(model.blocks[0].attn), model.num_prefix_tokens
    target.rotary.cos[prefix:] = cos[:, order]
    target.rotary.sin[prefix:] = sin[:, order]
