"""Finding shipped files by name and one's own by path."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgevit
from edgevit.errors import RecipeError
from edgevit.shipped import find_shipped, shipped_dir, shipped_names

PACKAGE = Path(edgevit.__file__).parent


def test_shipped_names_are_sorted_stems_of_the_folder() -> None:
    names = shipped_names("targets")
    assert list(names) == sorted(path.stem for path in shipped_dir("targets").glob("*.toml"))
    assert "openvino-cpu" in names


def test_find_shipped_name_gives_the_shipped_file(tmp_path: Path) -> None:
    assert find_shipped("targets", "openvino-cpu", tmp_path) == shipped_dir("targets") / "openvino-cpu.toml"


@pytest.mark.parametrize("value", ["board.toml", "boards/board", "../board.toml"])
def test_find_shipped_path_is_relative_to_the_folder(tmp_path: Path, value: str) -> None:
    assert find_shipped("targets", value, tmp_path) == tmp_path / value


def test_find_shipped_absolute_path_stays(tmp_path: Path) -> None:
    assert find_shipped("targets", "/boards/a.toml", tmp_path) == Path("/boards/a.toml")


def test_find_shipped_unknown_name_gives_nearest_and_list(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r'no target is named "openvino_cpu"\. Did you mean "openvino-cpu"'
    ) as e:
        find_shipped("targets", "openvino_cpu", tmp_path)
    assert all(name in str(e.value) for name in shipped_names("targets"))


def test_find_shipped_name_of_own_file_without_suffix_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "our-board.toml").touch()
    with pytest.raises(RecipeError, match=r'Did you mean "our-board\.toml"\?'):
        find_shipped("targets", "our-board", tmp_path)


def test_shipped_dir_of_an_installed_package_is_inside_it(tmp_path: Path) -> None:
    """Lay the package out as the wheel does, and ask it from another interpreter."""
    left_out = shutil.ignore_patterns("__pycache__", "_shipped", "*.safetensors")
    shutil.copytree(PACKAGE, tmp_path / "edgevit", ignore=left_out)
    shutil.copytree(shipped_dir("targets"), tmp_path / "edgevit" / "_shipped" / "targets")
    code = "from edgevit.shipped import *; print(shipped_dir('targets')); print(*shipped_names('targets'))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    folder, names = run.stdout.splitlines()
    assert Path(folder) == tmp_path / "edgevit" / "_shipped" / "targets"
    assert tuple(names.split()) == shipped_names("targets")
