"""Whose build a directory is, and one build at a time, as `Store.open` has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgevit.errors import OutputError
from edgevit.ownership import marker_path, marker_text, published_names
from edgevit.store import Store


def keep_a_stage(folder: Path) -> None:
    """Leave a build directory behind; one that held nothing would be taken away again."""
    with Store.open(folder, "toy") as store:
        store.run("stage", {}, lambda folder: None)


def test_open_refuses_foreign_content_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"jpg")
    with pytest.raises(OutputError, match=r"found 1 other entry \(holiday\.jpg\)\..*--out DIR"):
        Store.open(tmp_path, "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_open_refuses_many_foreign_files_and_names_three(tmp_path: Path) -> None:
    for name in "edcba":
        (tmp_path / name).touch()
    with pytest.raises(OutputError, match=r"found 5 other entries \(a, b, c, \.\.\.\)"):
        Store.open(tmp_path, "toy")


def test_open_refuses_a_file_and_the_build_of_another_recipe(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"expected a directory, found a file.*--out DIR"):
        Store.open(tmp_path / "file", "toy")
    keep_a_stage(tmp_path / "b")
    with pytest.raises(OutputError, match=r"expected the build of 'other', found that of 'toy'.*--out DIR"):
        Store.open(tmp_path / "b", "other")


def test_open_refuses_a_marker_of_another_format_or_none_at_all(tmp_path: Path) -> None:
    keep_a_stage(tmp_path)
    (tmp_path / ".edgevit" / "build.json").write_text('{"format": 99, "name": "toy"}')
    with pytest.raises(OutputError, match=r"another version of edgevit \(expected format 1\)"):
        Store.open(tmp_path, "toy")
    (tmp_path / ".edgevit" / "build.json").write_text("{")
    with pytest.raises(OutputError, match=r"build\.json: cannot be read"):
        Store.open(tmp_path, "toy")


def test_open_while_another_process_builds_names_its_process_id(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from edgevit.store import Store\n"
        "store = Store.open(Path(sys.argv[1]), 'toy'); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(OutputError, match=rf"another edgevit build .*\(process {other.pid}\).*--out DIR"):
            Store.open(tmp_path, "toy")
        other.send_signal(signal.SIGKILL)
    Store.open(tmp_path, "toy").close()


def test_open_twice_in_one_process_is_refused_until_closed(tmp_path: Path) -> None:
    with Store.open(tmp_path, "toy"), pytest.raises(OutputError, match=f"process {os.getpid()}"):
        Store.open(tmp_path, "toy")
    Store.open(tmp_path, "toy").close()


def test_published_names_are_those_of_the_marker(tmp_path: Path) -> None:
    assert published_names(tmp_path) == []
    marker_path(tmp_path).parent.mkdir()
    marker_path(tmp_path).write_text(marker_text("toy", {"plan.json", "onnx/fp32.onnx"}))
    assert published_names(tmp_path) == ["onnx/fp32.onnx", "plan.json"]
