"""Slim modules with explicit dims: attention whose QK and VO dims are free, MLP, and static token merging.

Shapes: B batch, N tokens, P prefix tokens, D embed width, H heads, K qk dims, V vo dims, F hidden neurons,
Q tokens that are still alive (Q = N unless the block drops dead tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevit.models.arch import Activation, Arch, BlockDims
from edgevit.models.downsample import Downsample
from edgevit.models.rotary import Rotary
from edgevit.models.tokenizer import ConvTokenizer
from edgevit.models.windows import Windows


class SlimAttention(nn.Module):
    """Multi-head attention with its own number of heads, QK dims and VO dims; the softmax scale is given.

    Where the block has windows, what comes in is `split` into them first and what goes out is `join`ed: each
    window is then a sequence of its own, and B and N below are those of the windows.
    """

    def __init__(self, dims: BlockDims, arch: Arch) -> None:
        super().__init__()
        self.heads, self.qk_dim, self.vo_dim = dims.heads, dims.qk_dim, dims.vo_dim
        self.scale = arch.scale
        self.q = nn.Linear(dims.embed, dims.heads * dims.qk_dim, bias=arch.qkv_bias)
        # A key bias adds the same number to all logits of a query, which softmax ignores; only a norm
        # between them makes it count. A value bias passes the softmax unchanged: it lives in proj.bias.
        self.k = nn.Linear(dims.embed, dims.heads * dims.qk_dim, bias=arch.qkv_bias and arch.qk_norm)
        self.v = nn.Linear(dims.embed, dims.heads * dims.vo_dim, bias=False)
        self.q_norm = nn.LayerNorm(dims.qk_dim, arch.norm_eps) if arch.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dims.qk_dim, arch.norm_eps) if arch.qk_norm else nn.Identity()
        self.rotary = Rotary(dims.tokens_in, dims.qk_dim) if arch.rotary else None
        self.proj = nn.Linear(dims.heads * dims.vo_dim, dims.embed)
        self.windows = None if dims.window is None else Windows(dims.window)
        area = 0 if dims.window is None else dims.window.area
        self.position_bias = nn.Parameter(torch.zeros(dims.heads, area, area)) if area else None

    def split(self, y: Tensor) -> Tensor:
        """Cut tokens [B, N, D] into windows, where the block has them."""
        return y if self.windows is None else self.windows.split(y)

    def join(self, mixed: Tensor) -> Tensor:
        """Put what leaves the windows together again, where the block has them."""
        return mixed if self.windows is None else self.windows.join(mixed)

    def queries(self, y: Tensor) -> Tensor:
        """Map [B, Q, D] to scaled queries [B, H, Q, K]."""
        q: Tensor = self.q_norm(self.q(y).unflatten(-1, (self.heads, self.qk_dim)).transpose(1, 2))
        if self.rotary is not None:
            q = self.rotary(q)
        return q * self.scale  # [B, H, Q, K]

    def keys(self, y: Tensor) -> Tensor:
        """Map [B, N, D] to keys [B, H, N, K]."""
        k: Tensor = self.k_norm(self.k(y).unflatten(-1, (self.heads, self.qk_dim)).transpose(1, 2))
        return k if self.rotary is None else self.rotary(k)  # [B, H, N, K]

    def values(self, y: Tensor) -> Tensor:
        """Map [B, N, D] to values [B, H, N, V]."""
        v: Tensor = self.v(y).unflatten(-1, (self.heads, self.vo_dim)).transpose(1, 2)
        return v  # [B, H, N, V]

    def logits(self, y: Tensor, keys: Tensor, queries: int, sizes: Tensor | None) -> Tensor:
        """Return what the softmax gets, [B, H, Q, N].

        Args:
            y: normalised tokens, [B, N, D].
            keys: from `keys`, [B, H, N, K].
            queries: Q, the leading tokens that are still alive.
            sizes: how many original tokens each token stands for, [B, N, 1]; None where all are 1.
                Logits get + log(size), so that a merged token attracts as much as its parts did.
        """
        logits = self.queries(y[:, :queries]) @ keys.transpose(-2, -1)  # [B, H, Q, N]
        if sizes is not None:
            logits = logits + sizes.log().transpose(1, 2).unsqueeze(1)  # [B, 1, 1, N]
        if self.position_bias is None or self.windows is None:
            return logits
        return self.windows.block_strangers(logits + self.position_bias)

    def mix(self, y: Tensor, keys: Tensor, queries: int, sizes: Tensor | None) -> Tensor:
        """Return the heads' outputs side by side, [B, Q, H*V], from the arguments of `logits`."""
        mixed = self.logits(y, keys, queries, sizes).softmax(dim=-1) @ self.values(y)  # [B, H, Q, V]
        return mixed.transpose(1, 2).flatten(2)  # [B, Q, H*V]


class SlimMlp(nn.Module):
    """Two linear layers around an activation, with its own number of hidden neurons.

    Where the model is gated (SwiGLU), `gate` feeds the activation and `fc1` multiplies what it gives.
    """

    def __init__(self, dims: BlockDims, arch: Arch) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims.embed, dims.hidden)
        self.gate = nn.Linear(dims.embed, dims.hidden) if arch.gated else None
        self.activation: Activation = arch.activation
        self.fc2 = nn.Linear(dims.hidden, dims.embed)

    def neurons(self, y: Tensor) -> Tensor:
        """Return the activations of the hidden neurons, [B, N, D] -> [B, N, F]."""
        if self.gate is None:
            return activate(self.fc1(y), self.activation)
        gated: Tensor = activate(self.gate(y), self.activation) * self.fc1(y)
        return gated

    def forward(self, y: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        out: Tensor = self.fc2(self.neurons(y))
        return out


class TokenMatch(NamedTuple):
    """Which patch tokens are merged into which: indices count within their own alternating set."""

    order: Tensor  # int64 [B, A]: set a by falling similarity; the first `merged` are merged
    onehot: Tensor  # float [B, C, merged]: 1 where a merged token goes into that token of set c
    prefix: int
    merged: int


def match_tokens(keys: Tensor, prefix: int, merged: int) -> TokenMatch:
    """Match each patch token of the even set with its most similar one of the odd set.

    Args:
        keys: what similarity (cosine) is measured on, [B, N, E].
        prefix: P, the leading tokens that are never merged.
        merged: how many of the best matches are merged; at most half of the patch tokens, rounded up.

    Reference: Bolya et al. 2023, arXiv:2210.09461, bipartite soft matching.
    Differs: a constant number per block, and pooling by a one-hot product, the form every parser takes.
    """
    metric = functional.normalize(keys[:, prefix:], dim=-1)
    scores = metric[:, 0::2] @ metric[:, 1::2].transpose(-2, -1)  # [B, A, C]
    best, partner = scores.max(dim=-1)  # [B, A]
    order = best.topk(best.shape[1], dim=-1).indices
    target = partner.gather(1, order[:, :merged])  # [B, merged]
    column = torch.arange(scores.shape[2], device=keys.device).view(1, -1, 1)
    onehot = (column == target.unsqueeze(1)).to(keys.dtype)  # [B, C, merged]
    return TokenMatch(order, onehot, prefix, merged)


def pool_tokens(x: Tensor, sizes: Tensor | None, match: TokenMatch) -> tuple[Tensor, Tensor]:
    """Replace merged tokens by size-weighted means.

    Args:
        x: tokens, [B, N, D].
        sizes: original tokens that each stands for, [B, N, 1]; None where all are 1.
        match: from `match_tokens`.

    Returns:
        Tokens [B, N - merged, D] (prefix, unmerged of set a, set c) and their sizes [B, N - merged, 1].
    """
    ones = torch.ones_like(x[:, :, :1]) if sizes is None else sizes
    a = _by_order(x[:, match.prefix :: 2], match.order)
    a_size = _by_order(ones[:, match.prefix :: 2], match.order)
    c, c_size = x[:, match.prefix + 1 :: 2], ones[:, match.prefix + 1 :: 2]
    moved, moved_size = a[:, : match.merged], a_size[:, : match.merged]
    size = c_size + match.onehot @ moved_size  # [B, C, 1]
    mean = (c * c_size + match.onehot @ (moved * moved_size)) / size  # [B, C, D]
    tokens = torch.cat([x[:, : match.prefix], a[:, match.merged :], mean], dim=1)
    return tokens, torch.cat([ones[:, : match.prefix], a_size[:, match.merged :], size], dim=1)


def _by_order(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class SlimBlock(nn.Module):
    """Pre-norm transformer block; merges tokens after the attention when its dims say so.

    A block in front of which 2 x 2 patches are merged does that itself, so that models of all families are
    a row of blocks.
    """

    def __init__(self, dims: BlockDims, arch: Arch) -> None:
        super().__init__()
        self.dims, self.arch = dims, arch
        self.prefix = arch.prefix
        self.downsample = _downsample(dims, arch)
        self.norm1 = nn.LayerNorm(dims.embed, arch.norm_eps)
        self.attn = SlimAttention(dims, arch)
        self.norm2 = nn.LayerNorm(dims.embed, arch.norm_eps)
        self.mlp = SlimMlp(dims, arch)

    def match(self, keys: Tensor) -> TokenMatch:
        """Choose the merges of this block from its keys, [B, H, N, K]."""
        return match_tokens(keys.mean(dim=1), self.prefix, self.dims.merged)

    def forward(self, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map tokens [B, N, D] and their sizes to those that leave the block."""
        x, sizes = self.attend(x, sizes)
        x = self.stream(x)
        return x + self.mlp(self.mlp_input(x)), sizes

    def stream(self, x: Tensor) -> Tensor:
        """Return what the MLP's output is added to, from what `attend` gives."""
        return self.norm2(x) if self.arch.norm2_on_stream else x

    def mlp_input(self, stream: Tensor) -> Tensor:
        """Return what the MLP reads, from what its output is added to."""
        return stream if self.arch.norm2_on_stream else self.norm2(stream)

    def attend(self, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map tokens [B, N, D] and their sizes to those behind the attention and the merging."""
        x = self.downsample(x)
        y = self.attn.split(self.norm1(x))
        keys = self.attn.keys(y)
        mixed = self.attn.join(self.attn.mix(y, keys, self.dims.queries, sizes))
        x = x[:, : self.dims.queries] + self.attn.proj(mixed)
        if self.dims.merged:
            x, sizes = pool_tokens(x, sizes, self.match(keys))
        return x, sizes


def _patch_embed(arch: Arch) -> nn.Conv2d | ConvTokenizer:
    if arch.tokenizer is not None:
        return ConvTokenizer(arch.tokenizer, arch.image[0], arch.embed)
    return nn.Conv2d(arch.image[0], arch.embed, arch.patch, stride=arch.patch)


def _downsample(dims: BlockDims, arch: Arch) -> nn.Module:
    if dims.downsampled_from is None:
        return nn.Identity()
    assert dims.window is not None  # only families with a grid merge patches
    rows, columns = dims.window.grid
    return Downsample((2 * rows, 2 * columns), (dims.downsampled_from, dims.embed), arch.norm_eps)


class SlimViT(nn.Module):
    """Vision Transformer of any family, built from an `Arch`: dense when converted, smaller after slimming.

    Exact simplifications hold for both: LayerScale, value bias and the prefix tokens' positions are folded
    into their neighbours, and the key bias is gone (`SlimAttention`).
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.patch_embed = _patch_embed(arch)
        self.prefix = nn.Parameter(torch.zeros(1, arch.prefix, arch.embed))  # position already added
        position = torch.zeros(1, arch.patches, arch.embed)
        self.position = nn.Parameter(position) if arch.position else None
        self.norm_pre = nn.LayerNorm(arch.embed, arch.norm_eps) if arch.pre_norm else nn.Identity()
        blocks = nn.ModuleList(SlimBlock(dims, arch) for dims in arch.blocks)
        self.blocks = cast(Sequence[SlimBlock], blocks)  # a ModuleList forgets what its modules are
        self.norm = nn.LayerNorm(arch.features, arch.norm_eps) if arch.norm != "none" else nn.Identity()
        self.sequence_pool = nn.Linear(arch.features, 1, bias=False) if arch.reads == "sequence" else None
        self.head = nn.Linear(arch.features, arch.classes)
        self.head_dist = (
            nn.Linear(arch.features, arch.classes) if arch.reads == "class+distillation" else None
        )

    def embed(self, image: Tensor) -> Tensor:
        """Map images [B, C, H, W] to the tokens that enter block 0, [B, N, D]."""
        x = self.patch_embed(image).flatten(2).transpose(1, 2)  # [B, N - P, D]
        if self.position is not None:
            x = x + self.position
        if self.arch.prefix:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], dim=1)
        out: Tensor = self.norm_pre(x)
        return out

    def classify(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """Map the tokens that leave the last block, [B, N, D], to logits [B, classes]."""
        if self.arch.reads == "class":
            logits: Tensor = self.head(self.norm(x[:, 0]))
            return logits
        if self.head_dist is not None:
            x = self.norm(x[:, :2])
            both: Tensor = self.head(x[:, 0]) + self.head_dist(x[:, 1])
            return both / 2
        if self.arch.norm == "before-pool":
            x = self.norm(x)
        if self.sequence_pool is not None:
            pooled = pool_sequence(x, sizes, self.sequence_pool(x))
        else:
            pooled = mean_tokens(x, sizes, 0 if self.arch.reads == "mean+prefix" else self.arch.prefix)
        logits = self.head(self.norm(pooled) if self.arch.norm == "after-pool" else pooled)
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, classes]."""
        x = self.embed(image)
        sizes: Tensor | None = None
        for block in self.blocks:
            x, sizes = block(x, sizes)
        return self.classify(x, sizes)


def mean_tokens(x: Tensor, sizes: Tensor | None, skip: int) -> Tensor:
    """Return the mean of the tokens behind the first `skip`, weighted by size: [B, N, D] -> [B, D]."""
    if sizes is None:
        return x[:, skip:].mean(dim=1)
    weights = sizes[:, skip:] / sizes[:, skip:].sum(dim=1, keepdim=True)
    return (x[:, skip:] * weights).sum(dim=1)


def pool_sequence(x: Tensor, sizes: Tensor | None, logits: Tensor) -> Tensor:
    """Return the mean of all tokens, weighted by the softmax of `logits` [B, N, 1] and by size: [B, D]."""
    if sizes is not None:
        logits = logits + sizes.log()
    return (logits.softmax(dim=1).transpose(1, 2) @ x).squeeze(1)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply the MLP's activation."""
    match activation:
        case "gelu":
            return functional.gelu(x)
        case "gelu-tanh":
            return functional.gelu(x, approximate="tanh")
        case "quick-gelu":
            return x * torch.sigmoid(1.702 * x)
        case "relu":
            return functional.relu(x)
        case "silu":
            return functional.silu(x)
