"""From a model and a plan to a smaller model: by selection, or in closed form with calibration images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from edgevit.errors import ImagesError, PlanError
from edgevit.images import Images
from edgevit.models.anatomy import read_anatomy
from edgevit.models.arch import Arch
from edgevit.models.layers import SlimViT
from edgevit.models.neuron_choice import NeuronChoice
from edgevit.models.observe import LiveMlp, mean_of_mlps
from edgevit.plan import Plan, Recover, keep_all
from edgevit.progress import Progress
from edgevit.slim.channels import cut_channels
from edgevit.slim.recover import slim_closed_form
from edgevit.slim.select import MlpMeans, slim_by_selection
from edgevit.slim.site import ClosedForm
from edgevit.slim.stream import tensor_batches

_ROWS_PER_DIM = 2  # rows (images times tokens) that a covariance needs for each of its dims


@dataclass(frozen=True)
class SlimOptions:
    """How what a cut loses is recovered."""

    recover: Recover
    closed_form: ClosedForm = field(default_factory=ClosedForm)
    fold_means: bool = False
    """With "none": add to fc2's bias what the cut neurons give on average, W2[:, cut] E[h_cut], and to fc1's
    what the cut channels give.

    E is over the calibration images and the tokens of the dense model that something reads. Where images
    choose neurons, E is of those that an image does not use. The closed form refits these biases anyway.
    """


def slim_model(
    dense: SlimViT, plan: Plan, options: SlimOptions, images: Images | None, progress: Progress
) -> SlimViT:
    """Return the smaller model that `plan` describes; `dense` stays as it is.

    Args:
        dense: the model to slim; where it is, all is computed, and the slim model will be.
        plan: what remains of it.
        options: how what is lost is recovered.
        images: calibration images, unlabelled; needed by "closed-form" and by `fold_means`.
        progress: called while weighing tokens and slimming.

    Raises:
        PlanError: images are needed, and there are none; or the closed form of a model that merges tokens;
            or neurons that are cut where images choose among them; or channels where an MLP reads only some.
        ImagesError: fewer images than the ranks of the plan need.
    """
    dense = dense.eval().requires_grad_(False)
    if plan.channels is not None:
        _refuse_channels_of_inputs(plan)
        wide = slim_model(dense, replace(plan, channels=None), options, images, progress)
        return cut_channels(wide, plan.channels)
    _refuse_cut_choices(dense, plan)
    if _cuts_no_weights(dense, plan):
        return _select(dense, plan, None)
    match options.recover:
        case "none":
            means = None
            if options.fold_means:
                means = _mlp_means(dense, plan, _require(images, "folding what cut neurons add"), progress)
            return _select(dense, plan, means)
        case "closed-form":
            _refuse_refit(dense)
            given = _require(images, 'slim.recover = "closed-form"')
            check_enough(dense.arch, plan, given)
            return slim_closed_form(
                dense, plan, lambda: tensor_batches(given, dense.device), options.closed_form, progress
            )


def _select(dense: SlimViT, plan: Plan, means: Sequence[MlpMeans] | None) -> SlimViT:
    with torch.no_grad():
        return slim_by_selection(dense, plan, means)


def _require(images: Images | None, by: str) -> Images:
    if images is None:
        raise PlanError(f"{by} needs [calibration] images. Add them, or leave that out.")
    return images


def _mlp_means(dense: SlimViT, plan: Plan, images: Images, progress: Progress) -> list[MlpMeans]:
    """Return the means of what cuts may leave behind, for every block."""
    chosen: list[NeuronChoice | None] = [None] * len(plan.blocks)
    if any(block.per_image for block in plan.blocks):
        chosen = [block.mlp.choice for block in _select(dense, plan, None).blocks]

    def over_tokens(live: LiveMlp) -> Tensor:
        choice, before, neurons = chosen[live.block], dense.blocks[live.block].mlp.choice, live.neurons
        if choice is not None:
            used = neurons if before is None else before.masked(neurons)
            neurons = used - choice.masked(neurons)
        return torch.cat([part.double().mean(dim=1) for part in (neurons, live.inputs)], dim=1)

    def report(seen: int) -> None:
        progress("averaging neurons", seen, len(images))

    means = mean_of_mlps(dense, tensor_batches(images, dense.device), over_tokens, report)
    widths = [(block.mlp.fc1.out_features, block.mlp.fc1.in_features) for block in dense.blocks]
    return [MlpMeans(*mean.split(width)) for mean, width in zip(means, widths, strict=True)]


def _refuse_channels_of_inputs(plan: Plan) -> None:
    """Refuse to cut channels under an MLP that reads some only: the norm's mean of all has to pass it."""
    for index, block in enumerate(plan.blocks):
        if block.mlp_inputs is not None:
            raise PlanError(
                f"plan.channels: blocks.{index}: its MLP reads {block.mlp_inputs} channels of the stream, and"
                " a stream that lacks channels needs it to read all that are left. Make one of the two cuts."
            )


def _refuse_cut_choices(dense: SlimViT, plan: Plan) -> None:
    """Refuse to cut neurons among which images choose: nothing says which of them the choice would lose."""
    for index, (full, block) in enumerate(zip(dense.arch.blocks, plan.blocks, strict=True)):
        if block.per_image is not None and block.hidden < full.hidden:
            raise PlanError(
                f"plan.hidden: blocks.{index}: expected all {full.hidden} neurons where each image chooses"
                f" {block.per_image.used} of them, got {block.hidden}. Cut them for all images, or for each."
            )


def require_closed_form(dense: SlimViT, images: Images, learnt: Fraction = Fraction(1)) -> None:
    """Make sure that a model can be slimmed in closed form, and that the images would do for it whole.

    Args:
        dense: the model.
        images: of which some or all are learnt from.
        learnt: share of them, 0..1.

    Raises:
        PlanError: a model that merges tokens already, or lacks channels of its stream.
        ImagesError: too few images.
    """
    _refuse_refit(dense)
    check_enough(dense.arch, keep_all(read_anatomy(dense.arch)), images, learnt)


def _refuse_refit(dense: SlimViT) -> None:
    """Refuse the closed form of a model that merges tokens already, or lacks channels of its stream.

    The stream that it aims at merges no tokens, and where norms are in the weights behind them a fit would
    lose the bias of its keys.
    """
    if dense.arch.merged or any(block.merged for block in dense.arch.blocks):
        raise PlanError(
            'slim.recover: expected "none" for a model that already merges tokens, got "closed-form". Make'
            " both cuts at once, from the model that this one came from; then the closed form repairs both."
        )
    if any(block.full is not None for block in dense.arch.blocks):
        raise PlanError(
            'slim.recover: expected "none" for a model that lacks channels of its stream, got "closed-form".'
            " Make both cuts at once, from the model that this one came from."
        )


def _cuts_no_weights(dense: SlimViT, plan: Plan) -> bool:
    return plan.blocks == keep_all(read_anatomy(dense.arch)).blocks


class Need(NamedTuple):
    """How many images a closed form takes, and why."""

    images: int
    block: int
    """Which one's covariance takes so many."""
    dims: int
    """Of that covariance."""
    tokens: int
    """Of an image, each a row."""


def images_needed(arch: Arch, plan: Plan) -> Need:
    """Return how many images give covariances of full rank: a row is a token that no merge took away."""
    needs = []
    for index, (block, left) in enumerate(zip(arch.blocks, plan.blocks, strict=True)):
        tokens = min(block.tokens_in, left.tokens)
        dims = max(block.hidden, block.heads * block.vo_dim)
        needs.append(Need(math.ceil(_ROWS_PER_DIM * dims / tokens), index, dims, tokens))
    return max(needs)


def check_enough(arch: Arch, plan: Plan, images: Images, learnt: Fraction = Fraction(1)) -> None:
    """Refuse a calibration set whose covariances would not have full rank.

    Args:
        arch: of the dense model.
        plan: what remains; the fewer tokens, the more images it takes.
        images: of which some or all are learnt from.
        learnt: share of them, 0..1.

    Raises:
        ImagesError: too few; the smallest number that does is named.
    """
    need = images_needed(arch, plan)
    least = math.ceil(need.images / learnt)
    if len(images) < least:
        raise ImagesError(
            f"calibration.images: the closed form needs at least {least} images for this model ({need.dims}"
            f" dims in the widest layer of blocks.{need.block}, {need.tokens} tokens an image), got"
            f" {len(images)}."
            " Give it that many or more: accuracy grows with them, and so does the time."
        )
