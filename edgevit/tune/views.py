"""Training images that are never twice the same: flips and random resized crops of decoded pixels.

`augment.py` varies them more. Where images have labels, a batch has what the model should answer as well.
B batch, H height, W width, C channels, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgevit.errors import ImagesError
from edgevit.preprocess import Preprocess
from edgevit.training import Augment
from edgevit.tune.loop import TrainingData
from edgevit.tune.soft_labels import SoftLabels

_LOG_RATIO = math.log(4 / 3)  # of a crop's width to its height, at most, in either direction


@dataclass(frozen=True)
class Plain:
    """Images as the model sees them when it is used."""

    pixels: NDArray[np.uint8]
    """Decoded images, [n, H, W, C]."""
    preprocess: Preprocess
    target: SoftLabels | None = None
    """Where there is one, a batch has two parts."""

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, epoch: int, chosen: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Return the images `chosen`, [b], the same in every epoch, float32 [b, C, H, W]; and targets."""
        images = torch.from_numpy(self.preprocess.normalise(self.pixels[chosen]))
        return (images,) if self.target is None else (images, self.target.of(chosen))


def make_views(plain: Plain, augment: Augment, seed: int, least_area: float | None = None) -> TrainingData:
    """Return random views of images, with what to answer where there is a target.

    Args:
        plain: the images as they are.
        augment: how they are varied.
        seed: of every draw.
        least_area: share of an image that a crop shows at least, 0..1; None: as usual with `augment`.

    Raises:
        ImagesError: images are not in colour and `augment` is "standard".
    """
    match augment:
        case "crop":
            return Views(plain.pixels, plain.preprocess, seed, least_area or Views.least_area, plain.target)
        case "standard":
            from edgevit.tune.augment import StandardViews

            least = least_area or StandardViews.least_area
            return StandardViews(plain.pixels, plain.preprocess, seed, plain.target, least)


@dataclass(frozen=True)
class Subset:
    """Some of the samples."""

    all: TrainingData
    rows: NDArray[np.int64]
    """Which of them, [n]."""

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, epoch: int, chosen: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Return what these samples are in `epoch`."""
        return self.all.batch(epoch, self.rows[chosen])


def split(count: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the numbers below `count` at random; return those that remain and the share held out, sorted.

    Raises:
        ImagesError: too few to divide: either part would be empty.
    """
    held = round(share * count)
    if not 0 < held < count:
        raise ImagesError(
            f"tune.validation: {share:g} of {count} images is {held}; expected 1..{count - 1}. Take more"
            " images, or another share."
        )
    order = np.random.default_rng([seed, _SPLIT]).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


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
    target: SoftLabels | None = None
    """Where there is one, a batch has two parts."""

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, epoch: int, chosen: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Return what the images `chosen`, [b], are in `epoch`, float32 [b, C, H, W]; and their targets."""
        pixels = torch.from_numpy(self.pixels[chosen]).permute(0, 3, 1, 2).float() / 255
        maps = torch.from_numpy(self._maps(epoch)[chosen])  # [b, 2, 3]
        grid = functional.affine_grid(maps, list(pixels.shape), align_corners=False)
        views = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        mean = torch.tensor(self.preprocess.mean).view(-1, 1, 1)
        std = torch.tensor(self.preprocess.std).view(-1, 1, 1)
        images = (views - mean) / std
        return (images,) if self.target is None else (images, self.target.of(chosen))

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
_SPLIT = 2**32 - 1  # no epoch has this number
