from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.pipeline import keys
from edgevit.pipeline.keys import code_sha256


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a package of one folder and one file, whose code is hashed in place of edgevit's."""
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "one.py").write_text("1")
    (tmp_path / "file.py").write_text("2")
    monkeypatch.setattr(keys, "_PACKAGE", tmp_path)
    code_sha256.cache_clear()
    return tmp_path


def _hashes() -> tuple[str, str]:
    code_sha256.cache_clear()
    return code_sha256("room"), code_sha256("file")


def test_code_hash_follows_the_files_of_its_room_alone(package: Path) -> None:
    room, file = _hashes()
    (package / "room" / "one.py").write_text("changed")
    assert _hashes() == (code_sha256("room"), file)
    assert code_sha256("room") != room


def test_code_hash_follows_a_file_that_is_added_or_renamed(package: Path) -> None:
    first, _ = _hashes()
    (package / "room" / "two.py").write_text("1")
    second, _ = _hashes()
    (package / "room" / "two.py").rename(package / "room" / "three.py")
    third, _ = _hashes()
    assert len({first, second, third}) == 3


def test_code_hash_of_a_room_that_is_not_there_fails(package: Path) -> None:
    with pytest.raises(FileNotFoundError, match="attic"):
        code_sha256("attic")
