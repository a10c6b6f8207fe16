"""What the hidden neurons of a model do on images: statistics of each image, averaged over all.

Shapes: B images of a batch, N tokens, T those that something reads, F hidden neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from edgevit.models.layers import SlimViT

Report = Callable[[int], None]
"""Called with the number of images seen so far."""


def live_neurons(model: SlimViT, images: Tensor) -> Iterator[Tensor]:
    """Yield each block's hidden activations [B, T, F] on images [B, C, H, W].

    T is every token, but in the last block only those that the head reads: nothing sees the others.
    """
    x, sizes = model.enter(images)
    for index, block in enumerate(model.blocks):
        x, sizes = block.attend(x, sizes)
        x = block.stream(x)
        neurons = block.mlp.neurons(block.mlp_input(x))
        last = index == len(model.blocks) - 1
        yield neurons[:, : model.arch.read_tokens] if last else neurons
        x = x + block.mlp.fc2(neurons)


@torch.no_grad()
def mean_of_neurons(
    model: SlimViT, batches: Iterable[Tensor], statistic: Callable[[Tensor], Tensor], report: Report
) -> list[Tensor]:
    """Return the mean of a statistic over images, for every block: float64 [F].

    Each image counts once, whatever batch it came in.

    Args:
        model: the model that is observed.
        batches: images, float32 [B, C, H, W]; one at least.
        statistic: maps a block's activations [B, T, F] to one value per image and neuron, [B, F].
        report: called after each batch.
    """
    sums = [torch.zeros(block.mlp.fc1.out_features, dtype=torch.float64) for block in model.blocks]
    seen = 0
    for batch in batches:
        for total, neurons in zip(sums, live_neurons(model, batch), strict=True):
            total += statistic(neurons).sum(dim=0, dtype=torch.float64)
        seen += len(batch)
        report(seen)
    return [total / seen for total in sums]
