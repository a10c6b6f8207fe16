"""Write files so that none is ever half-written, name what went wrong, and hash what was written."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgevit.errors import DiskFullError, EdgevitError, OutputError

__all__ = [
    "atomic_write",
    "disk_errors",
    "files_below",
    "full_disk",
    "link_or_copy",
    "sha256_file",
    "sha256_tree",
    "sync",
    "write_synced",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
# Writers in C++ and Rust (OpenVINO, safetensors) report a full disk in words, without an errno.
_FULL_WORDS = ("no space left on device", "os error 28)", "os error 27)", "disk quota exceeded")


def sha256_file(path: Path) -> str:
    """Hash the bytes of a file.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(root: Path) -> str:
    """Hash a file, or the relative names and bytes of all files below a folder.

    Raises:
        OSError: a file cannot be read.
    """
    if root.is_file():
        return sha256_file(root)
    lines = [f"{sha256_file(path)}  {path.relative_to(root).as_posix()}\n" for path in files_below(root)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_below(root: Path) -> list[Path]:
    """List the files below `root`, in the order of their relative names."""
    found = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file so that `path` holds the old content or the new one, never a part.

    Missing parent folders are made.

    Raises:
        DiskFullError: no space left; `path` is unchanged and nothing else stays behind.
        OutputError: the folder cannot be written.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path, len(raw)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_synced(temporary, raw)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_synced(path: Path, raw: bytes) -> None:
    """Write a file and flush it to the disk.

    Raises:
        OSError: the file cannot be written; a part of it may be there.
    """
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name: a hard link where the file system can, else a copy, flushed to the disk.

    Raises:
        OSError: the disk refuses both; a part of the copy may be there.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, target)
        sync(Path(target))


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn the failures of the file system inside the block into errors that say what to do.

    Args:
        path: what is being written; the message names it.
        needed_bytes: its size, where it is known beforehand.

    Raises:
        DiskFullError: no space, no quota, or over the file size limit.
        OutputError: any other refusal.
    """
    try:
        yield
    except EdgevitError:
        raise
    except OSError as error:
        full = full_disk(error, path, needed_bytes)
        if full is not None:
            raise full from error
        remedy = "Make it writable for this user" if error.errno in _NOT_ALLOWED else "Check this path"
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}). {remedy}, or give another (a build: --out DIR)."
        ) from error


def full_disk(error: BaseException, path: Path, needed_bytes: int | None = None) -> DiskFullError | None:
    """Return the error to raise if `error`, or what caused it, is a full disk; else None."""
    if not isinstance(error, Exception) or isinstance(error, DiskFullError):
        return None
    for link in _chain(error):
        by_number = isinstance(link, OSError) and link.errno in _FULL
        if by_number or any(word in str(link).lower() for word in _FULL_WORDS):
            return DiskFullError(_full_message(link, path, needed_bytes))
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _full_message(error: BaseException, path: Path, needed_bytes: int | None) -> str:
    number = error.errno if isinstance(error, OSError) else errno.ENOSPC
    cause, remedy = "no space left on the disk", "Free some space"
    if number == errno.EFBIG:
        cause, remedy = "the file size limit was reached", "Raise the limit (ulimit -f)"
    elif number == errno.EDQUOT:
        cause = "the disk quota is used up"
    needed = "" if needed_bytes is None else f"{needed_bytes:,} bytes needed, "
    return (
        f"{path}: {cause} ({needed}{_free_bytes(path):,} bytes free). {remedy}, or build elsewhere with "
        "--out DIR; stages that were finished are kept and not made again."
    )


def _free_bytes(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
