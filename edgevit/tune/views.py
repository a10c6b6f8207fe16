"""Training images that are never twice the same: flips and random resized crops of decoded pixels.

B batch, H height, W width, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgevit.preprocess import Preprocess

_LOG_RATIO = math.log(4 / 3)  # of a crop's width to its height, at most, in either direction


@dataclass(frozen=True)
class Views:
    """Random views of images; which view an image has in an epoch depends on seed, epoch and image alone."""

    pixels: NDArray[np.uint8]
    """Decoded images, [n, H, W, C]."""
    preprocess: Preprocess
    """How pixels become a model's input."""
    seed: int
    least_area: float = 0.35
    """Share of the image that a crop has at least, 0..1."""

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, epoch: int, chosen: NDArray[np.int64]) -> tuple[Tensor]:
        """Return the views that the images `chosen`, [b], have in `epoch`, float32 [b, C, H, W]."""
        pixels = torch.from_numpy(self.pixels[chosen]).permute(0, 3, 1, 2).float() / 255
        maps = torch.from_numpy(self._maps(epoch)[chosen])  # [b, 2, 3]
        grid = functional.affine_grid(maps, list(pixels.shape), align_corners=False)
        views = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        mean = torch.tensor(self.preprocess.mean).view(-1, 1, 1)
        std = torch.tensor(self.preprocess.std).view(-1, 1, 1)
        return ((views - mean) / std,)

    def _maps(self, epoch: int) -> NDArray[np.float32]:
        """Return for every image the map from its view to itself, [n, 2, 3]; both go from -1 to 1."""
        draw = np.random.default_rng([self.seed, epoch, _STREAM]).random((5, len(self)))
        area = self.least_area + (1 - self.least_area) * draw[0]
        ratio = np.exp(_LOG_RATIO * (2 * draw[1] - 1))
        width, height = np.minimum(1, np.sqrt(area * ratio)), np.minimum(1, np.sqrt(area / ratio))
        maps = np.zeros((len(self), 2, 3), np.float32)
        maps[:, 0, 0] = np.where(draw[2] < 0.5, width, -width)  # a negative width mirrors
        maps[:, 1, 1] = height
        maps[:, 0, 2] = (1 - width) * (2 * draw[3] - 1)
        maps[:, 1, 2] = (1 - height) * (2 * draw[4] - 1)
        return maps


_STREAM = 1  # keeps these numbers apart from those of the order, which has the same seed and epoch
