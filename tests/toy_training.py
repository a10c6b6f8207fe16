"""Trainings of milliseconds: a regression whose steps draw random numbers; noise and images to learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from toy_build import write_images

from edgevit.images import Images, ImageSet, LoadedSet, open_images
from edgevit.preprocess import Preprocess
from edgevit.training import Training
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.objective import Objective, ParameterGroup
from edgevit.tune.supervised import Supervision

SAMPLES = 22
TRAINING = Training(epochs=4, lr=1e-2, batch=5, precision="fp32", checkpoint_steps=3)  # 4 steps an epoch
SHORT = Training(epochs=2, lr=1e-3, batch=4, precision="fp32", checkpoint_steps=2)  # on 12 images: 3 steps
SUPERVISED = Supervision(SHORT)
PREPROCESS = Preprocess(resize=16, crop=(16, 16), interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)


class Regression(Objective):
    """Mean squared error of a small network with dropout; one layer is frozen."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.frozen = nn.Linear(6, 8).requires_grad_(False)
        self.trained = nn.Linear(8, 1)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, inputs: Tensor, wanted: Tensor) -> Tensor:
        found = self.trained(self.dropout(self.frozen(inputs).tanh()))
        return functional.mse_loss(found[:, 0], wanted)


class SparseRegression(Regression):
    """The same with a proximal step of L1 on the trained layer's inputs, which learn ten times as fast."""

    strength = 1.0
    """Of L1, against a learning rate of 1."""

    def groups(self) -> tuple[ParameterGroup, ...]:
        return ParameterGroup(("trained.weight",), rate=10.0, decayed=False), ParameterGroup(
            ("trained.bias",)
        )

    def after_step(self, lr: float) -> None:
        weight = self.trained.weight
        weight.copy_(functional.softshrink(weight, 10.0 * lr * self.strength))


class Noise:
    """Inputs and targets that differ from epoch to epoch."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken
        """A sample whose target is no number."""

    def __len__(self) -> int:
        return SAMPLES

    def batch(self, epoch: int, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        values = np.random.default_rng([7, epoch]).standard_normal((SAMPLES, 7)).astype(np.float32)
        if self.broken is not None:
            values[self.broken, 6] = np.nan
        rows = torch.from_numpy(values[chosen])
        return rows[:, :6], rows[:, 6]


def checkpoint_in(folder: Path, belongs_to: str = "toy") -> CheckpointFile:
    """Return where the toy training is kept."""
    return CheckpointFile(folder / "training.safetensors", belongs_to)


def open_toy(folder: Path, label: str = "label") -> Images:
    """Write 12 images for the models of toy_vits.py and open them; `label` empty: without labels."""
    write_images(folder / "set", 12)
    source = LoadedSet(ImageSet(kind="folder", path="set", label=label), folder / "set.toml")
    return open_images(source, PREPROCESS, None, 0)


def stop_at(step: int, of: str = "") -> Callable[[str, int, int], None]:
    """Return a progress that is interrupted after a step, of the task `of` where it is named."""

    def stop(task: str, done: int, total: int) -> None:
        if done == step and of in ("", task):
            raise KeyboardInterrupt

    return stop


def weights(objective: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all weights."""
    return {name: value.clone() for name, value in objective.state_dict().items()}
