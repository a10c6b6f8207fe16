"""How much each token matters to the model's own answer, from gradients; no labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from edgevit.models.layers import SlimViT


class BlockWeights(NamedTuple):
    """Weights of one block's tokens, mean about 1: what a squared error at that token costs."""

    attention: Tensor  # at the attention output, [n, N]
    mlp: Tensor  # at the MLP output, [n, N]
    queries: Tensor  # rows of the logits, [n, H, N]
    keys: Tensor  # columns of the logits, [n, H, N]


def token_weights(model: SlimViT, batches: Iterator[Tensor], seed: int = 0) -> Iterator[list[BlockWeights]]:
    """Yield, for each batch of images [b, C, H, W], the weights of every block.

    Labels are drawn from the model's own softmax; the squared gradient of log p at a place tells how the
    answer moves when that place is disturbed (the Fisher information's diagonal, summed over channels). Half
    of each weight is uniform: rare directions must not be lost for the tokens that this draw happened to
    ignore.
    """
    generator = torch.Generator().manual_seed(seed)
    for images in batches:
        places = _forward(model, images)
        draw = torch.multinomial(places.logits.detach().softmax(dim=-1), 1, generator=generator)
        objective = places.logits.log_softmax(dim=-1).gather(1, draw).sum()
        flat = [
            place
            for block in zip(places.attention, places.mlp, places.scores, strict=True)
            for place in block
        ]
        gradients = torch.autograd.grad(objective, flat)
        yield [_block_weights(*gradients[3 * i : 3 * i + 3]) for i in range(len(places.mlp))]


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
        y = block.norm1(x)
        scores = block.attn.queries(y) @ block.attn.keys(y).mT  # [B, H, N, N]
        mixed = (scores.softmax(dim=-1) @ block.attn.values(y)).transpose(1, 2).flatten(2)
        middle = x + block.attn.proj(mixed)
        x = middle + block.mlp(block.norm2(middle))
        places.attention.append(middle)
        places.mlp.append(x)
        places.scores.append(scores)
    return places._replace(logits=model.classify(x, None))


def _block_weights(attention: Tensor, mlp: Tensor, scores: Tensor) -> BlockWeights:
    squared = scores.square()  # [B, H, N, N]
    return BlockWeights(
        _half_uniform(attention.square().sum(dim=-1)),
        _half_uniform(mlp.square().sum(dim=-1)),
        _half_uniform(squared.sum(dim=-1)),
        _half_uniform(squared.sum(dim=-2)),
    )


def _half_uniform(values: Tensor) -> Tensor:
    """Return 1/2 + 1/2 values / mean, the mean taken over tokens and images of the batch."""
    mean = values.mean(dim=(0, -1), keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return 0.5 + 0.5 * values / mean
