"""A recipe to start from, for a model whose blocks differ; tests/test_cli.py has the command."""

from __future__ import annotations

from pathlib import Path

from toy_swins import SWIN

from edgevit.init_recipe import recipe_text
from edgevit.models.anatomy import read_anatomy
from edgevit.recipe import Recipe
from edgevit.schema import load_toml


def test_recipe_for_stages_of_other_widths_lists_a_number_for_each_block(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text("swin", SWIN, read_anatomy(SWIN)))
    plan = load_toml(path, Recipe).plan
    assert (plan.qk_dim, plan.hidden) == (6, (48, 48, 96, 96))
    assert "# heads = [2, 2, 4, 4]  # of 2, 2, 4, 4: heads" in path.read_text()
    assert "# tokens: this model attends inside windows of a grid" in path.read_text()
