from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgevit.preprocess import Preprocess
from edgevit.tune.views import Views

PREPROCESS = Preprocess(
    resize=12, crop=(12, 8), interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)


def pixels(count: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 12, 8, 3), dtype=np.uint8)


def views(least_area: float = 0.35, seed: int = 0) -> Views:
    return Views(pixels(), PREPROCESS, seed, least_area)


ALL = np.arange(6)


def test_views_do_not_depend_on_who_else_is_in_the_batch() -> None:
    (together,) = views().batch(3, ALL)
    for index in ALL:
        (alone,) = views().batch(3, ALL[index : index + 1])
        assert torch.equal(alone[0], together[index])


@pytest.mark.parametrize(("epoch", "seed"), [(4, 0), (3, 1)])
def test_views_differ_between_epochs_and_seeds(epoch: int, seed: int) -> None:
    (first,), (other,) = views().batch(3, ALL), views(seed=seed).batch(epoch, ALL)
    assert all((a - b).abs().max() > 0.1 for a, b in zip(first, other, strict=True))


def test_views_of_whole_images_are_the_models_input_or_its_mirror() -> None:
    """A crop of the whole area has the image's own proportions at least once in many draws."""
    flat = Views(pixels(), PREPROCESS, 0, least_area=1.0)
    expected = torch.from_numpy(PREPROCESS.normalise(pixels()))
    mirrored = 0
    for epoch in range(5):
        (found,) = flat.batch(epoch, ALL)
        maps = flat._maps(epoch)
        for view, image, map_ in zip(found, expected, maps, strict=True):
            if map_[1, 1] == 1:  # width was cut or not, height was not: whole columns are compared
                mirrored += int(map_[0, 0] < 0)
            if abs(map_[0, 0]) == map_[1, 1] == 1:
                assert torch.allclose(view, image.flip(-1) if map_[0, 0] < 0 else image, atol=1e-5)
    assert mirrored > 0


def test_views_crops_keep_to_their_least_area_and_inside_the_image() -> None:
    maps = np.concatenate([views(0.5)._maps(epoch) for epoch in range(200)])
    width, height = np.abs(maps[:, 0, 0]), maps[:, 1, 1]
    assert (width * height).min() > 0.5 * 0.86  # where 4/3 of a side would be beyond the image, it is cut
    assert (np.abs(maps[:, 0, 2]) + width).max() <= 1 + 1e-6
    assert (np.abs(maps[:, 1, 2]) + height).max() <= 1 + 1e-6
    assert 0.4 < (maps[:, 0, 0] < 0).mean() < 0.6


def test_views_of_one_colour_stay_that_colour() -> None:
    plain = np.full((3, 12, 8, 3), 200, np.uint8)
    (found,) = Views(plain, PREPROCESS, 0).batch(0, np.arange(3))
    expected = torch.from_numpy(PREPROCESS.normalise(plain))
    assert torch.allclose(found, expected, atol=1e-5)
