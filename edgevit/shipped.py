"""Find the files that come with edgevit: targets, calibration sets and recipes.

In a checkout `targets/` and `calibration/` lie beside the package; in an installed wheel they lie inside it,
under `edgevit/_shipped/`. Recipes are always inside the package, because their weights lie beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgevit.errors import RecipeError
from edgevit.schema import ask_whether, nearest, nearest_files

Shipped = Literal["targets", "calibration", "recipes"]

_PACKAGE = Path(__file__).resolve().parent
_NOUNS: dict[Shipped, str] = {"targets": "target", "calibration": "image set", "recipes": "recipe"}


def shipped_dir(kind: Shipped) -> Path:
    """Return the folder that holds the shipped files of `kind`."""
    if kind == "recipes":
        return _PACKAGE / "recipes"
    inside = _PACKAGE / "_shipped" / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def shipped_names(kind: Shipped) -> tuple[str, ...]:
    """Return the names of the shipped files of `kind` (file stems), sorted."""
    return tuple(sorted(path.stem for path in shipped_dir(kind).glob("*.toml")))


def find_shipped(kind: Shipped, name_or_path: str, relative_to: Path) -> Path:
    """Return the file that `name_or_path` means, which may not exist when it is a path.

    A value that ends in `.toml` or contains a slash is a path, relative to the folder `relative_to`;
    anything else is the name of a shipped file.

    Raises:
        RecipeError: no shipped file of `kind` has this name.
    """
    if name_or_path.endswith(".toml") or "/" in name_or_path or "\\" in name_or_path:
        return relative_to / Path(name_or_path).expanduser()
    names = shipped_names(kind)
    if name_or_path in names:
        return shipped_dir(kind) / f"{name_or_path}.toml"
    near = [*nearest(name_or_path, names), *nearest_files(name_or_path, relative_to)]
    raise RecipeError(
        f'no {_NOUNS[kind]} is named "{name_or_path}".{ask_whether(near[:3])}'
        f" There are: {', '.join(names) or 'none'}. A file of your own is given by its path, ending in .toml."
    )
