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
from edgevit.models.reduction import Reduction, reduce_tokens
from edgevit.progress import Progress, silent
from edgevit.training import Augment, Training
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.drop_path import dropping_paths
from edgevit.tune.loop import Trained, train_
from edgevit.tune.objective import Objective
from edgevit.tune.supervised import cross_entropy
from edgevit.tune.views import Plain, Subset, Target, make_views, split


@dataclass(frozen=True)
class Distil:
    """What the slim model learns from, and how."""

    training: Training = field(default_factory=Training)
    temperature: float = 1.0
    """Both models' logits are divided by it: above 1, the less likely classes count more."""
    hidden_states: float = 1.0
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
    validation: float = 0.0
    """Share of the images held out, on which the best epoch is chosen; 0: the last is the result."""


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
    """
    target = None
    if options.labels:
        classes = slim.arch.classes
        target = Target(required_labels(images, classes), classes, options.smoothing)
    seed = options.training.seed
    plain = Plain(images.pixels(), images.preprocess, target)
    views = make_views(plain, options.augment, seed)
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
    Differs: labels take part only where asked for, and hidden states need no projection, as slimming leaves
        the width; where channels of the stream were cut, streams are not compared.
    """

    def __init__(self, student: SlimViT, teacher: SlimViT, options: Distil) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.options = options
        widths = [[block.embed for block in model.arch.blocks] for model in (student, teacher)]
        self.compared = compared_blocks(teacher.arch) if widths[0] == widths[1] else ()

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
            if options.hidden_states and self.compared:
                errors = [_error(own, aim) for own, aim in zip(found.streams, wanted.streams, strict=True)]
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
