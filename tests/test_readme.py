"""What README.md and docs/ say must be true: links, recipes, keys and their defaults."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from edgevit.cli import app
from edgevit.images import ImageSet
from edgevit.models.anatomy import slim_arch
from edgevit.models.load import load_saved
from edgevit.recipe import Recipe
from edgevit.schema import Strict, load_toml
from edgevit.target import Target

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md"), *CHECKOUT.glob("calibration/*.md")])

KEYS = [("recipes.md", Recipe), ("recipes.md", ImageSet), ("targets.md", Target)]


def _blocks(language: str) -> list[tuple[str, str]]:
    """Return (page, text) of every code block in `language`."""
    found = [
        (page.name, re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S))
        for page in PAGES
    ]
    return [(name, text) for name, texts in found for text in texts]


def _fields(kind: type[Strict]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every plain key of a file, those of its sections included."""
    for name, field in kind.model_fields.items():
        words = re.findall(r"\w+", str(field.annotation))
        sections = [section for section in _subclasses(Strict) if section.__name__ in words]
        for section in sections:
            yield from _fields(section)
        if not sections:
            yield name, field


def _subclasses(kind: type[Strict]) -> Iterator[type[Strict]]:
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


def _table_rows(page: str) -> list[str]:
    return [line for line in (CHECKOUT / "docs" / page).read_text().splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_page_links_to_files_that_exist(page: Path) -> None:
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    local = [link for link in links if link and not link.startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("text", [text for _, text in _blocks("toml") if "[model]" in text])
def test_recipe_in_the_docs_loads(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    assert load_toml(path, Recipe).model.name == tomllib.loads(text)["model"]["name"]


@pytest.mark.parametrize("text", [text for _, text in _blocks("python")])
def test_python_in_the_docs_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(CHECKOUT / "edgevit" / "recipes" / "quickstart.safetensors", tmp_path)
    found: dict[str, Any] = {}
    exec(compile(text, "docs", "exec"), found)
    assert sum(block.heads for block in found["plan"].blocks) == 18  # of 24
    assert {(b.qk_dim, b.vo_dim) for b in found["plan"].blocks} == {(32, 32), (16, 24)}
    assert load_saved(tmp_path / "slim").model.arch == slim_arch(found["dense"].arch, found["plan"])


@pytest.mark.parametrize(("page", "kind"), KEYS)
def test_page_names_every_key(page: str, kind: type[Strict]) -> None:
    text = (CHECKOUT / "docs" / page).read_text()
    assert [name for name, _ in _fields(kind) if f"`{name}`" not in text] == []


@pytest.mark.parametrize(("page", "kind"), KEYS)
def test_page_states_the_defaults_of_the_code(page: str, kind: type[Strict]) -> None:
    rows = _table_rows(page)
    numbers = {
        n: f.default for n, f in _fields(kind) if isinstance(f.default, int | float) and f.default != 1
    }
    stated = {n: [row for row in rows if row.startswith(f"| `{n}`")] for n in numbers}
    wrong = {
        n: rows for n, rows in stated.items() if not any(f"`{str(numbers[n]).lower()}`" in r for r in rows)
    }
    assert wrong == {}


def test_quickstart_recipe_is_explained_line_by_line() -> None:
    lines = (CHECKOUT / "edgevit" / "recipes" / "quickstart.toml").read_text().splitlines()
    keys = [line for line in lines if "=" in line and not line.startswith(("#", "options"))]
    assert [line for line in keys if " # " not in line and not line.startswith("name")] == []


def test_readme_commands_are_those_that_ci_runs() -> None:
    commands = [line for _, text in _blocks("sh") for line in text.splitlines()]
    ci = (CHECKOUT / ".ci" / "run").read_text()
    assert "pip install . && edgevit build quickstart" in commands
    assert "pip install '.[test]' && pytest" in commands
    assert "pip install --quiet '.[test]'" in ci
    assert "edgevit build quickstart" in ci


def test_edgevit_commands_in_the_docs_exist() -> None:
    known = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }
    text = "\n".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"(?:^|`|&& )edgevit ([a-z]+)", text, re.M))
    assert named - known == set()
