"""Slim modules with explicit dims: attention whose QK and VO dims are free, MLP, and fewer tokens.

Shapes: B batch, N tokens, P prefix tokens, D embed width, H heads, K qk dims, V vo dims, F hidden neurons,
Q tokens that are still alive (Q = N unless the block drops dead tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevit.models.arch import Activation, Arch, BlockDims
from edgevit.models.downsample import Downsample
from edgevit.models.narrow import make_norm
from edgevit.models.neuron_choice import NeuronChoice, read_chosen
from edgevit.models.reduction import Reduction, Step, find_reduction, reduce_tokens
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
        narrow = dims.full is not None  # then the norm's part is in the biases of what reads it
        self.q = nn.Linear(dims.embed, dims.heads * dims.qk_dim, bias=arch.qkv_bias or narrow)
        # A key bias adds the same number to all logits of a query, which softmax ignores; only a norm between
        # them makes it count, or a comparison of keys. A value bias passes the softmax unchanged: it lives in
        # proj.bias.
        key_bias = narrow or (arch.qkv_bias and arch.qk_norm)
        self.k = nn.Linear(dims.embed, dims.heads * dims.qk_dim, bias=key_bias)
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

    Where the model is gated (SwiGLU), `gate` feeds the activation and `fc1` multiplies what it gives. It may
    read some channels of the stream only, and its second layer some of the neurons, chosen by each image.
    """

    inputs: Tensor | None  # channels of the stream that are read, int64, rising; None: all

    def __init__(self, dims: BlockDims, arch: Arch, scored: int | None = None) -> None:
        """Build it; neurons are chosen by the first `scored` tokens, or by all (None)."""
        super().__init__()
        self.register_buffer("inputs", None if dims.mlp_inputs is None else torch.arange(dims.mlp_inputs))
        self.fc1 = nn.Linear(dims.mlp_width, dims.hidden)
        self.gate = nn.Linear(dims.mlp_width, dims.hidden) if arch.gated else None
        self.activation: Activation = arch.activation
        self.choice = None if dims.per_image is None else NeuronChoice(dims.per_image, dims.hidden, scored)
        self.fc2 = nn.Linear(dims.hidden, dims.embed)

    def read(self, y: Tensor) -> Tensor:
        """Return the channels that are read, [B, N, D] -> [B, N, D']."""
        return y if self.inputs is None else y.index_select(2, self.inputs)

    def neurons(self, y: Tensor) -> Tensor:
        """Return the activations of the hidden neurons, [B, N, D] -> [B, N, F]."""
        y = self.read(y)
        if self.gate is None:
            return activate(self.fc1(y), self.activation)
        gated: Tensor = activate(self.gate(y), self.activation) * self.fc1(y)
        return gated

    def out(self, neurons: Tensor) -> Tensor:
        """Map the activations of the hidden neurons to what the MLP adds, [B, N, F] -> [B, N, D]."""
        if self.choice is not None:
            return read_chosen(neurons, self.choice(neurons), self.fc2)
        out: Tensor = self.fc2(neurons)
        return out

    def forward(self, y: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        return self.out(self.neurons(y))


class SlimBlock(nn.Module):
    """Pre-norm transformer block; lets fewer tokens leave its attention when its dims say so.

    A block in front of which 2 x 2 patches are merged does that itself, so that models of all families are
    a row of blocks.
    """

    def __init__(self, dims: BlockDims, arch: Arch, *, last: bool = False) -> None:
        super().__init__()
        self.dims, self.arch = dims, arch
        self.downsample = _downsample(dims, arch)
        self.norm1 = make_norm(dims.embed, dims.full, arch.norm_eps)
        self.attn = SlimAttention(dims, arch)
        self.norm2 = make_norm(dims.embed, dims.full, arch.norm_eps, on_stream=arch.norm2_on_stream)
        self.mlp = SlimMlp(dims, arch, scored=arch.read_tokens if last else None)

    def features(self, keys: Tensor) -> Tensor:
        """Return what patches are compared by, [B, N - P, H K], from this block's keys, [B, H, N, K].

        Of all heads side by side: heads have bases of their own, so that a mean over heads loses what tells
        patches apart (docs/methods.md).
        """
        return keys.transpose(1, 2)[:, self.arch.prefix :].flatten(
            2
        )  # undone first: runtimes then do neither

    def reduction(self, keys: Tensor) -> Reduction:
        """Find what this block merges or drops, from its keys, [B, H, N, K]."""
        step = Step(self.arch.prefix, self.dims.merged, self.dims.choice, self.arch.grid, positioned=True)
        return find_reduction(self.features(keys), step)

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
        """Map tokens [B, N, D] and their sizes to those behind attention and merging or dropping."""
        x = self.downsample(x)
        y = self.attn.split(self.norm1(x))
        keys = self.attn.keys(y)
        mixed = self.attn.join(self.attn.mix(y, keys, self.dims.queries, sizes))
        x = x[:, : self.dims.queries] + self.attn.proj(mixed)
        if self.dims.merged:
            x, sizes = reduce_tokens(x, sizes, self.reduction(keys))
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
    widths = dims.downsampled_from, dims.embed
    return Downsample((2 * rows, 2 * columns), widths, dims.downsampled_full, arch.norm_eps)


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
        first, last = arch.blocks[0].full, arch.blocks[-1].full
        self.norm_pre = (
            make_norm(arch.embed, first, arch.norm_eps, on_stream=True) if arch.pre_norm else nn.Identity()
        )
        end = len(arch.blocks) - 1
        blocks = nn.ModuleList(SlimBlock(d, arch, last=index == end) for index, d in enumerate(arch.blocks))
        self.blocks = cast(Sequence[SlimBlock], blocks)  # a ModuleList forgets what its modules are
        self.norm = make_norm(arch.features, last, arch.norm_eps) if arch.norm != "none" else nn.Identity()
        self.sequence_pool = nn.Linear(arch.features, 1, bias=False) if arch.reads == "sequence" else None
        self.head = nn.Linear(arch.features, arch.classes)
        self.head_dist = (
            nn.Linear(arch.features, arch.classes) if arch.reads == "class+distillation" else None
        )

    @property
    def device(self) -> torch.device:
        """Return where the weights are, and images have to be."""
        return self.head.weight.device

    def patches(self, image: Tensor) -> Tensor:
        """Map images [B, C, H, W] to patches whose positions are not yet added, [B, N - P, D]."""
        patches: Tensor = self.patch_embed(image).flatten(2).transpose(1, 2)
        return patches

    def embed(self, image: Tensor) -> Tensor:
        """Map images [B, C, H, W] to all tokens, [B, N, D]."""
        return self._tokens(self.patches(image))

    def enter(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map images [B, C, H, W] to the tokens that enter block 0, and their sizes."""
        patches = self.patches(image)
        x = self._tokens(patches)
        return reduce_tokens(x, None, self.input_reduction(patches)) if self.arch.merged else (x, None)

    def input_reduction(self, patches: Tensor) -> Reduction:
        """Find what is merged or dropped before block 0, from what `patches` gives."""
        if self.arch.choice is None:  # a choice centres by itself
            patches = patches - patches.mean(dim=1, keepdim=True)
        step = Step(self.arch.prefix, self.arch.merged, self.arch.choice, self.arch.grid, positioned=False)
        return find_reduction(patches, step)

    def _tokens(self, x: Tensor) -> Tensor:
        """Add positions and prefix tokens to patches: [B, N - P, D] -> [B, N, D]."""
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
        x, sizes = self.enter(image)
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
