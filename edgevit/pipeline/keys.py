"""What stage outputs depend on besides their inputs: the code of edgevit and the versions of libraries."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from edgevit.disk import sha256_file
from edgevit.images import Images
from edgevit.store import JSON, canonical_json
from edgevit.version import __version__

_PACKAGE = Path(__file__).resolve().parents[1]


@functools.cache
def code_sha256(*rooms: str) -> str:
    """Hash the version and the source of some rooms: an edited method makes its stages anew."""
    lines = [f"{__version__}\n"]
    for room in rooms:
        folder = _PACKAGE / room
        files = sorted(folder.rglob("*.py")) if folder.is_dir() else [_PACKAGE / f"{room}.py"]
        lines += [f"{sha256_file(path)}  {path.relative_to(_PACKAGE).as_posix()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def value_sha256(value: JSON) -> str:
    """Hash what an output depends on: equal values have equal hashes, whatever their order."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of installed distributions, without importing them."""
    return {name: metadata.version(name) for name in names}


def images_key(images: Images | None) -> JSON:
    """Return what pixels depend on: the files and settings, and the code and library that decode them."""
    if images is None:
        return None
    return {
        "sha256": images.sha256,
        "versions": library_versions(("numpy", "pillow")),
        "code": code_sha256("images", "image_rows", "preprocess"),
    }
