from __future__ import annotations

import errno
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from edgevit.disk import atomic_write, disk_errors, full_disk, sha256_file, sha256_tree
from edgevit.errors import DiskFullError, OutputError


def test_atomic_write_of_text_and_bytes_replaces_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.json"
    atomic_write(path, "größer")
    assert path.read_bytes() == "größer".encode()
    atomic_write(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [entry.name for entry in path.parent.iterdir()] == ["plan.json"]


def test_atomic_write_below_a_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        OutputError, match=r"file/a\.txt: cannot be written \(.*\). Check this path, or .*--out DIR"
    ):
        atomic_write(tmp_path / "file" / "a.txt", "x")


def test_atomic_write_over_the_file_size_limit_keeps_the_old_file(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from edgevit.disk import atomic_write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "atomic_write(Path(sys.argv[1]), b'x' * 5000)\n"
    )
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", script, target], capture_output=True, text=True, check=False)
    assert "DiskFullError" in done.stderr
    assert "model.onnx: the file size limit was reached (5,000 bytes needed, " in done.stderr
    assert "Raise the limit (ulimit -f)" in done.stderr
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_disk_errors_on_a_device_without_space_names_the_free_bytes(tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    with (
        pytest.raises(
            DiskFullError,
            match=r"weights\.bin: no space left on the disk \(9 bytes needed, [\d,]+ bytes free",
        ),
        disk_errors(target, 9),
        Path("/dev/full").open("wb", buffering=0) as device,
    ):
        device.write(b"123456789")


def test_full_disk_in_the_words_of_another_library_is_recognised(tmp_path: Path) -> None:
    error = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert isinstance(full_disk(error, tmp_path), DiskFullError)
    outer = RuntimeError("export failed")
    outer.__cause__ = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert "quota" in str(full_disk(outer, tmp_path))
    assert full_disk(RuntimeError("shape mismatch"), tmp_path) is None
    assert full_disk(KeyboardInterrupt(), tmp_path) is None


def test_sha256_of_file_and_tree_depend_on_names_and_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        (root / "sub").mkdir(parents=True)
        (root / "a").write_bytes(b"abc")
        (root / "sub" / "b").write_bytes(b"")
    assert sha256_file(one / "a") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_tree(one) == sha256_tree(two)
    assert sha256_tree(one / "a") == sha256_file(one / "a")
    (two / "a").rename(two / "c")
    assert sha256_tree(one) != sha256_tree(two)
