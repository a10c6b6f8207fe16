"""Learning from labels: the cross-entropy, and the training of an objective on labelled images.

B batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional

from edgevit.images import Images, required_labels
from edgevit.models.layers import SlimViT
from edgevit.progress import Progress
from edgevit.training import Augment, Training, TrainingKeys
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.drop_path import dropping_paths
from edgevit.tune.loop import Trained, train_
from edgevit.tune.objective import Objective
from edgevit.tune.precision import resolve_precision
from edgevit.tune.soft_labels import SoftLabels
from edgevit.tune.views import Plain, make_views


@dataclass(frozen=True)
class Supervision:
    """How labels are learnt from."""

    training: Training = field(default_factory=Training)
    smoothing: float = 0.1
    """Share of each label that is spread over all classes, 0..1."""
    drop_path: float = 0.0
    """Share of images for which the last block's branches are left out of a step, 0..1."""
    augment: Augment = "crop"
    least_area: float | None = None
    """Share of an image that a crop shows at least, 0..1; None: as usual with `augment`."""


def supervision(keys: TrainingKeys) -> Supervision:
    """Return what a recipe asks for, with the precision decided for this machine."""
    training = keys.training(resolve_precision(keys.precision))
    return Supervision(training, keys.smoothing, keys.drop_path, keys.augment, keys.least_area)


def train_supervised_(
    objective: Objective,
    model: SlimViT,
    images: Images,
    options: Supervision,
    checkpoint: CheckpointFile | None,
    progress: Progress,
) -> Trained:
    """Train an objective whose `forward` takes images and targets, as `cross_entropy` does.

    Args:
        objective: holds `model`.
        model: whose branches are dropped.
        images: labelled; all pixels are held in memory.
        options: how.
        checkpoint: where the training is kept; it goes on from there if it was interrupted.
        progress: called after each step.

    Raises:
        ImagesError: images without labels, with labels that the model's head cannot give, or unreadable.
        TrainingError: the loss is not finite.
        WeightsError: the checkpoint is damaged or of another training.
    """
    classes = model.arch.classes
    target = SoftLabels(required_labels(images, classes), classes, options.smoothing)
    plain = Plain(images.pixels(), images.preprocess, target)
    views = make_views(plain, options.augment, options.training.seed, options.least_area)
    with dropping_paths(model, options.drop_path):
        return train_(objective, views, options.training, checkpoint, progress)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each image, [B], from logits and wanted probabilities, both [B, C]."""
    return functional.cross_entropy(logits.float(), targets, reduction="none")
