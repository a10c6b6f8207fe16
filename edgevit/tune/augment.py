"""timm's standard augmentation, made a function of seed, epoch and image.

Crops, flips, RandAugment, colour jitter and random erasing change one image; mixup or cutmix then blends the
images of a batch, and their targets. timm draws from the random numbers of the whole process; here they are
seeded anew for each image and batch, and put back afterwards.
B batch, H height, W width, C channels, K classes.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.mixup import Mixup
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor

from edgevit.errors import ImagesError
from edgevit.preprocess import Preprocess
from edgevit.tune.soft_labels import SoftLabels

_RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
_JITTER = 0.3  # of brightness, contrast and saturation
_ERASED = 0.25  # share of images of which a part is erased
_MIXUP, _CUTMIX = 0.8, 1.0  # parameters of the beta distributions; each is drawn half the time


class _Transform(Protocol):
    def __call__(self, image: Image.Image, /) -> Tensor: ...


class _LevelFunction(Protocol):
    def __call__(self, level: float, hparams: object, /) -> tuple[int]: ...


@dataclass(frozen=True)
class StandardViews:
    """Views as ViTs are trained with; what an image becomes depends on seed, epoch and its batch alone.

    Reference: Touvron et al. 2021, DeiT, arXiv:2012.12877, as in timm; no repeated augmentation.
    Differs: of a batch of odd size the last image is not mixed.

    Raises:
        ImagesError: images that are not in colour.
    """

    pixels: NDArray[np.uint8]
    """Decoded images, [n, H, W, C]."""
    preprocess: Preprocess
    """How pixels become a model's input."""
    seed: int
    target: SoftLabels | None = None
    """Where there is one, a batch has two parts; blended images have blended targets."""
    least_area: float = 0.08
    """Share of the image that a crop has at least, 0..1; timm's own."""

    def __post_init__(self) -> None:
        if self.preprocess.channels != 3:
            raise ImagesError(
                f'augment = "standard" changes colours, and these images have {self.preprocess.channels}'
                ' channels. Use augment = "crop".'
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, epoch: int, chosen: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Return what the images `chosen`, [b], are in `epoch`, float32 [b, C, H, W]; and their targets."""
        images = torch.stack([self._view(epoch, int(index)) for index in chosen])
        classes = 1 if self.target is None else self.target.classes
        labels = np.zeros(len(self), np.int64) if self.target is None else self.target.labels
        targets = SoftLabels(labels, classes, 0.0 if self.target is None else self.target.smoothing).of(
            chosen
        )
        even = len(chosen) // 2 * 2
        if even:
            mixing = Mixup(
                _MIXUP,
                _CUTMIX,
                label_smoothing=0.0 if self.target is None else self.target.smoothing,
                num_classes=classes,
            )
            with _seeded([self.seed, epoch, _MIXING, *map(int, chosen[:1])]):
                images[:even], targets[:even] = mixing(images[:even], torch.from_numpy(labels[chosen[:even]]))
        return (images,) if self.target is None else (images, targets)

    def _view(self, epoch: int, index: int) -> Tensor:
        with _seeded([self.seed, epoch, _VIEWING, index]):
            return self._transform(Image.fromarray(self.pixels[index]))

    @functools.cached_property
    def _transform(self) -> _Transform:
        height, width = self.pixels.shape[1:3]
        transform: _Transform = transforms_imagenet_train(
            img_size=(height, width),
            scale=(self.least_area, 1.0),
            color_jitter=_JITTER,
            force_color_jitter=True,
            auto_augment=_RAND_AUGMENT,
            interpolation="bicubic",
            mean=self.preprocess.mean,
            std=self.preprocess.std,
            re_prob=_ERASED,
            re_mode="pixel",
        )
        _keep_one_bit(transform)
        return transform


def _keep_one_bit(transform: object) -> None:
    """Let posterising leave a bit: timm's highest level asks for none, which Pillow 13 refuses."""
    for step in getattr(transform, "transforms", ()):
        for operation in getattr(step, "ops", ()):
            if operation.name.startswith("Posterize"):
                operation.level_fn = functools.partial(_at_least_one, operation.level_fn)


def _at_least_one(level_fn: _LevelFunction, level: float, hparams: object) -> tuple[int]:
    return (max(1, level_fn(level, hparams)[0]),)


_VIEWING, _MIXING = 2, 3  # keep these numbers apart from each other and from those of the order


@contextmanager
def _seeded(entropy: list[int]) -> Iterator[None]:
    """Seed every generator that timm draws from, and put their states back when the block ends."""
    python, legacy = random.getstate(), np.random.get_state()
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
