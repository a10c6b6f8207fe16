"""The page of measured figures is what its data says: nobody edits a figure by hand."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
BENCH = CHECKOUT / "tools" / "bench"

PRINT_PAGE = "import sys, record; sys.stdout.write(record.page_text(record.read_entries()))"
PRINT_COMMAND = (
    "from pathlib import Path; import record, sys; print(record.command_text(Path('x.py'), sys.argv[1:]))"
)


def test_page_of_benchmarks_is_what_its_data_says() -> None:
    made = subprocess.run([sys.executable, "-c", PRINT_PAGE], cwd=BENCH, capture_output=True, check=True)
    assert made.stdout.decode() == (CHECKOUT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_every_row_says_how_it_was_measured() -> None:
    sections = json.loads((CHECKOUT / "docs" / "benchmarks.json").read_text())["sections"]
    runs = [entry["run"] for entries in sections.values() for entry in entries]
    assert len(runs) > 20
    for run in runs:
        assert run["command"].startswith("python tools/bench/")
        assert {"openvino", "torch", "edgevit"} <= run["versions"].keys()
        assert run["machine"]
        assert len(run["commit"].split()[0]) == 12


def test_no_row_names_a_place_on_the_machine_that_measured_it() -> None:
    sections = json.loads((CHECKOUT / "docs" / "benchmarks.json").read_text())["sections"]
    for command in {entry["run"]["command"] for entries in sections.values() for entry in entries}:
        assert not [word for word in shlex.split(command) if word.startswith("/") or "--keep" in word]


def test_recorded_command_leaves_out_where_files_were_kept() -> None:
    given = ["--parts", "a", "--keep", "/x/y", "--out=/x", "/x/fp32/model.xml", str(CHECKOUT / "a b.toml")]
    text = (
        "from pathlib import Path; import record, sys; print(record.command_text(Path('x.py'), sys.argv[1:]))"
    )
    made = subprocess.run([sys.executable, "-c", text, *given], cwd=BENCH, capture_output=True, check=True)
    expected = "python tools/bench/x.py --parts a model.xml 'a b.toml'"
    assert made.stdout.decode().strip() == expected
