"""What a recipe may say of a budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.budget import BudgetSection, Unit, amount_text
from edgevit.errors import RecipeError
from edgevit.recipe import Recipe, load_recipe

LEAST = '[model]\nname = "vit"\n[calibration]\nset = "a"\n'


def load(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(text)
    return load_recipe(str(path)).recipe


@pytest.mark.parametrize(
    ("line", "unit", "limit"),
    [
        ("macs = 0.54", "macs", 540.0),
        ('macs = "0.68G"', "macs", 0.68e9),
        ('macs = "528 M"', "macs", 528e6),
        ("params = 0.6", "params", 600.0),
        ('params = "3.2M"', "params", 3.2e6),
        ('params = "900"', "params", 900.0),
        ("speedup = 1.6", "ms", 625.0),
        ('latency_ms = 4.0\ntarget = "openvino-cpu"\nprecision = "int8"', "ms", 4.0),
    ],
)
def test_budget_is_a_share_or_a_number(tmp_path: Path, line: str, unit: str, limit: float) -> None:
    budget = load(tmp_path, LEAST + f"[budget]\n{line}").budget
    assert isinstance(budget, BudgetSection)
    assert budget.unit == unit
    assert budget.limit(1000) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "[budget]", r"budget\.macs: missing; a budget is one of macs, params, speedup, latency_ms"),
        (LEAST + "[budget]\nmacs = 0.5\nparams = 0.5", r"budget\.params: given beside macs\. Keep one"),
        (LEAST + "[budget]\nmacs = 1.2", r"budget\.macs: expected a number < 1.0 or text, got 1.2"),
        (LEAST + '[budget]\nmacs = "half"', 'an absolute number as text, such as "0.68G" or "3.2M"'),
        (LEAST + '[budget]\nmacs = "0G"', "an absolute number as text"),
        (LEAST + "[budget]\nspeedup = 0.9", r"budget\.speedup: expected a number > 1"),
        (LEAST + "[budget]\nspeedup = 2.0\nlatency_ms = 4.0", r"budget\.latency_ms: given beside speedup\."),
        (
            LEAST + '[budget]\nmacs = 0.5\ntarget = "a"',
            r"budget\.target: given beside macs, which is the same",
        ),
        (LEAST + "[budget]\nmacs = 0.5\n[plan]\nheads = 2", r"plan: \[budget\] decides what remains"),
        (
            LEAST + '[budget]\nmacs = 0.5\n[[prune]]\nmethod = "coupled-dims"\nqk_drop = 0.5',
            r"prune: \[budget\] decides what remains",
        ),
        (
            LEAST + '[budget]\nmacs = 0.5\n[slim]\nrecover = "none"',
            r'slim\.recover: "none" beside \[budget\]',
        ),
        ('[model]\nname = "vit"\n[budget]\nmacs = 0.5', r"calibration: missing; \[budget\] measures cuts"),
    ],
)
def test_budget_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (0.676907464e9, "macs", "677M MACs"),
        (3.2e6, "params", "3.2M params"),
        (900.0, "params", "900 params"),
        (4.04, "ms", "4.04 ms"),
    ],
)
def test_amount_is_written_as_in_a_recipe(amount: float, unit: Unit, text: str) -> None:
    assert amount_text(amount, unit) == text
