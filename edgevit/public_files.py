"""The files of a build directory that are for users and their tools: which edgevit wrote, and no others.

The marker (`ownership.py`) has their names before any of them appears. So what a killed build left is known,
a file of the user is never replaced or removed, and one that no build makes any more goes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath

from edgevit.disk import disk_errors, files_below, link_or_copy, sync, write_synced
from edgevit.errors import OutputError
from edgevit.ownership import OWN, STAGE_RECORD, marker_path, marker_text, published_names


class PublicFiles:
    """Files of one build directory that a store gives public names: its `public`."""

    def __init__(self, root: Path, name: str, tmp: Path) -> None:
        """Begin without any; `read_marker` says what earlier builds have made.

        Args:
            root: the build directory.
            name: the recipe's, for the marker.
            tmp: a folder on the same disk, for what is unfinished.
        """
        self._root = root
        self._name = name
        self._tmp = tmp
        self._made: set[str] = set()
        self._known: set[str] = set()

    def read_marker(self) -> None:
        """Read which files earlier builds have made, and write the marker, which may not be there yet.

        Raises:
            OutputError: the marker cannot be read or written.
            DiskFullError: no space for its few bytes.
        """
        self._known = set(published_names(self._root))
        self._write_marker()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the files that this build has made so far, sorted."""
        return tuple(sorted(self._made))

    def put(self, source: Path, name: str) -> Path:
        """Give a file, or all files of a folder, of a stage a public name below the build directory.

        Each file appears at once and whole: as a hard link where the file system can, else as a copy.

        Args:
            source: the folder of a stage, or a file or folder in it.
            name: relative name with forward slashes, for example "onnx/fp32.onnx".

        Raises:
            ValueError: the name leaves the build directory.
            OutputError: a file of that name is there which edgevit did not write.
            DiskFullError: no space left for a copy; the old file stays.
        """
        files = {name: source} if source.is_file() else _below(source, name)
        for public in files:
            _check_public(public)
        self._claim(set(files))
        for public, file in files.items():
            self._replace(file, public)
        return self._root / name

    def write(self, name: str, text: str) -> Path:
        """Write a public file that belongs to no stage, such as a report of this very run.

        Raises:
            ValueError: the name leaves the build directory.
            OutputError: a file of that name is there which edgevit did not write.
            DiskFullError: no space left; the old file stays.
        """
        _check_public(name)
        self._claim({name})
        source = self._tmp / "write"
        with disk_errors(self._root / name, len(text.encode())):
            write_synced(source, text.encode())
        try:
            self._replace(source, name)
        finally:
            source.unlink(missing_ok=True)
        return self._root / name

    def withdraw(self, name: str) -> None:
        """Remove a public file that edgevit wrote, until it is put or written again.

        Raises:
            OutputError: the directory cannot be written.
        """
        if name in self._known:
            with disk_errors(self._root / name):
                (self._root / name).unlink(missing_ok=True)
                sync(self._root)

    def remove_others(self) -> None:
        """Remove what earlier builds have made and this one has not.

        Raises:
            OutputError: the directory cannot be written.
        """
        with disk_errors(self._root):
            for name in sorted(self._known - self._made):
                path = self._root / name
                path.unlink(missing_ok=True)
                _remove_empty(path.parent, self._root)
            self._known = set(self._made)
            self._write_marker()

    def _claim(self, names: set[str]) -> None:
        """Note the names before any file appears, so that a killed build's files are still known."""
        for name in sorted(names - self._known):
            if (self._root / name).exists():
                raise OutputError(
                    f"{self._root / name}: this file is in the way and was not written by edgevit. "
                    "Move it away, or build elsewhere with --out DIR."
                )
        self._made |= names
        if not names <= self._known:
            self._known |= names
            self._write_marker()

    def _replace(self, source: Path, name: str) -> None:
        target = self._root / name
        if target.exists() and target.samefile(source):
            return
        temporary = self._tmp / f"publish-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        with disk_errors(target, source.stat().st_size):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.unlink(missing_ok=True)
                link_or_copy(source, temporary)
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync(target.parent)

    def _write_marker(self) -> None:
        raw = marker_text(self._name, self._known).encode()
        temporary = self._tmp / "build.json"
        with disk_errors(marker_path(self._root), len(raw)):
            try:
                write_synced(temporary, raw)
                os.replace(temporary, marker_path(self._root))
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


def _below(folder: Path, name: str) -> dict[str, Path]:
    files = [path for path in files_below(folder) if path.name != STAGE_RECORD]
    return {(PurePosixPath(name) / path.relative_to(folder).as_posix()).as_posix(): path for path in files}


def _check_public(name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or parts[0] == OWN:
        raise ValueError(f"{name!r} is no name below the build directory: give one like 'onnx/fp32.onnx'")


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove `folder` and its parents up to `root`, as far as nothing is left in them."""
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
