"""What the MLPs of a model read and do on images: statistics of each image, averaged over all.

Shapes: B images of a batch, N tokens, T those that something reads, D channels, F hidden neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from edgevit.models.layers import SlimViT

SeenImages = Callable[[int], None]
"""Called with the number of images seen so far."""


class LiveMlp(NamedTuple):
    """What one block's MLP reads, [B, T, D], and the activations of its hidden neurons, [B, T, F]."""

    block: int
    inputs: Tensor
    neurons: Tensor


def live_mlps(model: SlimViT, images: Tensor) -> Iterator[LiveMlp]:
    """Yield what each block's MLP reads and does on images [B, C, H, W].

    T is every token, but in the last block only those that the head reads: nothing sees the others.
    """
    x, sizes = model.enter(images)
    for index, block in enumerate(model.blocks):
        x, sizes = block.attend(x, sizes)
        x = block.stream(x)
        y = block.mlp_input(x)
        neurons = block.mlp.neurons(y)
        live = model.arch.read_tokens if index == len(model.blocks) - 1 else None
        yield LiveMlp(index, block.mlp.read(y[:, :live]), neurons[:, :live])
        x = x + block.mlp.out(neurons)


@torch.no_grad()
def mean_of_mlps(
    model: SlimViT, batches: Iterable[Tensor], statistic: Callable[[LiveMlp], Tensor], report: SeenImages
) -> list[Tensor]:
    """Return the mean of a statistic over images, for every block: float64 [p].

    Each image counts once, whatever batch it came in.

    Args:
        model: the model that is observed.
        batches: images, float32 [B, C, H, W]; one at least.
        statistic: maps what a block's MLP reads and does to numbers of each image, [B, p].
        report: called after each batch.
    """
    sums = [torch.zeros((), dtype=torch.float64) for _ in model.blocks]
    seen = 0
    for batch in batches:
        for live in live_mlps(model, batch):
            sums[live.block] = sums[live.block] + statistic(live).sum(dim=0, dtype=torch.float64)
        seen += len(batch)
        report(seen)
    return [total / seen for total in sums]
