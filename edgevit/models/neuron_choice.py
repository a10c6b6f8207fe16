"""Which hidden neurons an image uses: chosen for each image by itself, in constant number.

Shapes: B batch, N tokens, F hidden neurons, k of them that are used, D embed width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevit.plan import PerImage


class NeuronChoice(nn.Module):
    """Chooses the neurons that fc2 reads by how active they are on an image.

    An image's own tokens decide, all of them and nothing else: what is chosen depends neither on the images
    that share its batch nor on chance. What a neuron is worth is data of the model, the norm of its fc2
    column in the dense model: so a refit or a training of fc2 does not change what is chosen.

    Reference: Moon et al. 2026, ToaSt, arXiv:2602.15720, token channel selection before fc2.
    Differs: one choice for each image in place of one for a batch; all tokens in place of a random few; no
        weights by attention maps.
    """

    worth: Tensor | None  # [F]; None: mean |activation| alone decides

    def __init__(self, how: PerImage, hidden: int, scored: int | None) -> None:
        """Choose by the first `scored` tokens, or by all (None)."""
        super().__init__()
        self.how, self.scored = how, scored
        self.register_buffer("worth", torch.ones(hidden) if how.score == "contribution" else None)

    def forward(self, neurons: Tensor) -> Tensor:
        """Return the indices of the neurons that are used, [B, N, F] -> int64 [B, k], in no order."""
        scores = mean_magnitudes(neurons[:, : self.scored], self.how.class_weight)
        if self.worth is not None:
            scores = scores * self.worth
        return scores.topk(self.how.used, dim=1, sorted=False).indices

    def masked(self, neurons: Tensor) -> Tensor:
        """Return the neurons with those at 0 that are not used, [B, N, F] -> [B, N, F]."""
        chosen = self(neurons)
        mask = torch.zeros_like(neurons[:, 0]).scatter(1, chosen, 1.0)  # [B, F]
        return neurons * mask.unsqueeze(1)


def mean_magnitudes(values: Tensor, class_weight: float | None) -> Tensor:
    """Return how active each channel is on each image, [B, N, F] -> [B, F], in the precision of `values`.

    Without `class_weight` this is the mean of the absolute values over all tokens. With it, the class token's
    has that weight against 1 for the mean of the others; where there are no others, it stands alone.
    """
    absolute = values.abs()
    if class_weight is None or absolute.shape[1] == 1:
        return absolute.mean(dim=1)
    rest = absolute[:, 1:].mean(dim=1)
    return (class_weight * absolute[:, 0] + rest) / (class_weight + 1)


def read_chosen(neurons: Tensor, chosen: Tensor, fc2: nn.Linear) -> Tensor:
    """Return what fc2 makes of the chosen neurons, [B, N, F] and int64 [B, k] -> [B, N, D].

    For one image the rows of fc2 are gathered once; for several, each has rows of its own.
    """
    rows = fc2.weight.T  # [F, D]
    if neurons.shape[0] == 1:
        used, read = neurons.index_select(2, chosen[0]), rows.index_select(0, chosen[0])
    else:
        used = neurons.gather(2, chosen.unsqueeze(1).expand(-1, neurons.shape[1], -1))  # [B, N, k]
        read = rows[chosen]  # [B, k, D]
    return used @ read + fc2.bias
