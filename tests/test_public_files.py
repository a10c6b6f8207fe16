"""The public files of a store."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_stores import fill_with, public_bytes

from edgevit.errors import OutputError
from edgevit.store import Store


def test_put_again_with_fewer_files_finish_removes_only_edgevits_own(tmp_path: Path) -> None:
    with Store.open(tmp_path, "toy") as store:
        folder = store.run("export", {"n": 2}, fill_with("int8", "int8.onnx"))
        store.public.put(folder, "onnx")
        store.public.put(folder / "int8.onnx", "plan.json")
        store.finish()
    (tmp_path / "notes.md").write_text("mine")
    assert public_bytes(tmp_path) == {"notes.md": b"mine", "onnx/int8.onnx": b"int8", "plan.json": b"int8"}
    with Store.open(tmp_path, "toy") as store:
        store.public.put(
            store.run("export", {"n": 1}, fill_with("new", "plan.json")) / "plan.json", "plan.json"
        )
        store.finish()
    assert public_bytes(tmp_path) == {"notes.md": b"mine", "plan.json": b"new"}
    assert not (tmp_path / "onnx").exists()


def test_put_over_a_file_of_the_user_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path, "toy") as store:
        (tmp_path / "plan.json").write_text("mine")
        folder = store.run("plan", {}, fill_with("x"))
        with pytest.raises(OutputError, match=r"plan\.json: this file is in the way .*--out DIR"):
            store.public.put(folder / "out.txt", "plan.json")
    assert (tmp_path / "plan.json").read_text() == "mine"


@pytest.mark.parametrize("name", ["../plan.json", "/etc/plan.json", ".edgevit/lock", ""])
def test_put_outside_the_build_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with Store.open(tmp_path, "toy") as store:
        folder = store.run("plan", {}, fill_with("x"))
        with pytest.raises(ValueError, match="no name below the build directory"):
            store.public.put(folder / "out.txt", name)


def test_write_replaces_its_own_file_and_refuses_a_foreign_one(tmp_path: Path) -> None:
    with Store.open(tmp_path / "b", "toy") as store:
        store.public.write("report.json", "1")
        store.public.write("report.json", "2")
        (tmp_path / "b" / "mine.txt").write_text("mine")
        with pytest.raises(OutputError, match="in the way and was not written by edgevit"):
            store.public.write("mine.txt", "theirs")
        assert store.public.names == ("report.json",)
    assert (tmp_path / "b" / "report.json").read_text() == "2"
    assert (tmp_path / "b" / "mine.txt").read_text() == "mine"


def test_withdraw_removes_only_what_edgevit_wrote(tmp_path: Path) -> None:
    with Store.open(tmp_path / "b", "toy") as store:
        store.public.write("manifest.json", "{}")
        (tmp_path / "b" / "mine.txt").write_text("mine")
        store.public.withdraw("manifest.json")
        store.public.withdraw("mine.txt")
    assert not (tmp_path / "b" / "manifest.json").exists()
    assert (tmp_path / "b" / "mine.txt").exists()
