"""The points of a sweep: each budget makes a recipe of its own, which differs in nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.budget import KEYS, BudgetSection, Key
from edgevit.errors import RecipeError
from edgevit.recipe import LoadedRecipe, Recipe
from edgevit.schema import check_table, did_you_mean

_EXAMPLE = "Give values with commas between them, such as --budgets 0.9,0.8,0.7."


@dataclass(frozen=True, eq=False)
class Point:
    """One budget of a sweep; the same only as itself, as a recipe cannot be hashed."""

    budget: BudgetSection
    recipe: LoadedRecipe
    """With this budget, and a name that says so."""
    folder: Path
    """Its build directory."""

    @property
    def label(self) -> str:
        """Return how messages call it: "macs 0.8"."""
        return f"{self.budget.key} {_text(self.budget.asked)}"


@dataclass(frozen=True)
class Points:
    """What a sweep goes through."""

    recipe: LoadedRecipe
    """As it was written."""
    key: Key
    """Of [budget]."""
    out: Path
    points: tuple[Point, ...]
    """In the order in which they were given."""


def read_points(recipe: LoadedRecipe, budgets: str, kind: str | None, out: Path) -> Points:
    """Make a recipe of each budget.

    Args:
        recipe: its [budget] says what the values are of; all else in it is kept.
        budgets: values with commas between them.
        kind: what the values are of, for a recipe without [budget].
        out: the folder in which each point gets its build directory.

    Raises:
        RecipeError: no value, one that is no budget of its kind, one given twice, or no kind of budget.
    """
    key = _key(recipe, kind)
    values = _values(budgets)
    found: list[Point] = []
    problems: list[str] = []
    for value in values:
        try:
            found.append(_point(recipe, key, value, out.resolve()))
        except RecipeError as error:
            problems.append(str(error))
    if problems:
        raise RecipeError("\n".join(dict.fromkeys(problems)))
    _refuse_repeated(found)
    return Points(recipe, key, out.resolve(), tuple(found))


def _key(recipe: LoadedRecipe, kind: str | None) -> Key:
    budget, given = recipe.recipe.budget, next((key for key in KEYS if key == kind), None)
    if kind is not None and given is None:
        raise RecipeError(
            f"--kind: unknown {kind!r}.{did_you_mean(kind, KEYS)} There are: {', '.join(KEYS)}."
        )
    if budget is not None and given in (None, budget.key):
        return budget.key
    if given is None:
        raise RecipeError(
            f"{recipe.path}: budget: missing; the values of --budgets take the place of its value. Add"
            f" [budget], or say what they are of: --kind {', '.join(KEYS[:-1])} or {KEYS[-1]}."
        )
    if budget is not None:
        raise RecipeError(
            f"--kind {kind}: the recipe's [budget] is of {budget.key}. Take one of the two out:"
            f" {recipe.path} decides without --kind."
        )
    return given


def _values(budgets: str) -> list[float | str]:
    texts = [text.strip() for text in budgets.split(",")]
    if not any(texts):
        raise RecipeError(f"--budgets: expected at least one value, got none. {_EXAMPLE}")
    if not all(texts):
        raise RecipeError(f"--budgets: expected a value on each side of a comma, got {budgets!r}. {_EXAMPLE}")
    return [_number_or_text(text) for text in texts]


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.replace(" ", "")  # amounts such as 0.68G stay text, as in a recipe


def _point(recipe: LoadedRecipe, key: Key, value: float | str, out: Path) -> Point:
    written = recipe.recipe.model_dump(exclude_unset=True)
    name = f"{key}-{_text(value)}"
    budget = {**written.get("budget", {}), key: value}
    table = {**written, "name": f"{recipe.recipe.name}-{name}".replace("/", "_"), "budget": budget}
    made = check_table(table, Recipe, f"{recipe.path} with --budgets {_text(value)}")
    assert made.budget is not None
    return Point(made.budget, replace(recipe, recipe=made), out / name)


def _text(value: float | str) -> str:
    """Write a value as shortly as it can be read back."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if isinstance(value, str) or float(short) == value else repr(value)


def _refuse_repeated(points: Sequence[Point]) -> None:
    seen: dict[tuple[bool, float], Point] = {}
    for point in points:
        amount = isinstance(point.budget.asked, str), point.budget.limit(1.0)
        if amount in seen:
            first, second = (one.budget.asked for one in (seen[amount], point))
            again = "is there twice" if first == second else f"is the same as {_text(first)}"
            raise RecipeError(f"--budgets: {_text(second)} {again}. Give each budget once.")
        seen[amount] = point
