"""Compact Convolutional Transformers, in the layout of their published weights, registered with timm.

Importing this module makes `timm.create_model("cct_7_3x1")` work. Three published sizes:

- `cct_4_3x2`: 32 x 32 pixels, 4 blocks of width 128, two 3 x 3 convolutions; 0.48 M params with 10 classes.
- `cct_7_3x1`: 32 x 32 pixels, 7 blocks of width 256, one 3 x 3 convolution; 3.76 M params with 10 classes.
- `cct_14_7x2`: 224 x 224 pixels, 14 blocks of width 384, two 7 x 7 convolutions; 22.37 M with 1000 classes.

Shapes: B batch, N tokens, D width, H heads, K dims per head.
Reference: Hassani et al. 2021, Escaping the Big Data Paradigm with Compact Transformers, arXiv:2104.05704.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from timm.layers import DropPath, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from edgevit.models.arch import POOL, Tokenizer


@dataclass(frozen=True)
class CctDims:
    """Dims of a CCT."""

    embed: int
    depth: int
    heads: int
    mlp_ratio: int
    tokenizer: Tokenizer


CCT_4_3X2 = CctDims(128, 4, 2, 1, Tokenizer(inner=(64,), kernel=3, stride=1, padding=1))
CCT_7_3X1 = CctDims(256, 7, 4, 2, Tokenizer(inner=(), kernel=3, stride=1, padding=1))
CCT_14_7X2 = CctDims(384, 14, 6, 3, Tokenizer(inner=(64,), kernel=7, stride=2, padding=3))


class CctTokenizer(nn.Module):
    """Convolution, ReLU and max-pooling, once or more: [B, C, H, W] -> [B, N, D]."""

    def __init__(self, form: Tokenizer, channels: int, embed: int) -> None:
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, form.kernel, form.stride, form.padding, bias=False),
                    nn.ReLU(),
                    nn.MaxPool2d(POOL.kernel, POOL.stride, POOL.padding),
                )
                for before, after in pairwise((channels, *form.inner, embed))
            )
        )

    def forward(self, image: Tensor) -> Tensor:
        """Make the tokens of images."""
        tokens: Tensor = self.conv_layers(image).flatten(2).transpose(1, 2)
        return tokens


class CctAttention(nn.Module):
    """Multi-head attention whose queries, keys and values have no bias."""

    def __init__(self, embed: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = (embed // heads) ** -0.5
        self.qkv = nn.Linear(embed, 3 * embed, bias=False)
        self.attn_drop = nn.Dropout(0.1)
        self.proj = nn.Linear(embed, embed)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B, H, N, K]
        weights = self.attn_drop((q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1))
        out: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return out


class CctBlock(nn.Module):
    """Transformer block whose second norm acts on the residual stream itself."""

    def __init__(self, dims: CctDims, drop_path: float) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(dims.embed)
        self.self_attn = CctAttention(dims.embed, dims.heads)
        self.drop_path = DropPath(drop_path)
        self.norm1 = nn.LayerNorm(dims.embed)
        self.linear1 = nn.Linear(dims.embed, dims.mlp_ratio * dims.embed)
        self.activation = nn.GELU()
        self.linear2 = nn.Linear(dims.mlp_ratio * dims.embed, dims.embed)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        x = self.norm1(x + self.drop_path(self.self_attn(self.pre_norm(x))))
        out: Tensor = x + self.drop_path(self.linear2(self.activation(self.linear1(x))))
        return out


class CctClassifier(nn.Module):
    """Positions, blocks, sequence pooling and the classifier."""

    def __init__(self, dims: CctDims, tokens: int, classes: int, drop_path_rate: float) -> None:
        super().__init__()
        rates = [drop_path_rate * index / max(1, dims.depth - 1) for index in range(dims.depth)]
        self.positional_emb = nn.Parameter(trunc_normal_(torch.empty(1, tokens, dims.embed), std=0.2))
        blocks = nn.ModuleList(CctBlock(dims, rate) for rate in rates)
        self.blocks = cast(Sequence[CctBlock], blocks)  # a ModuleList forgets what its modules are
        self.norm = nn.LayerNorm(dims.embed)
        self.attention_pool = nn.Linear(dims.embed, 1)
        self.fc = nn.Linear(dims.embed, classes) if classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, N, D] to logits [B, classes]."""
        x = x + self.positional_emb
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        weights = self.attention_pool(x).softmax(dim=1)  # [B, N, 1]
        logits: Tensor = self.fc((weights.transpose(1, 2) @ x).squeeze(1))
        return logits


class CCT(nn.Module):
    """Compact Convolutional Transformer with learned positions."""

    def __init__(
        self,
        dims: CctDims,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.dims, self.in_chans, self.num_classes = dims, in_chans, num_classes
        height, width = to_2tuple(img_size)  # timm hands on either
        self.img_size: tuple[int, int] = (height, width)
        rows, columns = dims.tokenizer.grid(self.img_size)
        self.tokenizer = CctTokenizer(dims.tokenizer, in_chans, dims.embed)
        self.classifier = CctClassifier(dims, rows * columns, num_classes, drop_path_rate)
        self.apply(_init_weights)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, classes]."""
        logits: Tensor = self.classifier(self.tokenizer(image))
        return logits


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_LAYERS = {
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "first_conv": "tokenizer.conv_layers.0.0",
    "classifier": "classifier.fc",
}
_CIFAR_10 = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "crop_pct": 1.0,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    **_LAYERS,
}
default_cfgs: dict[str, dict[str, Any]] = {
    "cct_4_3x2": _CIFAR_10,
    "cct_7_3x1": _CIFAR_10,
    "cct_14_7x2": {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        **_LAYERS,
    },
}
"""What timm reads about the models: sizes and preprocessing. There are no weights to fetch."""


# timm hands its own options and the user's to an entry point by keyword; CCT refuses what it has no use for.
def cct_4_3x2(pretrained: bool = False, **options: Any) -> CCT:
    """Make a CCT-4/3x2 for images of 32 x 32 pixels."""
    model: CCT = build_model_with_cfg(CCT, "cct_4_3x2", pretrained, dims=CCT_4_3X2, **options)
    return model


def cct_7_3x1(pretrained: bool = False, **options: Any) -> CCT:
    """Make a CCT-7/3x1 for images of 32 x 32 pixels."""
    model: CCT = build_model_with_cfg(CCT, "cct_7_3x1", pretrained, dims=CCT_7_3X1, **options)
    return model


def cct_14_7x2(pretrained: bool = False, **options: Any) -> CCT:
    """Make a CCT-14/7x2 for images of 224 x 224 pixels."""
    model: CCT = build_model_with_cfg(CCT, "cct_14_7x2", pretrained, dims=CCT_14_7X2, **options)
    return model


for entry_point in (cct_4_3x2, cct_7_3x1, cct_14_7x2):
    register_model(entry_point)
