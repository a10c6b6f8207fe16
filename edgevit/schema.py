"""What every file that a person writes has in common: strict tables, and all problems in one message.

Recipes, targets and image sets are TOML files described by pydantic models that derive from `Strict`.
`load_toml` reads one and raises a single `RecipeError` that lists every problem with file and dotted key;
`check_table` does the same for a table that did not come from a file.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from edgevit.errors import RecipeError

Scalar = str | int | float | bool
OptionValue = Scalar | tuple[Scalar, ...]
"""A value that a file hands on to a library: a TOML array arrives as a tuple."""

_NEAR_FILE = 0.8
"""File names share more than keys do ("calibration" and "evaluation"), so fewer of them are near."""
_SHOWN_FILES = 5


class Problem(NamedTuple):
    """One thing wrong in a file: the dotted key, and what was expected, found and can be done."""

    key: str
    text: str


class ConflictError(ValueError):
    """Keys of one table that do not go together; pydantic carries it to `load_toml`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{problem.key}: {problem.text}" for problem in problems))
        self.problems = tuple(problems)


class Strict(BaseModel):
    """A frozen table of a TOML file: no unknown keys, no conversion between types.

    TOML arrays arrive as tuples (`load_toml` converts them), so array fields are declared as tuples.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)

    unknown_key_notes: ClassVar[Mapping[str, str]] = {}
    """What to say about keys that are not accepted but that a reader may have met elsewhere."""

    how_to_make: ClassVar[str] = ""
    """One sentence for who has no such file yet."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """List the problems between keys of `table`, the table as written (its values may be ill-typed)."""
        return []

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        problems = self.conflicts(self.model_dump(exclude_unset=True))
        if problems:
            raise ConflictError(problems)
        return self


T = TypeVar("T", bound=Strict)


def _folder_name(name: str) -> str:
    if not name.isprintable() or name.startswith(".") or "/" in name or "\\" in name or not name.strip():
        raise ValueError("a folder's name (no slash, no leading dot, printable)")
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]


def section(table: Mapping[str, object], key: str) -> Mapping[str, object]:
    """Return the sub-table `key` of `table` as written, empty where it is absent or no table."""
    value = table.get(key)
    return value if isinstance(value, Mapping) else {}


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Return up to three of `names` that `name` may have been meant to be, the nearest first.

    `cutoff` is the least similarity, 0..1, as difflib counts it.
    """
    by_folded = {candidate.casefold(): candidate for candidate in names}
    found = difflib.get_close_matches(name.casefold(), list(by_folded), n=3, cutoff=cutoff)
    return [by_folded[match] for match in found]


def nearest_files(name: str, folder: Path) -> list[str]:
    """Return up to three TOML files of `folder` that `name` may have been meant to be, the nearest first.

    Only stems are compared: the suffix, which all have in common, would make every short name a near one.
    """
    by_stem = {path.stem: path.name for path in _toml_files(folder)}
    return [by_stem[stem] for stem in nearest(name.removesuffix(".toml"), by_stem, _NEAR_FILE)]


def _toml_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.toml")) if folder.is_dir() else []


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ' Did you mean "a" or "b"?' for the nearest of `names`, or an empty string."""
    return ask_whether(nearest(name, names))


def ask_whether(found: Sequence[str]) -> str:
    """Return ' Did you mean "a" or "b"?', or an empty string where nothing was found."""
    return f" Did you mean {' or '.join(_quoted(match) for match in found)}?" if found else ""


def load_toml(path: Path, kind: type[T]) -> T:
    """Read the TOML file at `path` as a `kind`.

    Raises:
        RecipeError: the file is missing, cannot be read or is no TOML, or its content does not fit
            `kind`; then every problem is listed with its dotted key.
    """
    return check_table(_read_table(path, kind.how_to_make), kind, str(path))


def check_table(table: Mapping[str, object], kind: type[T], where: str) -> T:
    """Return `table` as a `kind`.

    Args:
        table: keys and values, with tuples for arrays.
        kind: what the table should be.
        where: a file or a command, to begin the message with.

    Raises:
        RecipeError: the table does not fit `kind`; every problem is listed with its dotted key.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        problems = list(_field_problems(kind, table, error.errors(include_url=False)))
        raise RecipeError(problems_text(where, [*problems, *kind.conflicts(table)])) from None


def problems_text(where: str, problems: Sequence[Problem]) -> str:
    """Say what is wrong in the file `where`: in one line, or in a line for each of several problems."""
    if len(problems) == 1:
        return f"{where}: {problems[0].key}: {problems[0].text}"
    lines = [f"  {problem.key}: {problem.text}" for problem in problems]
    return "\n".join([f"{where}: {len(problems)} problems", *lines])


def _read_table(path: Path, how_to_make: str) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file.{_instead_of(path, how_to_make)}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}). TOML files are UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}.") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}.") from None
    return {key: _as_tuples(value) for key, value in table.items()}


def _instead_of(path: Path, how_to_make: str) -> str:
    """Say which file may have been meant, else which are there and how to make one."""
    if near := nearest_files(path.name, path.parent):
        return ask_whether(near)
    there = [file.name for file in _toml_files(path.parent)]
    shown = ", ".join([*there[:_SHOWN_FILES], *(["..."] if len(there) > _SHOWN_FILES else [])])
    return f"{f' TOML files there: {shown}.' if there else ''}{f' {how_to_make}' if how_to_make else ''}"


def _as_tuples(value: object) -> object:
    """Turn TOML arrays into tuples at every depth: strict pydantic refuses a list where a tuple is due."""
    if isinstance(value, list):
        return tuple(_as_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _as_tuples(item) for key, item in value.items()}
    return value


def _field_problems(
    kind: type[Strict], table: Mapping[str, object], details: Sequence[ErrorDetails]
) -> Iterator[Problem]:
    """Yield one problem a key; a value that fits no member of a union gives one error a member."""
    by_path: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for detail in details:
        if not detail["loc"]:
            continue  # the conflicts of the whole table, which the caller lists key by key
        by_path.setdefault(_written_path(table, detail), []).append(detail)
    for path, same in by_path.items():
        if any(other[: len(path)] == path and other != path for other in by_path):
            continue  # a list that fits but for one item, which is named: this adds nothing
        conflict = same[0].get("ctx", {}).get("error")
        if isinstance(conflict, ConflictError):
            yield from (Problem(f"{_dotted(path)}.{key}", text) for key, text in conflict.problems)
        else:
            yield Problem(_dotted(path), _problem_text(kind, path, same))


def _written_path(table: Mapping[str, object], detail: ErrorDetails) -> tuple[str | int, ...]:
    """Return the part of a pydantic location that stands in the file, without names of union members."""
    if detail["type"] == "missing":
        return detail["loc"]
    tag_key = (_tag_key(detail),) if detail["type"] in _TAG_PROBLEMS else ()
    path: list[str | int] = []
    value: object = table
    for key in detail["loc"]:
        match value, key:
            case Mapping() as mapping, str() if key in mapping:
                value = mapping[key]
            case tuple() as array, int() if key < len(array):
                value = array[key]
            case _:
                continue
        path.append(key)
    return (*path, *tag_key)


def _dotted(path: Sequence[str | int]) -> str:
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in path]
    return "".join(parts).removeprefix(".")


def _problem_text(kind: type[Strict], path: Sequence[str | int], same: Sequence[ErrorDetails]) -> str:
    first = same[0]
    if first["type"] == "missing":
        return "missing; this key is required"
    if first["type"] == "extra_forbidden":
        return _unknown_key_text(_kinds_at(kind, first["loc"][:-1])[0], str(path[-1]))
    if first["type"] in _TAG_PROBLEMS:
        return _tag_text(_kinds_at(kind, first["loc"]), first)
    expected = list(dict.fromkeys(_expected(detail) for detail in same))
    return f"expected {_alternatives(expected)}, got {_shown(first['input'])}"


def _alternatives(names: Sequence[str]) -> str:
    return " or ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} or {names[-1]}"


def _unknown_key_text(kind: type[Strict], key: str) -> str:
    if key in kind.unknown_key_notes:
        return kind.unknown_key_notes[key]
    known = list(kind.model_fields)
    return f"unknown key.{did_you_mean(key, known)} Known here: {', '.join(known)}."


_TAG_PROBLEMS = ("union_tag_invalid", "union_tag_not_found")
"""Problems with the key that says which member of a union a table is."""


def _tag_key(detail: ErrorDetails) -> str:
    return str(detail["ctx"]["discriminator"]).strip("'")


def _tag_text(kinds: Sequence[type[Strict]], detail: ErrorDetails) -> str:
    names = dict.fromkeys(name for kind in kinds for name in _tags(kind, _tag_key(detail)))
    known = f"Known here: {', '.join(names)}."
    if detail["type"] == "union_tag_not_found":
        return f"missing; this key is required. {known}"
    tag = str(detail["ctx"]["tag"])
    return f"unknown name {_quoted(tag)}.{did_you_mean(tag, names)} {known}"


def _tags(kind: type[Strict], key: str) -> tuple[str, ...]:
    """Return the values that the key which tells the members of a union apart may have in this one."""
    return get_args(kind.model_fields[key].annotation)


def _kinds_at(kind: type[Strict], path: Sequence[str | int]) -> list[type[Strict]]:
    """Return the models that may describe the table at a pydantic location below a table of `kind`.

    They are several where the location ends at a union; in it, a union's member is named by its tag.
    """
    kinds = [kind]
    for key in path:
        if not isinstance(key, str):
            continue
        if len(kinds) > 1:
            kinds = [one for one in kinds if (key,) in _literals(one)] or kinds
        elif key in kinds[0].model_fields:
            below = dict.fromkeys(_stricts_in(kinds[0].model_fields[key].annotation))
            kinds = list(below) or kinds
    return kinds


def _literals(kind: type[Strict]) -> list[tuple[object, ...]]:
    """Return the values that each field may have, where its type lists them."""
    return [get_args(field.annotation) for field in kind.model_fields.values()]


def _stricts_in(annotation: object) -> list[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [found for arg in get_args(annotation) for found in _stricts_in(arg)]


_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "greater_than": "a number > {gt}",
    "greater_than_equal": "a number >= {ge}",
    "less_than": "a number < {lt}",
    "less_than_equal": "a number <= {le}",
    "literal_error": "{expected}",
    "string_too_short": "text of at least {min_length} characters",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    phrase = _EXPECTED.get(detail["type"])
    return (
        phrase.format(**detail.get("ctx", {})).replace("'", '"')
        if phrase
        else f"a valid value ({detail['msg']})"
    )


def _shown(value: object) -> str:
    """Return `value` as TOML would have it, cut to 60 characters."""
    match value:
        case bool():
            text = "true" if value else "false"
        case str():
            text = _quoted(value)
        case tuple():
            text = f"[{', '.join(_shown(item) for item in value)}]"
        case Mapping():
            text = "a table with " + ", ".join(str(key) for key in value) if value else "an empty table"
        case _:
            text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _quoted(text: str) -> str:
    return f'"{text}"'
