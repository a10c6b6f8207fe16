"""Keep the output of every stage under the hash of its inputs, and give the results public names.

    build/<name>/
      .edgevit/build.json       whose build this is, and the public names that edgevit wrote
      .edgevit/lock             advisory lock; holds the process id of the running build
      .edgevit/tmp/             everything unfinished; emptied whenever the directory is opened
      .edgevit/work/<stage>-<hash12>/     what a stage keeps to go on after a kill; gone once it is done
      .edgevit/stages/<stage>-<hash12>/   finished outputs, each with its own `.stage.json`
      plan.json, onnx/..., ...  public names: hard links into the stages where the disk allows it

A stage is written below `tmp/`, flushed to the disk, then renamed. So a kill at any moment leaves
a stage either absent or whole, and a public name either old or new. `.stage.json` keeps size, time
and SHA-256 of every file: an output that was changed or cut afterwards (a tool that edits the public
file in place changes the linked stage too) is noticed and made again.

A stage that is not there is taken over from the build directory that this one lies in, as the points of a
sweep lie in the sweep's. What takes minutes and is the same for every build of a model on a machine (latency
tables, sensitivities) is taken over from the builds beside it in the same folder, too. All of this from
directories of the same user alone.

Stages that the current build does not use stay, newest first, as long as they are together no
larger than those in use: going back to the previous recipe is free, and the directory at most doubles.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TypeAlias

from edgevit.disk import disk_errors, files_below, full_disk, sha256_file, sync, write_synced
from edgevit.errors import OutputError
from edgevit.ownership import FORMAT, OWN, check_owner, lock, marker_path, marker_text, published_names

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

_RECORD = ".stage.json"


def canonical_json(value: JSON) -> str:
    """Write `value` as JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        TypeError: a value that JSON does not have.
        ValueError: a number that is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class Store:
    """Stage outputs and public files of one build directory; open it with `Store.open`.

    One process at a time holds a directory, and uses it from one thread.
    """

    def __init__(self, root: Path, name: str, lock_fd: int) -> None:
        """Take over a directory that `open` has checked and locked."""
        self.root = root
        self.name = name
        self._lock_fd = lock_fd
        self._stages = root / OWN / "stages"
        self._tmp = root / OWN / "tmp"
        self._work = root / OWN / "work"
        self._used: set[str] = set()
        self._published: set[str] = set()
        self._known: set[str] = set()
        self._new = False

    @classmethod
    def open(cls, root: Path, name: str) -> Store:
        """Open or create the build directory `root` of the recipe `name`, and lock it.

        Left-overs of an interrupted build are removed.

        Raises:
            OutputError: `root` cannot be written, holds something else, or is in use by another build.
            DiskFullError: no space for the few bytes of the marker.
        """
        check_owner(root, name)
        new = not (root / OWN).exists()
        with disk_errors(root):
            (root / OWN).mkdir(parents=True, exist_ok=True)
        store = cls(root, name, lock(root))
        store._new = new
        try:
            check_owner(root, name)
            with disk_errors(root):
                shutil.rmtree(store._tmp, ignore_errors=True)
                store._tmp.mkdir(exist_ok=True)
                store._stages.mkdir(exist_ok=True)
            store._known = set(published_names(root))
            store._write_marker()
        except BaseException:
            store.close()
            raise
        return store

    def __enter__(self) -> Store:
        """Return the store itself; leaving the block unlocks the directory."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unlock the directory."""
        self.close()

    def close(self) -> None:
        """Unlock the directory, and take it away if it is new and holds nothing; twice does nothing."""
        if self._lock_fd >= 0:
            if self._new and not self._work.exists() and not any(self._stages.glob("*")):
                self._remove_empty()
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _remove_empty(self) -> None:
        """Remove what `open` made: a build that failed at once, on a misspelt name, leaves no folder."""
        shutil.rmtree(self.root / OWN, ignore_errors=True)
        with contextlib.suppress(OSError):  # it was there before, or something else is in it
            self.root.rmdir()

    @property
    def published(self) -> tuple[str, ...]:
        """Return the public names that this build has made so far, sorted."""
        return tuple(sorted(self._published))

    def stage_path(self, name: str, key: Mapping[str, JSON]) -> Path:
        """Return the folder that the output of this stage has, or will have.

        Args:
            name: the stage, as it appears in the folder's name.
            key: everything the output depends on: options, hashes of inputs, versions.

        Raises:
            TypeError: the key holds a value that JSON does not have.
        """
        return self._stages / f"{name}-{_key_sha256(name, key)[:12]}"

    def outputs(self, name: str) -> list[Path]:
        """Return the finished folders of a stage under all keys that are still kept, the newest first.

        Those of this build come first, then those of the builds around it.
        """
        found: list[Path] = []
        for stages in (self._stages, *self._elsewhere(shared=True)):
            here = [path for path in stages.glob(f"{name}-*") if path.name[len(name) + 1 :].isalnum()]
            found += sorted(here, key=_modified_ns, reverse=True)
        return found

    def _elsewhere(self, *, shared: bool) -> Iterator[Path]:
        """Yield the stages of the build that this one lies in, and of those beside it where `shared`.

        They are of this user: another's would have to be trusted.
        """
        root = self.root.absolute()
        with contextlib.suppress(OSError):
            for pattern in (OWN, f"*/{OWN}") if shared else (OWN,):
                for own in sorted(root.parent.glob(pattern)):
                    if own.parent != root and own.stat().st_uid == os.getuid():
                        yield own / "stages"

    def _take_over(self, key_sha256: str, to: Path, *, shared: bool) -> bool:
        """Link or copy a finished stage of another build into the folder `to`; False where none has it."""
        for stages in self._elsewhere(shared=shared):
            source = stages / to.name
            if not _is_whole(source, key_sha256):
                continue
            with contextlib.suppress(FileNotFoundError, shutil.Error):  # it was removed meanwhile
                shutil.copytree(source, to, copy_function=_link_or_copy, dirs_exist_ok=True)
            if _is_whole(to, key_sha256):
                return True
            shutil.rmtree(to, ignore_errors=True)
            to.mkdir()
        return False

    def work_path(self, name: str, key: Mapping[str, JSON]) -> Path:
        """Return a folder in which a stage can keep what it has, made if need be; a kill leaves it there.

        It is removed when the stage is done, or when a build comes to its end without it.

        Raises:
            OutputError: the directory cannot be written.
        """
        path = self._work / self.stage_path(name, key).name
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def run(
        self, name: str, key: Mapping[str, JSON], make: Callable[[Path], None], *, shared: bool = False
    ) -> Path:
        """Return the finished folder of a stage, calling `make(folder)` only when it is not there.

        What the build that this one lies in has made is taken over, where it is `shared` also what one beside
        this has: linked where the file system can, else copied.
        Whatever `make` raises, its folder is removed and nothing appears under the final name.

        Raises:
            DiskFullError: no space left, also where `make` met it.
            OutputError: the directory cannot be written.
        """
        final, key_sha256 = self.stage_path(name, key), _key_sha256(name, key)
        self._used.add(final.name)
        if _is_whole(final, key_sha256):
            os.utime(final)
            return final
        temporary = self._tmp / final.name
        with disk_errors(final):
            shutil.rmtree(final, ignore_errors=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        try:
            if not self._take_over(key_sha256, temporary, shared=shared):
                make(temporary)
                with disk_errors(final):
                    _seal(temporary, name, key)
            with disk_errors(final):
                os.rename(temporary, final)
                sync(self._stages)
                shutil.rmtree(self._work / final.name, ignore_errors=True)
        except BaseException as error:
            # The free space is part of the message, so it is read before the room is given back.
            full = full_disk(error, final)
            shutil.rmtree(temporary, ignore_errors=True)
            if full is not None:
                raise full from error
            raise
        return final

    def publish(self, source: Path, name: str) -> Path:
        """Give a file, or all files of a folder, of a stage a public name below the build directory.

        Each file appears at once and whole: as a hard link where the file system can, else as a copy.

        Args:
            source: a file or folder that `run` returned or that lies in it.
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
            self._put(file, public)
        return self.root / name

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
        with disk_errors(self.root / name, len(text.encode())):
            write_synced(source, text.encode())
        try:
            self._put(source, name)
        finally:
            source.unlink(missing_ok=True)
        return self.root / name

    def withdraw(self, name: str) -> None:
        """Remove a public file that edgevit wrote, until it is published or written again.

        Raises:
            OutputError: the directory cannot be written.
        """
        if name in self._known:
            with disk_errors(self.root / name):
                (self.root / name).unlink(missing_ok=True)
                sync(self.root)

    def finish(self) -> None:
        """Remove public files that this build no longer makes, stages beyond the allowance, unfinished work.

        Only files that edgevit wrote are removed. Call it once, after the last `publish`.

        Raises:
            OutputError: the directory cannot be written.
        """
        with disk_errors(self.root):
            for name in sorted(self._known - self._published):
                path = self.root / name
                path.unlink(missing_ok=True)
                _remove_empty(path.parent, self.root)
            self._known = set(self._published)
            self._write_marker()
            self._prune_stages()
            shutil.rmtree(self._work, ignore_errors=True)
            sync(self.root)

    def _claim(self, names: set[str]) -> None:
        """Note the names before any file appears, so that a killed build's files are still known."""
        for name in sorted(names - self._known):
            if (self.root / name).exists():
                raise OutputError(
                    f"{self.root / name}: this file is in the way and was not written by edgevit. "
                    "Move it away, or build elsewhere with --out DIR."
                )
        self._published |= names
        if not names <= self._known:
            self._known |= names
            self._write_marker()

    def _put(self, source: Path, name: str) -> None:
        target = self.root / name
        if target.exists() and target.samefile(source):
            return
        temporary = self._tmp / f"publish-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        with disk_errors(target, source.stat().st_size):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.unlink(missing_ok=True)
                _link_or_copy(source, temporary)
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync(target.parent)

    def _write_marker(self) -> None:
        raw = marker_text(self.name, self._known).encode()
        temporary = self._tmp / "build.json"
        with disk_errors(marker_path(self.root), len(raw)):
            try:
                write_synced(temporary, raw)
                os.replace(temporary, marker_path(self.root))
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def _prune_stages(self) -> None:
        stages = sorted(self._stages.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        room = sum(_size_bytes(path) for path in stages if path.name in self._used)
        for path in stages:
            if path.name in self._used:
                continue
            room -= _size_bytes(path)
            if room < 0:
                # Renamed first: a kill during the removal must not leave a stage with files missing.
                os.rename(path, self._tmp / path.name)
                shutil.rmtree(self._tmp / path.name, ignore_errors=True)


def _key_sha256(name: str, key: Mapping[str, JSON]) -> str:
    return hashlib.sha256(canonical_json({"format": FORMAT, "stage": name, "key": key}).encode()).hexdigest()


def _modified_ns(path: Path) -> int:
    """Return when a folder was changed; 0 where another build has just removed it."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _below(folder: Path, name: str) -> dict[str, Path]:
    files = [path for path in files_below(folder) if path.name != _RECORD]
    return {(PurePosixPath(name) / path.relative_to(folder).as_posix()).as_posix(): path for path in files}


def _check_public(name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or parts[0] == OWN:
        raise ValueError(f"{name!r} is no name below the build directory: give one like 'onnx/fp32.onnx'")


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_below(folder))


def _seal(folder: Path, name: str, key: Mapping[str, JSON]) -> None:
    """Flush every file to the disk and note what belongs to the stage.

    The note is written last. It also catches writers that ignore a full disk: with no block left
    for it, the stage fails here instead of passing for finished.
    """
    files: dict[str, JSON] = {}
    for path in files_below(folder):
        sync(path)
        state = path.stat()
        files[path.relative_to(folder).as_posix()] = {
            "bytes": state.st_size,
            "mtime_ns": state.st_mtime_ns,
            "sha256": sha256_file(path),
        }
    record: JSON = {"stage": name, "key": key, "key_sha256": _key_sha256(name, key), "files": files}
    write_synced(folder / _RECORD, (json.dumps(record, sort_keys=True, indent=1) + "\n").encode())
    for inner, _, _ in os.walk(folder):
        sync(Path(inner))


def _is_whole(folder: Path, key_sha256: str) -> bool:
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        if record["key_sha256"] != key_sha256:
            return False
        present = {path.relative_to(folder).as_posix() for path in files_below(folder)} - {_RECORD}
        noted: dict[str, dict[str, int | str]] = record["files"]
        return present == set(noted) and all(_is_unchanged(folder / n, f) for n, f in noted.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_unchanged(path: Path, noted: Mapping[str, int | str]) -> bool:
    """Compare size and time, and the hash only where the time differs (a copied build directory)."""
    state = path.stat()
    if state.st_size != noted["bytes"]:
        return False
    return state.st_mtime_ns == noted["mtime_ns"] or sha256_file(path) == noted["sha256"]


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        shutil.copyfile(source, target)
        sync(Path(target))


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove `folder` and its parents up to `root`, as far as nothing is left in them."""
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
