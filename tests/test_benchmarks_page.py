"""The page of measured figures is what its data says: nobody edits a figure by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
BENCH = CHECKOUT / "tools" / "bench"

PRINT_PAGE = "import sys, record; sys.stdout.write(record.page_text(record.read_entries()))"


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
