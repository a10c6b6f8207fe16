"""The report of a sweep: on a terminal, as a page, and as data."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from sample_sweep import sweep

from edgevit.report import charts, phrases
from edgevit.report.html import render_sweep as render_page
from edgevit.report.model import to_json
from edgevit.report.sweep import Sweep
from edgevit.report.terminal import render_sweep

NARROW = """\
Warning: 2 of 650 evaluation images were corrupt and skipped
budget           MACs  top-1         drop  agree         ms   speed-up  kept
────────────────────────────────────────────────────────────────────────────
macs 0.8      1.003 G  79.1%          0.1  94.3%       6.20      1.20x   74%
openvino-cpu                  -0.6 to 1.0         6.16-6.24  1.17-1.22
fp32
unbeaten

macs 0.6      0.752 G  78.3%          0.9  94.3%       4.80      1.55x   96%
openvino-cpu                   0.2 to 1.8         4.77-4.83  1.51-1.58
fp32
unbeaten

macs 0.1
not built

macs 0.5      0.627 G  77.2%          2.0  94.3%       7.00      1.06x   66%
openvino-cpu                   1.3 to 2.9         6.96-7.04  1.04-1.08
fp32
unbeaten: none is faster and as accurate; drop in points; 95 % intervals below.

openvino-cpu: 2 points are beaten by none in both time and accuracy, from macs
0.8 (fp32, 6.20 ms, top-1 79.1%, 1.20x) to macs 0.6 (fp32, 4.80 ms, top-1 78.3%,
1.55x).
macs 0.1 was not built: budget.macs: expected at least 3.1e+08, got 1.254e+08.
macs 0.5: latency gate missed: openvino-cpu fp32: median latency is 7.000 ms
"""


def printed() -> str:
    console = Console(file=io.StringIO(), width=80, legacy_windows=False)
    render_sweep(sweep(), console)
    assert isinstance(console.file, io.StringIO)
    return re.sub(r" +\n", "\n", console.file.getvalue())


def test_terminal_shows_each_point_with_its_intervals_and_what_is_missing() -> None:
    assert printed() == NARROW


def test_findings_without_labels_speak_of_agreement() -> None:
    said = phrases.sweep_findings(sweep(labelled=False))
    assert "agreement 94.3%" in said[0]
    assert "top-1" not in said[0]


def test_json_is_read_as_it_was_written() -> None:
    assert Sweep.model_validate_json(to_json(sweep())) == sweep()


def test_chart_has_every_artefact_with_its_intervals_and_the_front() -> None:
    [(title, spec)] = charts.sweep_charts(sweep()).items()
    assert title == "Accuracy against latency on openvino-cpu"
    line, across, upright, points, names = spec["layer"]
    rows = spec["datasets"][across["data"]["name"]]
    assert {row["build"] for row in rows} == {"dense", "macs 0.8", "macs 0.6", "macs 0.5"}
    assert all(row["ms_low"] < row["ms"] < row["ms_high"] for row in rows)
    assert all(row["share_low"] < row["share"] < row["share_high"] for row in rows if row["build"] != "dense")
    front = spec["datasets"][line["data"]["name"]]
    assert [place["ms"] for place in front] == pytest.approx([4.8, 6.2, 7.42])
    named = {row["name"] for row in rows if "name" in row}
    assert (named, names["encoding"]["text"]["field"]) == ({"0.8", "0.6", "0.5"}, "name")
    assert (upright["encoding"]["y2"]["field"], points["mark"]["type"]) == ("share_high", "point")


def test_page_has_the_chart_a_row_for_each_point_and_links_to_their_reports() -> None:
    page = render_page(sweep())
    assert page.count('class="chart"') == 1
    assert re.findall(r'<a href="([^"]+)">([^<]+)</a>', page) == [
        ("macs-0.8/report.html", "0.8"),
        ("macs-0.6/report.html", "0.6"),
        ("macs-0.5/report.html", "0.5"),
    ]
    assert "not built: budget.macs: expected at least 3.1e+08, got 1.254e+08." in page
    assert "openvino-cpu fp32" in page
    assert re.search(r"""\b(src|href)\s*=\s*["']?\s*(https?:)?//""", page) is None
