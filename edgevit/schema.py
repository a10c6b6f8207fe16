"""What every file that a person writes has in common: strict tables, and all problems in one message.

Recipes, targets and image sets are TOML files described by pydantic models that derive from `Strict`.
`load_toml` reads one and raises a single `RecipeError` that lists every problem with file and dotted key.
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


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return up to three of `names` that `name` may have been meant to be, the nearest first."""
    by_folded = {candidate.casefold(): candidate for candidate in names}
    found = difflib.get_close_matches(name.casefold(), list(by_folded), n=3, cutoff=0.6)
    return [by_folded[match] for match in found]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ' Did you mean "a" or "b"?' for the nearest of `names`, or an empty string."""
    found = nearest(name, names)
    return f" Did you mean {' or '.join(_quoted(match) for match in found)}?" if found else ""


def load_toml(path: Path, kind: type[T]) -> T:
    """Read the TOML file at `path` as a `kind`.

    Raises:
        RecipeError: the file is missing, cannot be read or is no TOML, or its content does not fit
            `kind`; then every problem is listed with its dotted key.
    """
    table = _read_table(path)
    try:
        value = kind.model_validate(table)
    except ValidationError as error:
        problems = list(_field_problems(kind, table, error.errors(include_url=False)))
        raise RecipeError(_message(path, [*problems, *kind.conflicts(table)])) from None
    return value


def _message(path: Path, problems: Sequence[Problem]) -> str:
    if len(problems) == 1:
        return f"{path}: {problems[0].key}: {problems[0].text}"
    lines = [f"  {problem.key}: {problem.text}" for problem in problems]
    return "\n".join([f"{path}: {len(problems)} problems", *lines])


def _read_table(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise RecipeError(f"{path}: no such file.{did_you_mean(path.name, siblings)}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}). TOML files are UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}.") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}.") from None
    return {key: _as_tuples(value) for key, value in table.items()}


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
    return tuple(path)


def _dotted(path: Sequence[str | int]) -> str:
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in path]
    return "".join(parts).removeprefix(".")


def _problem_text(kind: type[Strict], path: Sequence[str | int], same: Sequence[ErrorDetails]) -> str:
    first = same[0]
    if first["type"] == "missing":
        return "missing; this key is required"
    if first["type"] == "extra_forbidden":
        return _unknown_key_text(_kind_at(kind, path[:-1]), str(path[-1]))
    expected = list(dict.fromkeys(_expected(detail) for detail in same))
    return f"expected {_alternatives(expected)}, got {_shown(first['input'])}"


def _alternatives(names: Sequence[str]) -> str:
    return " or ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} or {names[-1]}"


def _unknown_key_text(kind: type[Strict], key: str) -> str:
    if key in kind.unknown_key_notes:
        return kind.unknown_key_notes[key]
    known = list(kind.model_fields)
    return f"unknown key.{did_you_mean(key, known)} Known here: {', '.join(known)}."


def _kind_at(kind: type[Strict], path: Sequence[str | int]) -> type[Strict]:
    """Return the model that describes the table at `path` below a table of `kind`."""
    for key in path:
        if isinstance(key, str) and key in kind.model_fields:
            kind = _strict_in(kind.model_fields[key].annotation) or kind
    return kind


def _strict_in(annotation: object) -> type[Strict] | None:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _strict_in(arg))), None)


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
