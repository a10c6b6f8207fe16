"""Tests for the images that a whole plan is judged on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_build import write_images

from edgevit.images import load_image_set, open_images
from edgevit.pipeline.judged import spread_batches
from edgevit.preprocess import Preprocess
from edgevit.slim.stream import tensor_batches

SMALL = Preprocess(8, (8, 8), "bilinear", (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (4, [0, 23, 46, 69]), (70, range(70)), (500, range(70))]
)
def test_images_are_spread_over_the_whole_set(tmp_path: Path, count: int, expected: list[int]) -> None:
    write_images(tmp_path / "pictures", 70)
    (tmp_path / "set.toml").write_text('kind = "folder"\npath = "pictures"\n')
    images = open_images(load_image_set("set.toml", tmp_path), SMALL, None, 0)

    found = torch.cat(list(spread_batches(images, count)))

    assert torch.equal(found, torch.cat(list(tensor_batches(images)))[list(expected)])
