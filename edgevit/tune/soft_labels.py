"""Labels as the probabilities that a model should answer with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class SoftLabels:
    """What a model should answer for each image."""

    labels: NDArray[np.int64]
    """Class of each image, [n]."""
    classes: int
    smoothing: float = 0.0
    """Share of each label that is spread over all classes, 0..1."""

    def of(self, chosen: NDArray[np.int64]) -> Tensor:
        """Return the wanted probabilities of the images `chosen`, float32 [b, K]."""
        hot = functional.one_hot(torch.from_numpy(self.labels[chosen]), self.classes).float()
        return hot * (1 - self.smoothing) + self.smoothing / self.classes
