from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgevit.errors import OutputError
from edgevit.integrate.depfile import depfile_text


def test_depfile_lists_each_input_once_and_sorted() -> None:
    text = depfile_text("build/a/manifest.json", ["/x/b.toml", "/x/a.png", "/x/b.toml"])
    assert text.startswith("build/a/manifest.json: \\\n /x/a.png \\\n /x/b.toml\n")


@pytest.mark.parametrize(
    ("path", "escaped"),
    [
        ("a b", r"a\ b"),
        ("a#b", r"a\#b"),
        ("a$b", "a$$b"),
        ("c:b", r"c\:b"),
        ("a\\ b", r"a\\\ b"),
        ("a\\b", r"a\b"),
    ],
)
def test_depfile_escapes_as_gcc_does(path: str, escaped: str) -> None:
    assert depfile_text("m", [path]).splitlines()[1] == f" {escaped}"


def test_depfile_line_break_in_a_path_is_refused() -> None:
    with pytest.raises(OutputError, match="cannot hold a path with a line break"):
        depfile_text("m", ["a\nb"])


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_depfile_make_reads_odd_names_and_survives_a_removed_input(tmp_path: Path) -> None:
    odd = tmp_path / "a b#c$d.png"
    odd.touch()
    (tmp_path / "m.d").write_text(depfile_text("m", [str(odd), str(tmp_path / "plain.toml")]))
    (tmp_path / "plain.toml").touch()
    (tmp_path / "Makefile").write_text("m:\n\t@echo made; touch m\n-include m.d\n")

    def make() -> str:
        done = subprocess.run(["make", "-s", "m"], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    assert "made" in make()
    assert "made" not in make()
    odd.unlink()
    assert "made" in make()
