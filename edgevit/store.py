"""Keep the output of every stage of a build under the hash of its inputs.

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
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from edgevit.disk import disk_errors, files_below, full_disk, link_or_copy, sha256_file, sync, write_synced
from edgevit.ownership import FORMAT, OWN, STAGE_RECORD, check_owner, lock
from edgevit.public_files import PublicFiles

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


def canonical_json(value: JSON) -> str:
    """Write `value` as JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        TypeError: a value that JSON does not have.
        ValueError: a number that is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class Store:
    """Stage outputs of one build directory, and its `public` files; open it with `Store.open`.

    One process at a time holds a directory, and uses it from one thread.
    """

    def __init__(self, root: Path, name: str, lock_fd: int) -> None:
        """Take over a directory that `open` has checked and locked."""
        self.root = root
        self.name = name
        self.public = PublicFiles(root, name, root / OWN / "tmp")
        self._lock_fd = lock_fd
        self._stages = root / OWN / "stages"
        self._tmp = root / OWN / "tmp"
        self._work = root / OWN / "work"
        self._used: set[str] = set()
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
            store.public.read_marker()
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
                shutil.copytree(source, to, copy_function=link_or_copy, dirs_exist_ok=True)
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

    def finish(self) -> None:
        """Remove public files that this build no longer makes, stages beyond the allowance, unfinished work.

        Only files that edgevit wrote are removed. Call it once, after the last public file.

        Raises:
            OutputError: the directory cannot be written.
        """
        self.public.remove_others()
        with disk_errors(self.root):
            self._prune_stages()
            shutil.rmtree(self._work, ignore_errors=True)
            sync(self.root)

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
    write_synced(folder / STAGE_RECORD, (json.dumps(record, sort_keys=True, indent=1) + "\n").encode())
    for inner, _, _ in os.walk(folder):
        sync(Path(inner))


def _is_whole(folder: Path, key_sha256: str) -> bool:
    try:
        record = json.loads((folder / STAGE_RECORD).read_bytes())
        if record["key_sha256"] != key_sha256:
            return False
        present = {path.relative_to(folder).as_posix() for path in files_below(folder)} - {STAGE_RECORD}
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
