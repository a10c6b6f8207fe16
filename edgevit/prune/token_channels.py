"""Static token-channel selection (TCS): the hidden neurons that calibration images hardly use are cut.

Shapes: B images of a batch, T tokens that something reads, F hidden neurons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from torch import Tensor

from edgevit.errors import PlanError
from edgevit.methods import TokenChannels
from edgevit.models.anatomy import read_anatomy
from edgevit.models.layers import SlimMlp, SlimViT
from edgevit.models.observe import Report, mean_of_neurons
from edgevit.plan import BlockPlan, Plan
from edgevit.prune.rank import highest
from edgevit.prune.schedule import Schedule, keep_counts


def token_channels(
    model: SlimViT, plan: Plan, options: TokenChannels, batches: Iterable[Tensor], report: Report
) -> Plan:
    """Choose the hidden neurons of every block that stay.

    The choice is made once, from statistics of each image by itself, averaged over the set: so what a neuron
    is worth never depends on which images share a batch, and the model that results treats each image alone.

    Args:
        model: the dense model.
        plan: what remains so far.
        options: how much goes, and how neurons are scored.
        batches: calibration images, float32 [B, C, H, W]; only read when something is cut.
        report: called with the number of images seen so far.

    Returns:
        The plan with counts and indices of what was cut; a block that keeps all gets no indices.

    Raises:
        PlanError: a schedule or a weight that this model cannot take.

    Reference: Moon et al. 2026, ToaSt, arXiv:2602.15720, token channel selection before fc2.
    Differs: one selection for all images in place of one per batch while the model runs, so fc1's rows go as
        well and the same share saves twice as much; every token counts in place of a random few; no weights
        by attention maps. fc1's input channels, which belong to the residual stream, stay.
    """
    schedule = Schedule(
        "hidden", "hidden_drop", options.hidden, options.hidden_drop, options.keep_first, options.align
    )
    (counts,) = keep_counts(read_anatomy(model.arch), (schedule,))
    if options.class_weight is not None and not model.arch.prefix:
        raise PlanError("class_weight: this model has no class token. Take this key out.")
    if all(count == block.mlp.fc1.out_features for count, block in zip(counts, model.blocks, strict=True)):
        return plan

    def magnitude(neurons: Tensor) -> Tensor:
        return image_magnitudes(neurons, options.class_weight)

    means = mean_of_neurons(model, batches, magnitude, report)
    parts = zip(model.blocks, plan.blocks, counts, means, strict=True)
    blocks = [_decide(full.mlp, block, count, options, mean) for full, block, count, mean in parts]
    return dataclasses.replace(plan, blocks=tuple(blocks))


def image_magnitudes(neurons: Tensor, class_weight: float | None) -> Tensor:
    """Return how active each neuron is on each image, [B, T, F] -> float64 [B, F].

    Without `class_weight` this is the mean of |h| over all tokens. With it, the class token's |h| has that
    weight against 1 for the mean of the others; where nothing reads the others, the class token stands alone.
    """
    absolute = neurons.abs()
    if class_weight is None or absolute.shape[1] == 1:
        return absolute.double().mean(dim=1)
    rest = absolute[:, 1:].double().mean(dim=1)
    return (class_weight * absolute[:, 0].double() + rest) / (class_weight + 1)


def _decide(mlp: SlimMlp, block: BlockPlan, count: int, options: TokenChannels, mean: Tensor) -> BlockPlan:
    """Return what remains of one block; `mean` is the mean of `image_magnitudes`, float64 [F]."""
    if count == mlp.fc1.out_features:
        return block
    match options.score:
        case "contribution":
            scores = mean * mlp.fc2.weight.double().norm(dim=0)
        case "magnitude":
            scores = mean
    kept = dataclasses.replace(block.kept, hidden=tuple(highest(scores, count).tolist()))
    return dataclasses.replace(block, hidden=count, kept=kept)
