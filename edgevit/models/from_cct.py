"""Compact Convolutional Transformers turned into `SlimViT`."""

from __future__ import annotations

import torch
from torch import nn

from edgevit.errors import UnsupportedModelError
from edgevit.models.arch import Arch, BlockDims
from edgevit.models.cct import CCT
from edgevit.models.layers import SlimViT
from edgevit.models.timm_blocks import NO_CLASSIFIER, copy_affine, copy_attention
from edgevit.models.tokenizer import ConvTokenizer


def from_cct(model: CCT, name: str) -> SlimViT:
    """Convert a CCT into a dense `SlimViT` with equal outputs (to fp32 rounding).

    The bias of the sequence pooling adds one number to all tokens' logits, which softmax ignores: it is gone.

    Raises:
        UnsupportedModelError: no classifier; `name` is what the user called the model.
    """
    if not model.num_classes:
        raise UnsupportedModelError(f"model {name}: {NO_CLASSIFIER}.")
    slim = SlimViT(_read_arch(model)).eval()
    head = model.classifier
    with torch.no_grad():
        assert isinstance(slim.patch_embed, ConvTokenizer)
        convs = [layer for layer in model.tokenizer.modules() if isinstance(layer, nn.Conv2d)]
        for layer, conv in zip(convs, slim.patch_embed.convs, strict=True):
            conv.weight.copy_(layer.weight)
        assert slim.position is not None
        slim.position.copy_(head.positional_emb)
        for source, target in zip(head.blocks, slim.blocks, strict=True):
            copy_affine(source.pre_norm, target.norm1)
            copy_affine(source.norm1, target.norm2)
            copy_attention(source.self_attn, target.attn, torch.ones_like(target.norm1.weight))
            copy_affine(source.linear1, target.mlp.fc1)
            copy_affine(source.linear2, target.mlp.fc2)
        assert isinstance(slim.norm, nn.LayerNorm)
        copy_affine(head.norm, slim.norm)
        assert slim.sequence_pool is not None
        slim.sequence_pool.weight.copy_(head.attention_pool.weight)
        assert isinstance(head.fc, nn.Linear)
        copy_affine(head.fc, slim.head)
    return slim


def _read_arch(model: CCT) -> Arch:
    dims = model.dims
    height, width = model.img_size
    rows, columns = dims.tokenizer.grid(model.img_size)
    tokens, head = rows * columns, dims.embed // dims.heads
    block = BlockDims(dims.heads, head, head, dims.mlp_ratio * dims.embed, tokens, tokens, tokens, dims.embed)
    return Arch(
        image=(model.in_chans, height, width),
        patch=(height // rows, width // columns),
        classes=model.num_classes,
        prefix=0,
        reads="sequence",
        norm="before-pool",
        pre_norm=False,
        norm_eps=1e-5,
        activation="gelu",
        qk_norm=False,
        qkv_bias=False,
        scale=head**-0.5,
        blocks=(block,) * dims.depth,
        tokenizer=dims.tokenizer,
        norm2_on_stream=True,
    )
