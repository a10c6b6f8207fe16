"""How many images a build draws."""

from __future__ import annotations

import dataclasses

import pytest
from toy_vits import toy_arch

from edgevit.models.arch import Arch
from edgevit.pipeline.sets import measuring_images

ARCH = toy_arch()


def with_neurons(hidden: int) -> Arch:
    """Return the toy with MLPs of so many neurons."""
    blocks = tuple(dataclasses.replace(block, hidden=hidden) for block in ARCH.blocks)
    return dataclasses.replace(ARCH, blocks=blocks)


@pytest.mark.parametrize(
    ("hidden", "there", "wanted"),
    [
        (40, 1000, 256),
        (40, 100, 100),
        (1700, 1000, 300),  # 2 * 1700 / 17 tokens = 200 images are learnt from, two thirds of them
        (1700, 280, 280),
    ],
)
def test_cuts_are_measured_on_as_many_images_as_the_fits_need(hidden: int, there: int, wanted: int) -> None:
    assert measuring_images(with_neurons(hidden), there) == wanted
