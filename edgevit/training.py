"""How a model is trained: the options of a training, and what a recipe may say of them (data)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from edgevit.schema import Strict

TrainingPrecision = Literal["auto", "fp32", "bf16"]
"""What matrix products are computed in; "auto" is bf16 where the device has instructions for it."""

RateSchedule = Literal["one-cycle", "cosine"]

Augment = Literal["crop", "standard"]
"""How training images are varied: flips and crops, or all that timm trains with."""


@dataclass(frozen=True)
class Training:
    """Everything that a training depends on, beside the model, what it is trained for and its data.

    Raises:
        ValueError: a count below 1, a rate that is not positive, or a share outside 0..1.
    """

    epochs: int = 6
    lr: float = 5e-5
    """The highest learning rate."""
    batch: int = 25
    """Samples of a step, over all processes."""
    seed: int = 0
    """Of the order, of augmentation and of whatever a model draws."""
    precision: TrainingPrecision = "auto"
    schedule: RateSchedule = "one-cycle"
    warmup: float = 0.3
    """Share of the steps in which the learning rate rises, 0..1."""
    weight_decay: float = 0.01
    """Of matrices and larger; biases and norms have none."""
    clip_norm: float = 1.0
    """Gradients longer than this are scaled down to it."""
    ema: float | None = None
    """Decay of the exponential moving average that becomes the result; None: the last weights are."""
    checkpoint_steps: int = 50
    """Steps between two checkpoints; changes no result."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number > 0, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup: expected a share >= 0 and < 1, got {self.warmup}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema: expected a decay between 0 and 1, got {self.ema}")


class TrainingKeys(Strict):
    """What a recipe may say to every training."""

    epochs: int = Field(default=6, ge=1)
    """Passes over the images, >= 1."""
    lr: float = Field(default=5e-5, gt=0, allow_inf_nan=False)
    """Highest learning rate, > 0."""
    batch: int = Field(default=25, ge=1)
    """Images of a step, >= 1."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order, of augmentation and of what is dropped at random, >= 0."""
    precision: TrainingPrecision = "auto"
    """What matrix products are computed in; auto: bf16 where the device has instructions for it."""
    schedule: RateSchedule = "one-cycle"
    """How the learning rate rises and falls: in half a cosine both ways, or in a line and half a cosine."""
    warmup: float = Field(default=0.3, ge=0, lt=1)
    """Share of the steps in which the learning rate rises, 0..1."""
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """Of matrices, >= 0; biases, norms and gates have none."""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of each label that is spread over all classes, 0..1."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Share of images for which the last block's branches are left out of a step, 0..1; 0 in the first."""
    augment: Augment = "crop"
    """Flips and crops; or timm's standard: RandAugment, colour, erasing, mixup and cutmix as well."""
    least_area: float | None = Field(default=None, gt=0, le=1)
    """Share of an image that a crop shows at least, 0..1; 1: flips alone. Default: 0.35; standard's: 0.08."""
    images: int | None = Field(default=None, ge=1)
    """Images drawn from the calibration set, >= 1; default: those of [calibration]."""
    checkpoint_steps: int = Field(default=50, ge=1)
    """Steps after which an interrupted training can go on, >= 1."""

    def training(self, precision: TrainingPrecision) -> Training:
        """Return the options of the training, with its precision decided."""
        return Training(
            epochs=self.epochs,
            lr=self.lr,
            batch=self.batch,
            seed=self.seed,
            precision=precision,
            schedule=self.schedule,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            checkpoint_steps=self.checkpoint_steps,
        )
