"""How much each token matters to the model's own answer, from gradients; no labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from edgevit.models.layers import SlimAttention, SlimViT
from edgevit.progress import Progress

_PIECE = 8  # images whose activations are held for the gradient


class BlockWeights(NamedTuple):
    """Weights of one block's tokens, mean about 1: what a squared error at that token costs."""

    attention: Tensor  # at the attention output, [n, N]
    mlp: Tensor  # at the MLP output, [n, N]
    queries: Tensor  # rows of the logits, [n, H, N]
    keys: Tensor  # columns of the logits, [n, H, N]


def token_weights(
    model: SlimViT, images: int, batches: Iterator[Tensor], progress: Progress
) -> list[BlockWeights]:
    """Return the weights of every block for all images of `batches`, [b, C, H, W].

    Labels are drawn from the model's own softmax; the squared gradient of log p at a place tells how the
    answer moves when that place is disturbed (the Fisher information's diagonal, summed over channels). Half
    of each weight is uniform: rare directions must not be lost for the tokens that this draw happened to
    ignore.
    """
    generator = torch.Generator().manual_seed(0)
    rows: list[list[BlockWeights]] = []
    for batch in batches:
        rows += [_squared_gradients(model, piece, generator) for piece in batch.split(_PIECE)]
        progress("weighing tokens", sum(len(row[0].mlp) for row in rows), images)
    return [_half_uniform(parts) for parts in zip(*rows, strict=True)]


@torch.enable_grad()  # a caller may have switched gradients off for its own work
def _squared_gradients(model: SlimViT, images: Tensor, generator: torch.Generator) -> list[BlockWeights]:
    """Return the squared gradients of log p of a drawn label, for every block."""
    places = _forward(model, images)
    draw = torch.multinomial(places.logits.detach().softmax(dim=-1), 1, generator=generator)
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
