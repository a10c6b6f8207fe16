"""Token-channel selection (TCS): what of an MLP images hardly use is cut, for all images or by each of them.

Shapes: B images of a batch, T tokens that something reads, D channels that the MLP reads, F hidden neurons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from edgevit.errors import PlanError
from edgevit.methods import TokenChannels
from edgevit.models.anatomy import read_anatomy
from edgevit.models.group_scores import input_norms
from edgevit.models.layers import SlimMlp, SlimViT
from edgevit.models.neuron_choice import mean_magnitudes
from edgevit.models.observe import LiveMlp, SeenImages, mean_of_mlps
from edgevit.plan import BlockPlan, NeuronScore, PerImage, Plan
from edgevit.prune.rank import highest
from edgevit.prune.schedule import Schedule, keep_counts, shared_counts


def token_channels(
    model: SlimViT, plan: Plan, options: TokenChannels, batches: Iterable[Tensor], report: SeenImages
) -> Plan:
    """Choose the hidden neurons of every block that stay, and the channels that its MLP reads.

    With `selection = "static"` the choice is made once, from statistics of each image by itself, averaged
    over the set. With "per-image" all neurons stay and each image chooses those that fc2 reads. Either way
    what a neuron is worth never depends on which images share a batch. Channels are chosen once.

    Args:
        model: the dense model.
        plan: what remains so far.
        options: how much goes, and how neurons are scored.
        batches: calibration images, float32 [B, C, H, W]; only read when something is cut for all images.
        report: called with the number of images seen so far.

    Returns:
        The plan with counts and indices of what was cut; a block that keeps all gets no indices.

    Raises:
        PlanError: a schedule or a weight that this model cannot take.

    Reference: Moon et al. 2026, ToaSt, arXiv:2602.15720, token channel selection before fc1 and fc2.
    Differs: one selection for all images, or one for each, in place of one per batch while the model runs; a
        static one takes fc1's rows as well, so the same share saves twice as much. Every token counts in
        place of a random few; no weights by attention maps. Before fc1 the norm still sees every channel and
        the residual stream keeps them, as in the paper; the authors' code cuts both.
    """
    if options.inputs_drop is not None and plan.channels is not None:
        raise PlanError(
            "inputs_drop: the plan so far cuts channels of the stream, and the MLPs have to read all that are"
            " left. Take this key out, or embed_drop."
        )
    widths = [(block.mlp.fc1.out_features, block.mlp.fc1.in_features) for block in model.blocks]
    hidden, inputs = _counts(model, options, tuple(width for _, width in widths))
    if options.class_weight is not None and not model.arch.prefix:
        raise PlanError("class_weight: this model has no class token. Take this key out.")
    if options.selection == "per-image":
        plan = _choose_later(model, plan, options, hidden)
        hidden = tuple(width for width, _ in widths)
    left = list(zip(hidden, inputs, strict=True))
    if left == widths:
        return plan

    def magnitudes(live: LiveMlp) -> Tensor:
        parts = (live.neurons, live.inputs)
        return torch.cat([mean_magnitudes(part.double(), options.class_weight) for part in parts], dim=1)

    means = mean_of_mlps(model, batches, magnitudes, report)
    parts = zip(model.blocks, plan.blocks, left, means, strict=True)
    blocks = [_cut(full.mlp, block, counts, options.score, mean) for full, block, counts, mean in parts]
    return dataclasses.replace(plan, blocks=tuple(blocks))


def _counts(
    model: SlimViT, options: TokenChannels, inputs: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how many neurons of each block are used, and how many of its `inputs`."""
    first, align = options.keep_first, options.align
    of_hidden = Schedule("hidden", "hidden_drop", options.hidden, options.hidden_drop, first, align)
    of_inputs = Schedule("hidden", "inputs_drop", None, options.inputs_drop, first, align)
    (hidden,) = keep_counts(read_anatomy(model.arch), (of_hidden,))
    return hidden, shared_counts(inputs, of_inputs)


def _choose_later(model: SlimViT, plan: Plan, options: TokenChannels, used: tuple[int, ...]) -> Plan:
    """Let each image choose `used` of the neurons of each block."""
    if any(block.per_image for block in plan.blocks):
        raise PlanError(
            'selection: expected "static" for a model whose images already choose neurons, got "per-image".'
            " Give the model that it was made from."
        )
    blocks = []
    for full, block, count in zip(model.blocks, plan.blocks, used, strict=True):
        how = PerImage(count, options.score, options.class_weight)
        whole = count == full.mlp.fc1.out_features
        blocks.append(block if whole else dataclasses.replace(block, per_image=how))
    return dataclasses.replace(plan, blocks=tuple(blocks))


def _cut(
    mlp: SlimMlp, block: BlockPlan, counts: tuple[int, int], score: NeuronScore, means: Tensor
) -> BlockPlan:
    """Return what remains of one block.

    Args:
        mlp: the dense one.
        block: what remains so far.
        counts: of hidden neurons and of channels that are read.
        score: what they are worth.
        means: mean magnitudes of neurons, then of channels, float64 [F + D].
    """
    neurons, channels = means.split([mlp.fc1.out_features, mlp.fc1.in_features])
    if score == "contribution":
        neurons = neurons * mlp.fc2.weight.double().norm(dim=0)
        channels = channels * input_norms(mlp)
    kept = block.kept
    if counts[0] < len(neurons):
        kept = dataclasses.replace(kept, hidden=tuple(highest(neurons, counts[0]).tolist()))
        block = dataclasses.replace(block, hidden=counts[0])
    if counts[1] < len(channels):
        kept = dataclasses.replace(kept, inputs=tuple(highest(channels, counts[1]).tolist()))
        block = dataclasses.replace(block, mlp_inputs=counts[1])
    return dataclasses.replace(block, kept=kept)
