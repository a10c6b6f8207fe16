from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgevit.errors import ImagesError
from edgevit.preprocess import Preprocess
from edgevit.tune.augment import StandardViews
from edgevit.tune.soft_labels import SoftLabels

PREPROCESS = Preprocess(16, (16, 16), "bicubic", (0.5,) * 3, (0.25,) * 3)
LABELS = np.array([0, 1, 2, 3, 0, 1])
ALL = np.arange(6)


def pixels(channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, 16, 16, channels), dtype=np.uint8)


def views(seed: int = 0, smoothing: float = 0.1) -> StandardViews:
    return StandardViews(pixels(), PREPROCESS, seed, SoftLabels(LABELS, 4, smoothing))


def test_standard_views_follow_from_seed_and_epoch_whatever_was_drawn_before() -> None:
    first = views().batch(3, ALL)
    random.random(), np.random.rand(), torch.rand(1)
    again = views().batch(3, ALL)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize(("epoch", "seed"), [(4, 0), (3, 1)])
def test_standard_views_differ_between_epochs_and_seeds(epoch: int, seed: int) -> None:
    first, other = views().batch(3, ALL)[0], views(seed).batch(epoch, ALL)[0]
    assert all((a - b).abs().max() > 0.1 for a, b in zip(first, other, strict=True))


def test_standard_views_leave_the_random_numbers_of_the_process() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    views().batch(0, ALL)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_standard_views_blend_targets_as_images() -> None:
    blended = 0
    for epoch in range(8):
        images, targets = views(smoothing=0.0).batch(epoch, ALL)
        assert images.shape == (6, 3, 16, 16)
        assert torch.allclose(targets.sum(dim=1), torch.ones(6))
        blended += int(((targets > 0).sum(dim=1) == 2).any())
    assert blended >= 6


def test_standard_views_smooth_blended_targets_once() -> None:
    _, targets = views(smoothing=0.2).batch(0, ALL)
    assert targets.min().item() == pytest.approx(0.05)
    assert torch.allclose(targets.sum(dim=1), torch.ones(6))


def test_standard_views_of_an_odd_batch_leave_the_last_unmixed() -> None:
    for epoch in range(4):
        images, targets = views(smoothing=0.0).batch(epoch, ALL[:5])
        assert images.shape[0] == 5
        assert targets[4].tolist() == [1, 0, 0, 0]


def test_standard_views_without_target_are_images_alone() -> None:
    (images,) = StandardViews(pixels(), PREPROCESS, 0).batch(0, ALL[:1])
    assert images.shape == (1, 3, 16, 16)
    assert images.isfinite().all()


def test_standard_views_of_grey_images_are_refused() -> None:
    grey = Preprocess(16, (16, 16), "bicubic", (0.5,), (0.25,), channels=1)
    with pytest.raises(ImagesError, match=r"augment = \"standard\" changes colours.*have 1 channels"):
        StandardViews(pixels(1), grey, 0)


def test_standard_views_posterise_to_one_bit_at_least() -> None:
    (randomly,) = [step for step in views()._transform.transforms if hasattr(step, "ops")]  # type: ignore[attr-defined]
    (posterise,) = [operation for operation in randomly.ops if operation.name.startswith("Posterize")]
    posterise.prob, posterise.magnitude, posterise.magnitude_std = 1.0, 10.0, 0.0
    assert set(np.unique(np.asarray(posterise(Image.fromarray(pixels()[0]))))) == {0, 128}


def test_standard_views_crop_as_much_as_is_asked_for() -> None:
    whole = StandardViews(pixels(), PREPROCESS, 0, least_area=1.0)
    (crop,) = [step for step in whole._transform.transforms if hasattr(step, "scale")]  # type: ignore[attr-defined]
    assert crop.scale == (1.0, 1.0)
