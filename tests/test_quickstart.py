"""The quickstart's data as it is shipped: images, split, preprocessing and weights."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from edgevit.images import Images, load_image_set, open_images
from edgevit.models.load import LoadedModel, ModelSource, load_model
from edgevit.recipe import load_recipe
from edgevit.shipped import shipped_dir


@pytest.fixture(scope="module")
def quickstart() -> LoadedModel:
    recipe = load_recipe("quickstart")
    model = recipe.recipe.model
    return load_model(ModelSource(model.name, recipe.weights, options=model.options))


def _open(name: str, loaded: LoadedModel) -> Images:
    source = load_image_set(name, Path())
    return open_images(source, loaded.preprocess, None, 0)


def _png_bytes(name: str) -> list[bytes]:
    table = pq.read_table(shipped_dir("calibration") / f"{name}.parquet")
    return [row["bytes"] for row in table["image"].to_pylist()]


def test_digits_train_and_test_share_no_image() -> None:
    train, test = _png_bytes("digits-train"), _png_bytes("digits-test")
    assert (len(train), len(test)) == (1200, 597)
    assert set(train) & set(test) == set()


def test_digits_are_the_original_8x8_grey_images() -> None:
    images = [Image.open(io.BytesIO(png)) for png in _png_bytes("digits-test")]
    assert {(image.size, image.mode) for image in images} == {((8, 8), "L")}
    assert len({value for image in images for value in np.unique(np.asarray(image))}) == 17


def test_digits_train_is_normalised_by_its_own_statistics(quickstart: LoadedModel) -> None:
    pixels = np.concatenate(list(_open("digits-train", quickstart).batches(256)))
    assert pixels.mean(dtype=np.float64) == pytest.approx(0, abs=1e-3)
    assert pixels.std(dtype=np.float64) == pytest.approx(1, abs=1e-3)


def test_quickstart_weights_read_the_test_digits(quickstart: LoadedModel) -> None:
    images = _open("digits-test", quickstart)
    with torch.inference_mode():
        logits = [quickstart.model(torch.from_numpy(batch)) for batch in images.batches(64)]
    assert (torch.cat(logits).argmax(dim=1).numpy() == images.labels).mean() > 0.98


def test_quickstart_weights_are_small_enough_to_commit() -> None:
    weights = load_recipe("quickstart").weights
    assert weights is not None
    assert weights.stat().st_size < 3e6
