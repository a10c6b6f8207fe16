from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.errors import RecipeError
from edgevit.recipe import LoadedRecipe, load_recipe
from edgevit.sweep.points import read_points

MODEL = '[model]\nname = "deit_tiny_patch16_224"\n[calibration]\nset = "mine.toml"\n'


def recipe(folder: Path, more: str = "[budget]\nmacs = 0.6\n") -> LoadedRecipe:
    path = folder / "tiny.toml"
    path.write_text(MODEL + more)
    return load_recipe(str(path))


def test_points_replace_the_value_of_the_budget_and_keep_the_rest(tmp_path: Path) -> None:
    given = recipe(tmp_path, '[budget]\nspeedup = 1.2\nprecision = "int8"\n[tune]\nepochs = 3\n')
    points = read_points(given, "1.5, 2", None, tmp_path / "out")
    first, second = points.points
    assert points.key == "speedup"
    assert (first.budget.speedup, first.budget.precision) == (1.5, "int8")
    assert (first.recipe.recipe.name, second.recipe.recipe.name) == ("tiny-speedup-1.5", "tiny-speedup-2")
    assert second.folder == tmp_path / "out" / "speedup-2"
    assert second.label == "speedup 2"
    assert first.recipe.recipe.tune == given.recipe.tune
    assert first.recipe.path == given.path


def test_points_may_be_shares_and_amounts_in_one_sweep(tmp_path: Path) -> None:
    points = read_points(recipe(tmp_path), "0.9,0.68G", None, tmp_path)
    assert [point.budget.asked for point in points.points] == [0.9, "0.68G"]


def test_kind_says_what_the_values_are_of_where_the_recipe_does_not(tmp_path: Path) -> None:
    points = read_points(recipe(tmp_path, ""), "0.9", "params", tmp_path)
    assert points.points[0].budget.params == 0.9


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ("", r"--budgets: expected at least one value, got none\. Give values with commas"),
        ("0.9,,0.8", r"--budgets: expected a value on each side of a comma, got '0\.9,,0\.8'"),
        ("1.2", r"tiny\.toml with --budgets 1\.2: budget\.macs: expected a number < 1\.0 or text, got 1\.2"),
        ("nan", r"budget\.macs: expected a number < 1\.0"),
        ("much", r"expected a number or an absolute number as text, such as \"0\.68G\""),
        ("0.8,0.80", r"--budgets: 0\.8 is there twice\. Give each budget once"),
        ("0.68G,680M", r"--budgets: 680M is the same as 0\.68G"),
    ],
)
def test_values_that_are_no_budgets_are_refused(tmp_path: Path, budgets: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_points(recipe(tmp_path), budgets, None, tmp_path)


def test_all_values_that_are_out_of_range_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--budgets 1\.2: (.|\n)*--budgets 0: "):
        read_points(recipe(tmp_path), "1.2,0.9,0", None, tmp_path)


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ("", None, r"tiny\.toml: budget: missing; .* --kind macs, params, speedup or latency_ms"),
        ("", "maks", r"--kind: unknown 'maks'\. Did you mean \"macs\"\?"),
        ("[budget]\nmacs = 0.6\n", "params", r"--kind params: the recipe's \[budget\] is of macs"),
        ("[plan]\nhidden = 96\n", "macs", r"plan: \[budget\] decides what remains\. Keep one of the two"),
    ],
)
def test_kind_that_does_not_fit_the_recipe_is_refused(
    tmp_path: Path, more: str, kind: str | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        read_points(recipe(tmp_path, more), "0.9", kind, tmp_path)
