"""Distillation: train a slim model until it answers as the dense one does; by labels too, where asked for.

B batch, N tokens, N' tokens of the slim model, D embed width, C classes.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from edgevit.images import Images, required_labels
from edgevit.models.arch import Arch
from edgevit.models.layers import SlimViT
from edgevit.models.narrow import stages
from edgevit.models.reduction import Reduction, reduce_tokens
from edgevit.plan import Indices
from edgevit.progress import Progress, silent
from edgevit.training import Augment, Training
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.drop_path import dropping_paths
from edgevit.tune.loop import Trained, train_
from edgevit.tune.objective import Objective
from edgevit.tune.soft_labels import SoftLabels
from edgevit.tune.supervised import cross_entropy
from edgevit.tune.views import Plain, Subset, make_views, split


@dataclass(frozen=True)
class Distil:
    """What the slim model learns from, and how."""

    training: Training = field(default_factory=Training)
    temperature: float = 4.0
    """Both models' logits are divided by it: above 1, the less likely classes count more."""
    hidden_states: float = 10.0
    """Weight of the residual streams in the loss."""
    logits: float = 1.0
    """Weight of the dense model's answers in the loss."""
    labels: float = 0.0
    """Weight of the cross-entropy with the images' labels in the loss; 0: labels are not read."""
    smoothing: float = 0.1
    """Share of each label that is spread over all classes, 0..1."""
    drop_path: float = 0.0
    """Share of images for which the last block's branches are left out of a step, 0..1."""
    augment: Augment = "crop"
    least_area: float | None = None
    """Share of an image that a crop shows at least, 0..1; None: as usual with `augment`."""
    validation: float = 0.0
    """Share of the images held out, on which the best epoch is chosen; 0: the last is the result."""
    channels: tuple[Indices, ...] | None = None
    """Which channels of the dense model's stream the slim one's are, for each stage; None: all, in order."""


def distil(
    dense: SlimViT,
    slim: SlimViT,
    images: Images,
    options: Distil = Distil(),
    checkpoint: CheckpointFile | None = None,
    progress: Progress = silent,
) -> tuple[SlimViT, Trained]:
    """Return the slim model with weights trained to imitate the dense one; both arguments stay as they are.

    Args:
        dense: the teacher.
        slim: where training starts.
        images: labelled where labels count; all pixels are held in memory.
        options: what is learnt, and how.
        checkpoint: where the training is kept; it goes on from there if it was interrupted.
        progress: called after each step.

    Raises:
        TrainingError: the loss is not finite.
        WeightsError: the checkpoint is damaged or of another training.
        ImagesError: an image cannot be read, or labels are missing or do not fit.
        ValueError: the slim model's stream has other channels than the options say.
    """
    target = None
    if options.labels:
        classes = slim.arch.classes
        target = SoftLabels(required_labels(images, classes), classes, options.smoothing)
    seed = options.training.seed
    plain = Plain(images.pixels(), images.preprocess, target)
    views = make_views(plain, options.augment, seed, options.least_area)
    held = None
    if options.validation:
        rest, held_out = split(len(images), options.validation, seed)
        held = Subset(plain, held_out)
        views = Subset(views, rest)
    student = copy.deepcopy(slim).requires_grad_(True)
    objective = Distillation(student, copy.deepcopy(dense), options)
    with dropping_paths(student, options.drop_path):
        trained = train_(objective, views, options.training, checkpoint, progress, held)
    return student.requires_grad_(False), trained


class Distillation(Objective):
    """The loss of a slim model: KL from the dense one's answers, error of the streams, and of the labels.

    Reference: Hinton et al. 2015, arXiv:1503.02531, for the logits; Romero et al. 2015, arXiv:1412.6550, for
    the hidden states.
    Differs: labels take part only where asked for, and hidden states need no projection: slimming leaves the
        channels of the stream as they are, or cuts some, and then those that stay are compared.

    Raises:
        ValueError: the student's stream has other channels than the options say.
    """

    def __init__(self, student: SlimViT, teacher: SlimViT, options: Distil) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.options = options
        self.compared: tuple[int, ...] = ()
        if options.hidden_states:
            self.compared = compared_blocks(teacher.arch)
            self.kept = _kept_channels(student.arch, teacher.arch, options.channels)

    def train(self, mode: bool = True) -> Self:
        """Switch the student's mode; the teacher always evaluates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the mean loss of a batch: images [B, C, H, W], wanted probabilities [B, C] -> []."""
        return self._losses(images, targets).mean()

    def judge(self, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return whether each image's label is the first answer; without labels minus its loss, [B]."""
        if targets is None:
            return -self._losses(inputs, None)
        right: Tensor = self.student(inputs).argmax(dim=-1) == targets.argmax(dim=-1)
        return right.double()

    def _losses(self, images: Tensor, targets: Tensor | None) -> Tensor:
        """Return the loss of each image, [B]."""
        options = self.options
        found = _run(self.student, images, self.compared)
        losses = torch.zeros(len(images), device=images.device)
        if options.logits or options.hidden_states:
            with torch.no_grad():
                wanted = _run(self.teacher, images, self.compared)
            divergence = _divergence(found.logits.float(), wanted.logits.float(), options.temperature)
            losses = losses + options.logits * divergence
            if self.compared:
                aims = zip(self.compared, wanted.streams, strict=True)
                streams = [_with_channels(aim, self.kept[number - 1]) for number, aim in aims]
                errors = [_error(own, aim) for own, aim in zip(found.streams, streams, strict=True)]
                losses = losses + options.hidden_states * torch.stack(errors).mean(dim=0)
        if targets is not None:
            losses = losses + options.labels * cross_entropy(found.logits, targets)
        return losses


def compared_blocks(teacher: Arch) -> tuple[int, ...]:
    """Return the blocks, counted from 1, behind which streams are compared: after each third.

    Behind a block in which the teacher itself merges tokens there are none: its merges and the student's
    differ, and their tokens no longer correspond.
    """
    depth = len(teacher.blocks)
    merging = next((number for number, dims in enumerate(teacher.blocks, start=1) if dims.merged), depth + 1)
    merging = 1 if teacher.merged else merging
    return tuple(sorted({math.ceil(depth * third / 3) for third in (1, 2, 3)} & set(range(1, merging))))


def _kept_channels(student: Arch, teacher: Arch, channels: tuple[Indices, ...] | None) -> list[Tensor | None]:
    """Return for each block which channels of the teacher's stream behind it the student has; None: all.

    Raises:
        ValueError: a block of the student has other ones.
    """
    kept = [None if channels is None else torch.tensor(channels[stage]) for stage in stages(teacher)]
    for index, (own, full, here) in enumerate(zip(student.blocks, teacher.blocks, kept, strict=True)):
        named = full.embed if here is None else len(here)
        if named != own.embed:
            raise ValueError(
                f"channels: blocks.{index} of the slim model has {own.embed} in its stream, expected {named}."
                " Name those that it kept of the dense model's, or set hidden_states = 0."
            )
    return kept


class _Stream(NamedTuple):
    """The residual stream behind one block, and the merges that led to its tokens."""

    tokens: Tensor  # [B, N', D]
    merges: tuple[Reduction, ...]


class _Seen(NamedTuple):
    streams: list[_Stream]
    logits: Tensor  # [B, classes]


def _run(model: SlimViT, images: Tensor, compared: tuple[int, ...]) -> _Seen:
    """Run a model and keep the streams behind the blocks `compared`."""
    x, sizes = model.enter(images)
    merges: tuple[Reduction, ...] = ()
    if model.arch.merged:
        with torch.no_grad():
            merges = (model.input_reduction(model.patches(images)),)
    streams = []
    for number, block in enumerate(model.blocks, start=1):
        if block.dims.merged:
            with torch.no_grad():  # the same keys as the block computes, so the same merges
                merges = (*merges, block.reduction(block.attn.keys(block.norm1(x))))
        x, sizes = block(x, sizes)
        if number in compared:
            streams.append(_Stream(x, merges))
    return _Seen(streams, model.classify(x, sizes))


def _with_channels(stream: _Stream, kept: Tensor | None) -> _Stream:
    if kept is None:
        return stream
    return _Stream(stream.tokens.index_select(2, kept.to(stream.tokens.device)), stream.merges)


def _divergence(found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return KL(wanted || found) of each image, [B]; squared temperature keeps the gradient's size."""
    own = (found / temperature).log_softmax(dim=-1)
    aim = (wanted / temperature).log_softmax(dim=-1)
    divergence = functional.kl_div(own, aim, reduction="none", log_target=True)
    return divergence.sum(dim=-1) * temperature**2


def _error(found: _Stream, wanted: _Stream) -> Tensor:
    """Return the squared error of each image's stream relative to the wanted one's square, [B].

    Where the student merged or dropped tokens, so are the teacher's, and the same ones; where it dropped dead
    ones, those that are alive lead.
    """
    aim, sizes = wanted.tokens, None
    for merge in found.merges:
        aim, sizes = reduce_tokens(aim, sizes, merge)
    alive = min(found.tokens.shape[1], aim.shape[1])
    aim = aim[:, :alive].float()
    squares = (found.tokens[:, :alive].float() - aim).square().sum(dim=(1, 2))
    return squares / aim.square().sum(dim=(1, 2))
