"""How much each token matters to the model's own answer, from gradients; no labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from edgevit.models.layers import SlimAttention, SlimViT
from edgevit.progress import Progress

_PIECE = 8  # images whose activations are held for the gradient
_KEPT_BYTES = 2**31  # that the dense streams of all blocks may take, if they are kept
_LEAST_WIDTH = 384  # of models whose streams are kept: what a byte of them saves grows with the width


class BlockWeights(NamedTuple):
    """Weights of one block's tokens, mean about 1: what a squared error at that token costs."""

    attention: Tensor  # at the attention output, [n, N]
    mlp: Tensor  # at the MLP output, [n, N]
    queries: Tensor  # rows of the logits, [n, H, N]
    keys: Tensor  # columns of the logits, [n, H, N]


class Weighed(NamedTuple):
    """What a pass through the dense model with its gradients has found."""

    weights: list[BlockWeights]  # of every block
    streams: list[Tensor] | None
    """The residual stream behind each attention and each MLP, float16 [n, N, D], two for each block; None
    for a narrow model, and where they would take more than 2 GiB or do not fit into float16."""


def token_weights(model: SlimViT, images: int, batches: Iterator[Tensor], progress: Progress) -> Weighed:
    """Return the weights of every block for all images of `batches`, [b, C, H, W], and the streams met.

    Labels are drawn from the model's own softmax; the squared gradient of log p at a place tells how the
    answer moves when that place is disturbed (the Fisher information's diagonal, summed over channels). Half
    of each weight is uniform: rare directions must not be lost for the tokens that this draw happened to
    ignore.
    """
    generator = torch.Generator().manual_seed(0)
    rows: list[list[BlockWeights]] = []
    streams, seen = _room_for_streams(model, images), 0
    for batch in batches:
        for piece in batch.split(_PIECE):
            places = _forward(model, piece)
            rows.append(_squared_gradients(model, places, generator))
            streams = _keep(streams, places, seen)
            seen += len(piece)
        progress("weighing tokens", seen, images)
    return Weighed([_half_uniform(parts) for parts in zip(*rows, strict=True)], streams)


def _room_for_streams(model: SlimViT, images: int) -> list[Tensor] | None:
    if model.arch.features < _LEAST_WIDTH:
        return None
    shapes = [(images, block.dims.tokens_in, block.dims.embed) for block in model.blocks for _ in range(2)]
    if sum(math.prod(shape) for shape in shapes) * torch.float16.itemsize > _KEPT_BYTES:
        return None
    return [torch.empty(shape, dtype=torch.float16, device=model.device) for shape in shapes]


def _keep(streams: list[Tensor] | None, places: _Places, seen: int) -> list[Tensor] | None:
    """Write the streams of some images behind those of the `seen` before them."""
    if streams is None:
        return None
    both = zip(places.attention, places.mlp, strict=True)
    for kept, found in zip(streams, (stream for pair in both for stream in pair), strict=True):
        part = kept[seen : seen + len(found)]
        part.copy_(found.detach())
        if not part.isfinite().all():
            return None
    return streams


@torch.enable_grad()
def _squared_gradients(model: SlimViT, places: _Places, generator: torch.Generator) -> list[BlockWeights]:
    """Return the squared gradients of log p of a drawn label, for every block."""
    chances = places.logits.detach().softmax(dim=-1)
    # Drawn on the CPU, so that a GPU weighs tokens by the same labels.
    draw = torch.multinomial(chances.cpu(), 1, generator=generator).to(chances.device)
    objective = places.logits.log_softmax(dim=-1).gather(1, draw).sum()
    wanted = [*places.attention, *places.mlp, *places.scores]
    gradients = torch.autograd.grad(objective, wanted)
    parts = zip(model.blocks, *_thirds(gradients), strict=True)
    return [_sum_channels(block.attn, *of_block) for block, *of_block in parts]


def _thirds(values: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    count = len(values) // 3
    return values[:count], values[count : 2 * count], values[2 * count :]


class _Places(NamedTuple):
    logits: Tensor
    attention: list[Tensor]
    mlp: list[Tensor]
    scores: list[Tensor]


@torch.enable_grad()  # a caller may have switched gradients off for its own work
def _forward(model: SlimViT, images: Tensor) -> _Places:
    """Run the dense model and keep the tensors whose gradients are wanted."""
    with torch.no_grad():
        x = model.embed(images)
    x.requires_grad_()
    places = _Places(x, [], [], [])
    for block in model.blocks:
        x = block.downsample(x)
        y = block.attn.split(block.norm1(x))
        scores = block.attn.logits(y, block.attn.keys(y), y.shape[1], None)  # [B, H, N, N], for each window
        mixed = (scores.softmax(dim=-1) @ block.attn.values(y)).transpose(1, 2).flatten(2)
        middle = x + block.attn.proj(block.attn.join(mixed))
        places.attention.append(middle)
        x = block.stream(middle)
        x = x + block.mlp(block.mlp_input(x))
        places.mlp.append(x)
        places.scores.append(scores)
    return places._replace(logits=model.classify(x, None))


def _sum_channels(layer: SlimAttention, attention: Tensor, mlp: Tensor, scores: Tensor) -> BlockWeights:
    squared = scores.square()  # [B, H, N, N], for each window
    rows, columns = (
        layer.join(squared.sum(dim=axis).transpose(1, 2)).transpose(1, 2) for axis in (-1, -2)
    )  # [B, H, N] on the grid
    return BlockWeights(attention.square().sum(dim=-1), mlp.square().sum(dim=-1), rows, columns)


def _half_uniform(parts: tuple[BlockWeights, ...]) -> BlockWeights:
    """Return 1/2 + 1/2 values / mean for all images of one block, the mean over images and tokens."""
    weights = []
    for pieces in zip(*parts, strict=True):
        values = torch.cat(pieces)
        mean = values.mean(dim=(0, -1), keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
        weights.append(0.5 + 0.5 * values / mean)
    return BlockWeights(*weights)
