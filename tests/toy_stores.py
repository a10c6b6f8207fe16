"""What stages of toy stores make, and what a store has published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def public_bytes(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    names = {path.relative_to(root).as_posix(): path for path in files}
    return {
        name: path.read_bytes() for name, path in sorted(names.items()) if not name.startswith(".edgevit/")
    }


def fill_with(text: str, name: str = "out.txt") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_text(text)

    return make
