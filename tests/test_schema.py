"""Strict tables and their messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from edgevit.errors import RecipeError
from edgevit.schema import (
    FolderName,
    Problem,
    Strict,
    check_table,
    did_you_mean,
    load_toml,
    nearest,
    nearest_files,
)


class Inner(Strict):
    how_to_make: ClassVar[str] = "Take inner.txt."

    low: int = Field(default=1, ge=1)
    """Lower end, >= 1."""
    high: int = 9

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        return [Problem("high", "below low")] if table.get("high") == 0 else []


class Outer(Strict):
    unknown_key_notes: ClassVar[Mapping[str, str]] = {"budget": "comes later"}

    name: FolderName
    ratio: float = 0.5
    flag: bool = False
    colour: Literal["red", "green"] = "red"
    counts: int | tuple[int, ...] = ()
    inner: Inner = Inner()
    item: tuple[Inner, ...] = ()

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        return [Problem("flag", "not with red")] if table.get("flag") is True else []


def write(folder: Path, text: str) -> Path:
    path = folder / "file.toml"
    path.write_text(text)
    return path


def message_of(path: Path) -> str:
    with pytest.raises(RecipeError, match=r"file\.toml") as caught:
        load_toml(path, Outer)
    return str(caught.value).replace(str(path), "F")


def test_load_toml_good_file_gives_typed_values(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'name = "a"\nratio = 1\ncounts = [1, 2]\n[inner]\nlow = 3\n[[item]]\n[[item]]\nhigh = 4'
    )
    value = load_toml(path, Outer)
    assert value == Outer(
        name="a", ratio=1.0, counts=(1, 2), inner=Inner(low=3), item=(Inner(), Inner(high=4))
    )


def test_load_toml_every_problem_is_in_one_message(tmp_path: Path) -> None:
    text = """\
name = "a/b"
ratio = "x"
flag = true
colour = "blue"
counts = [1, "two"]
colur = 1
budget = 3
inner = { low = 0, hihg = 2 }
[[item]]
high = 0
"""
    assert (
        message_of(write(tmp_path, text))
        == """\
F: 10 problems
  name: expected a folder's name (no slash, no leading dot, printable), got "a/b"
  ratio: expected a number, got "x"
  colour: expected "red" or "green", got "blue"
  counts[1]: expected an integer, got "two"
  inner.low: expected a number >= 1, got 0
  inner.hihg: unknown key. Did you mean "high"? Known here: low, high.
  item[0].high: below low
  colur: unknown key. Did you mean "colour"? Known here: name, ratio, flag, colour, counts, inner, item.
  budget: comes later
  flag: not with red"""
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "F: name: missing; this key is required"),
        ('name = "a"\ncounts = true', "F: counts: expected an integer or a list, got true"),
        ('name = "a"\ncounts = 1.5', "F: counts: expected an integer or a list, got 1.5"),
        ('name = "a"\nflag = 1', "F: flag: expected true or false, got 1"),
        ('name = "a"\ninner = []', "F: inner: expected a table, got []"),
        ('name = "a"\nitem = { low = 1 }', "F: item: expected a list, got a table with low"),
        ('name = "a"\nname = "b"', "F: not valid TOML: Cannot overwrite a value (at end of document)."),
        ('name = "a\n', "F: not valid TOML: Illegal character '\\n' (at line 1, column 10)."),
        ('name = ".."', 'F: name: expected a folder\'s name (no slash, no leading dot, printable), got ".."'),
    ],
)
def test_load_toml_bad_file_says_where_and_what(tmp_path: Path, text: str, message: str) -> None:
    assert message_of(write(tmp_path, text)) == message


def test_load_toml_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(RecipeError, match=r'recip\.toml: no such file\. Did you mean "recipe\.toml"\?'):
        load_toml(tmp_path / "recip.toml", Outer)


def test_load_toml_missing_file_of_another_name_lists_five_that_are_there(tmp_path: Path) -> None:
    for name in ("calibration", "evaluation", "mine", "pyproject", "yours", "zebra"):
        (tmp_path / f"{name}.toml").touch()
    listed = (
        r"TOML files there: calibration\.toml, evaluation\.toml, mine\.toml, pyproject\.toml, yours\.toml, "
    )
    with pytest.raises(RecipeError, match=rf"recipe\.toml: no such file\. {listed}\.\.\.\.$"):
        load_toml(tmp_path / "recipe.toml", Outer)


def test_load_toml_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"line\.toml: no such file\. Take inner\.txt\.$"):
        load_toml(tmp_path / "line.toml", Inner)


@pytest.mark.parametrize("name", ["calibration", "mine", "toys"])
def test_nearest_files_does_not_take_the_suffix_for_a_likeness(tmp_path: Path, name: str) -> None:
    for other in ("evaluation", "line", "recipe"):
        (tmp_path / f"{other}.toml").touch()
    assert nearest_files(f"{name}.toml", tmp_path) == []
    (tmp_path / f"{name[:-1]}.toml").touch()
    assert nearest_files(f"{name}.toml", tmp_path) == [f"{name[:-1]}.toml"]


def test_check_table_names_the_place_that_it_is_given() -> None:
    with pytest.raises(RecipeError, match=r"^check: low: expected a number >= 1, got 0$"):
        check_table({"low": 0}, Inner, "check")
    assert check_table({"low": 2}, Inner, "check") == Inner(low=2)


def test_load_toml_missing_folder_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere/recipe\.toml: no such file\.$"):
        load_toml(tmp_path / "nowhere" / "recipe.toml", Outer)


def test_load_toml_folder_in_place_of_file_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_toml(tmp_path, Outer)


def test_load_toml_other_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes('name = "é"'.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"not UTF-8 text \(byte 8\)"):
        load_toml(path, Outer)


def test_strict_made_in_python_refuses_conflicts_too() -> None:
    with pytest.raises(ValidationError, match="flag: not with red"):
        Outer(name="a", flag=True)


def test_strict_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Inner().low = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("openvino_cpu", ["openvino-cpu"]), ("OPENVINO-CPU", ["openvino-cpu"]), ("zzz", []), ("", [])],
)
def test_nearest_finds_what_was_meant(name: str, expected: list[str]) -> None:
    assert nearest(name, ["openvino-cpu", "onnxruntime-gpu"]) == expected


def test_did_you_mean_lists_the_nearest_first() -> None:
    assert (
        did_you_mean("vit_tny", ["vit_tiny", "vit_tin", "swin"]) == ' Did you mean "vit_tiny" or "vit_tin"?'
    )


def test_json_schema_describes_fields_and_refuses_unknown_keys() -> None:
    schema = Inner.model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["properties"] == {
        "low": {
            "default": 1,
            "description": "Lower end, >= 1.",
            "minimum": 1,
            "title": "Low",
            "type": "integer",
        },
        "high": {"default": 9, "title": "High", "type": "integer"},
    }
