"""Whose build a directory is: the marker that edgevit leaves in it, and the lock of a running build."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path

from edgevit.disk import disk_errors
from edgevit.errors import OutputError

FORMAT = 1
"""Of the directory; another one is not read."""
OWN = ".edgevit"
"""The folder of a build directory that is edgevit's own."""
STAGE_RECORD = ".stage.json"
"""What a finished stage has beside its files: which they are."""


def marker_path(root: Path) -> Path:
    """Return the file that says whose build `root` is."""
    return root / OWN / "build.json"


def marker_text(name: str, published: Iterable[str]) -> str:
    """Return the marker of the recipe `name`, which has made these public files."""
    marker = {"format": FORMAT, "name": name, "published": sorted(published)}
    return json.dumps(marker, sort_keys=True, separators=(",", ":")) + "\n"


def published_names(root: Path) -> list[str]:
    """Return the public files that builds in `root` have made, as the marker has them.

    Raises:
        OutputError: the marker cannot be read.
    """
    marker = _read_marker(root)
    names = marker.get("published") if marker else None
    return [str(name) for name in names] if isinstance(names, list) else []


def check_owner(root: Path, name: str) -> None:
    """Make sure that `root` is absent, empty, or a build of the recipe `name`.

    Raises:
        OutputError: it is something else; nothing was changed.
    """
    if not root.exists():
        return
    if not root.is_dir():
        raise OutputError(f"{root}: expected a directory, found a file. Give another one with --out DIR.")
    with disk_errors(root):
        marker = _read_marker(root)
        foreign = sorted(path.name for path in root.iterdir() if path.name != OWN)
    if marker is None and foreign:
        found = "1 other entry" if len(foreign) == 1 else f"{len(foreign)} other entries"
        raise OutputError(
            f"{root}: expected an empty directory or an edgevit build, found {found}"
            f" ({', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''})."
            " Nothing was changed. Build elsewhere with --out DIR."
        )
    if marker is not None and marker.get("name") != name:
        raise OutputError(
            f"{root}: expected the build of {name!r}, found that of {marker.get('name')!r}. "
            "Nothing was changed. Build elsewhere with --out DIR, or give the recipe another name."
        )


def _read_marker(root: Path) -> dict[str, object] | None:
    """Read the marker; None when the directory is no build."""
    path = marker_path(root)
    try:
        marker: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path}: cannot be read ({error}). "
            "Remove the directory if it may go, or build elsewhere with --out DIR."
        ) from error
    if not isinstance(marker, dict) or marker.get("format") != FORMAT:
        raise OutputError(
            f"{root}: written by another version of edgevit (expected format {FORMAT}). "
            "Remove the directory, which costs one full build, or build elsewhere with --out DIR."
        )
    return marker


def lock(root: Path) -> int:
    """Lock a build directory for this process; the kernel unlocks it when the process ends in any way.

    Returns:
        The open file that holds the lock; closing it unlocks.

    Raises:
        OutputError: another build holds the directory, or it cannot be written.
    """
    path = root / OWN / "lock"
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        except BlockingIOError as error:
            os.close(descriptor)
            holder = path.read_text().strip()
            raise OutputError(
                f"{root}: another edgevit build uses this directory (process {holder or 'unknown'}). "
                "Wait until it ends, or build elsewhere with --out DIR."
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor
