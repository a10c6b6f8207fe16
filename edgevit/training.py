"""How a model is trained: the options of a training, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TrainingPrecision = Literal["auto", "fp32", "bf16"]
"""What matrix products are computed in; "auto" is bf16 where the device has instructions for it."""

Schedule = Literal["one-cycle", "cosine"]


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
    schedule: Schedule = "one-cycle"
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
