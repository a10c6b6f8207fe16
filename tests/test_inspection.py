"""What `edgevit inspect` shows of a model whose images choose neurons."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from test_models_load import PREPROCESS
from toy_choosers import chooser

from edgevit.inspection import inspect_model, render
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
