"""What `edgevit inspect` shows: of a model whose images choose neurons, and of names with options."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import save_file
from toy_choosers import chooser
from toy_vits import PREPROCESS

from edgevit.errors import RecipeError, UnsupportedModelError, WeightsError
from edgevit.inspection import inspect_model, render
from edgevit.models.cct import cct_4_3x2
from edgevit.models.load import LoadedModel, save_model


def test_inspect_shows_the_neurons_that_images_use_and_the_channels_they_read(tmp_path: Path) -> None:
    save_model(LoadedModel(chooser(), PREPROCESS, None, True), tmp_path)
    found = inspect_model(str(tmp_path))
    console = Console(file=io.StringIO(), width=120)
    render(found, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    rows = {line.split()[0]: line for line in lines if line.startswith("blocks.")}
    assert "(" not in rows["blocks.0"]
    assert "40 (10 used, 9 inputs)" in rows["blocks.1"]
    first, second, _ = found.to_json()["blocks"]
    assert (first["per_image"], first["mlp_inputs"]) == (None, None)
    assert second["per_image"] == {"used": 10, "score": "contribution", "class_weight": 2.0}
    assert second["mlp_inputs"] == 9


def test_inspect_weights_of_another_head_are_refused_until_its_classes_are_given(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(cct_4_3x2(num_classes=7).state_dict(), weights)
    with pytest.raises(WeightsError, match=r"classifier\.fc\.weight: cct_4_3x2 wants \[10, 128\]"):
        inspect_model("cct_4_3x2", weights)
    assert inspect_model("cct_4_3x2", weights, {"num_classes": 7}).arch.classes == 7


@pytest.mark.parametrize(
    ("weights", "given"), [(None, "num_classes"), (Path("w.pth"), "weights, num_classes")]
)
def test_inspect_directory_takes_no_weights_and_no_options(
    tmp_path: Path, weights: Path | None, given: str
) -> None:
    with pytest.raises(RecipeError, match=rf"beside {given}, got a directory.*Leave {given} out"):
        inspect_model(str(tmp_path), weights, {"num_classes": 7})


def test_inspect_name_without_a_head_says_what_gives_it_one() -> None:
    with pytest.raises(UnsupportedModelError, match=r"no classifier .* take --num-classes"):
        inspect_model("cct_4_3x2", options={"num_classes": 0})
