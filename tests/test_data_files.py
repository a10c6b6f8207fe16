"""Every data file in the repository loads, survives a round trip, and keeps its folder free of code."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.images import ImageSet, load_image_set, open_images
from edgevit.preprocess import Preprocess
from edgevit.recipe import Recipe, load_recipe
from edgevit.schema import Strict, load_toml
from edgevit.shipped import Shipped, shipped_dir, shipped_names
from edgevit.target import Target, load_target

KINDS: dict[Shipped, type[Strict]] = {"targets": Target, "calibration": ImageSet, "recipes": Recipe}
FILES = [(kind, name) for kind in KINDS for name in shipped_names(kind)]


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_shipped_file_survives_a_round_trip(kind: Shipped, name: str) -> None:
    value = load_toml(shipped_dir(kind) / f"{name}.toml", KINDS[kind])
    assert KINDS[kind].model_validate_json(value.model_dump_json(exclude_unset=True)) == value


@pytest.mark.parametrize("folder", ["targets", "calibration"])
def test_data_folder_holds_data_and_a_readme(folder: Shipped) -> None:
    assert not list(shipped_dir(folder).rglob("*.py"))
    assert (shipped_dir(folder) / "README.md").is_file()


@pytest.mark.parametrize("name", shipped_names("targets"))
def test_shipped_target_says_what_it_is(name: str, tmp_path: Path) -> None:
    target = load_target(name, tmp_path)
    assert target.name == name
    assert target.description
    assert target.source


@pytest.mark.parametrize("name", shipped_names("recipes"))
def test_shipped_recipe_names_things_that_exist(name: str) -> None:
    loaded = load_recipe(name)
    recipe = loaded.recipe
    # "mae_finetuned_*" is the reader's own, as timm has no fine-tuned weights of MAE.
    weights = loaded.weights
    assert weights is None or weights.is_file() or weights.name.startswith("mae_finetuned_")
    assert all(load_target(target.name, loaded.folder) for target in recipe.target)
    sets = [section.set for section in (recipe.calibration, recipe.evaluation) if section]
    # "calibration.toml" is the reader's own, for models whose images cannot come along.
    assert all(load_image_set(name, loaded.folder) for name in sets if name != "calibration.toml")


@pytest.mark.parametrize("name", shipped_names("calibration"))
def test_shipped_set_opens_without_skipping(name: str, tmp_path: Path) -> None:
    source = load_image_set(name, tmp_path)
    assert source.set.kind != "hub"  # shipped sets work offline
    grey = Preprocess(32, (32, 32), "bicubic", (0.5,), (0.5,), channels=1)
    images = open_images(source, grey, None, 0)
    assert images.skipped == 0
    assert sum(len(batch) for batch in images.batches(256)) == len(images)
