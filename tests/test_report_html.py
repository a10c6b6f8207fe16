from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from sample_report import int8_facts, report, time_budget

from edgevit.errors import OutputError
from edgevit.report import charts
from edgevit.report.html import render_html, write_html
from edgevit.report.model import ReductionFacts, TuneFacts


class _Page(HTMLParser):
    """What a browser would see: tags with attributes, visible text, and scripts apart from it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.styles = ""
        self._words: list[str] = []
        self._open: list[str] = []
        self._type: str | None = None
        self.feed(html)
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._open.append(tag)
        self._type = dict(attrs).get("type")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.scripts.append((self._type, data))
        elif inside == "style":
            self.styles += data
        else:
            self._words.append(data)

    @property
    def specs(self) -> list[dict[str, Any]]:
        return [json.loads(text) for kind, text in self.scripts if kind == "application/json"]


@pytest.fixture(scope="module")
def one() -> str:
    return render_html([report()])


@pytest.fixture(scope="module")
def two() -> str:
    return render_html([report("vo48"), report("vo32-hidden512", slim_ms=4.4)])


def test_html_fetches_nothing_and_forbids_it(two: str) -> None:
    page = _Page(two)
    links = [
        value for _, name, value in page.attributes if name in {"src", "href", "srcset", "data", "action"}
    ]
    assert links
    assert all(link.startswith("#") for link in links)
    assert re.search(r"""\b(src|href)\s*=\s*["']?\s*(https?:)?//""", two) is None
    assert re.search(r"url\(|@import", page.styles) is None
    policy = [value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value]
    assert policy == [
        "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'"
    ]
    assert "http" not in json.dumps(page.specs)


def test_html_holds_the_chart_library_once_and_stays_small(two: str) -> None:
    scripts = [text for kind, text in _Page(two).scripts if kind is None]
    assert [len(text) > 500_000 for text in scripts] == [True, False]
    assert "window.vegaEmbed" in scripts[0]
    assert len(two.encode()) < 2_000_000


def test_html_of_one_build_shows_every_fact(one: str) -> None:
    text = _Page(one).text
    for words in (
        "1.42x as fast as dense (1.39-1.45), MACs promised 1.61x: 88% of the promise kept.",
        "openvino-cpu int8 refused: slower than fp32 on this target",
        "Warning: 2 of 650 evaluation images were corrupt and skipped",
        "my-val, 648 images; skipped as corrupt: 0007.jpg, 0113.jpg",
        "my-line, 256 images without labels",
        "Intel(R) Xeon(R) Platinum 8481C",
        "affinity 0, 1",
        "governor unknown",
        "load, 1 min 0.4 before, 0.6 after",
        "same top-1 slim: torch to onnx 3.1e-06 0.0001 100.0% slim dense mean kl 0.304",
        "timing warmup, s 1; seconds 10",
        "blocks.0 to blocks.1 3",
        "measure openvino-cpu 71.30 1.5 GB",
        "trusted: 300 samples each in 30 bursts",
        "repaired in closed form",
        "What remains was decided by coupled-dims.",
        "3 → 2",
        "768 → 640",
    ):
        assert words in text, words
    for digest in ("3fa2" * 16, "ab" * 32, "c" * 64, "d" * 64, "e" * 64, "5" * 64):
        assert digest in text


def test_html_charts_hold_the_measured_values(one: str) -> None:
    specs = _Page(one).specs
    assert len(specs) == 1 + 3 + 1 + 1  # speed-up, a latency curve each, trade-off, blocks
    rows = [row for spec in specs for rows in spec["datasets"].values() for row in rows]
    fp32 = report().results[0]
    assert any(row.get("measured") == fp32.speedup.measured and row["estimated"] == 1.608 for row in rows)
    slim = [row["ms"] for row in rows if row.get("side") == "slim" and "share" in row]
    assert min(fp32.slim.latency_ms.samples) in slim
    assert max(fp32.slim.latency_ms.samples) in slim
    assert any(row.get("mega") == 102.2 for row in rows)


def test_html_charts_compile_and_draw(one: str) -> None:
    for spec in _Page(one).specs:
        svg = vl_convert.vegalite_to_svg({**spec, "width": 400})
        assert svg.count("<path") > 5


def test_html_of_several_builds_puts_them_side_by_side(two: str) -> None:
    page = _Page(two)
    assert page.text.count("2 builds side by side") == 1
    assert [value for _, name, value in page.attributes if name == "id" and value.startswith("build-")] == [
        "build-1", "build-2",
    ]  # fmt: skip
    assert "vo32-hidden512: openvino-cpu fp32" in json.dumps(page.specs)
    compared = re.search(r"promise kept (.*?) What each build chose", page.text)
    assert compared is not None
    assert compared[1] == (
        "vo32-hidden512 openvino-cpu fp32 chosen trusted 0.780 G 3.902 M 15.8 MB 78.6% 0.6 -0.2 to 1.4 94.3%"
        " 4.40 4.37-4.43 1.69x 1.65-1.72 105% of 1.61x"
        " vo48 openvino-cpu fp32 chosen trusted 0.780 G 3.902 M 15.8 MB 78.6% 0.6 -0.2 to 1.4 94.3%"
        " 5.23 5.20-5.26 1.42x 1.39-1.45 88% of 1.61x"
    )
    assert [value for tag, name, value in page.attributes if tag == "a" and name == "href"][2:] == [
        "#build-2", "#build-1",
    ]  # fmt: skip
    assert page.text.count("openvino-cpu int8 refused untrusted dense") == 2  # each build shows all it tried


def test_html_shows_hostile_names_as_text() -> None:
    name = "</script><script>alert(1)</script>"
    both = [report(name), report("b").model_copy(update={"warnings": ("<b onload=x>",)})]
    page = _Page(render_html(both))
    assert [text for _, text in page.scripts if "alert(1)" in text and "vegaEmbed" in text] == []
    assert name in page.text
    assert "<b onload=x>" in page.text
    assert any(name in json.dumps(spec) for spec in page.specs)


def test_html_compares_accuracy_only_on_the_same_images() -> None:
    first, second = report("a"), report("b")
    assert second.evaluation is not None
    other = second.evaluation.model_copy(update={"set": "digits", "sha256": "f" * 64})
    assert list(charts.tradeoff_charts([first, second])) == ["Accuracy against latency on openvino-cpu"]
    assert list(charts.tradeoff_charts([first, second.model_copy(update={"evaluation": other})])) == [
        "Accuracy against latency on openvino-cpu, images of my-val",
        "Accuracy against latency on openvino-cpu, images of digits",
    ]


def test_html_without_labels_shows_agreement_in_the_tradeoff() -> None:
    [spec] = charts.tradeoff_charts([report(labelled=False)]).values()
    assert "agreement with dense" in json.dumps(spec)
    assert "0.943" in json.dumps(spec)


def test_html_without_evaluation_has_no_tradeoff_and_without_results_no_latency() -> None:
    made = report(labelled=False)
    blind = tuple(
        r.model_copy(update={"slim": r.slim.model_copy(update={"agreement": None})}) for r in made.results
    )
    without = made.model_copy(update={"results": blind, "evaluation": None, "calibration": None})
    assert charts.tradeoff_charts([without]) == {}
    html = render_html([without.model_copy(update={"results": (), "stages": (), "machine": {}})])
    assert len(_Page(html).specs) == 1
    assert "How it was measured" in _Page(render_html([without])).text
    assert "How it was measured" not in _Page(html).text
    assert "evaluation none" in _Page(html).text


def test_html_of_the_same_report_is_the_same_text(one: str) -> None:
    assert render_html([report()]) == one


def test_write_html_writes_the_file_and_says_where_it_cannot(tmp_path: Path) -> None:
    made = report().model_copy(update={"results": ()})
    write_html([made], tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text("utf-8") == render_html([made])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/report\.html: cannot be written"):
        write_html([made], tmp_path / "file" / "report.html")
    with pytest.raises(ValueError, match="expected at least one report"):
        write_html([], tmp_path / "none.html")


def test_html_says_what_was_trained(one: str) -> None:
    facts = TuneFacts(
        epochs=6, seconds=231.4, loss_first=0.5, loss_last=0.25, precision="bf16", seed=0, images=750
    )
    tuned = _Page(render_html([report().model_copy(update={"tune": facts})])).text
    assert "6 epochs over 750 unlabelled images, 231 s; the loss went from 0.500 to 0.250." in tuned
    assert "trained" not in _Page(one).text
    assert "The training took" not in tuned


def test_html_says_which_neurons_images_choose() -> None:
    made = report()
    slim = made.blocks[0].slim.model_copy(update={"hidden": 768, "hidden_used": 154, "mlp_inputs": 96})
    first = made.blocks[0].model_copy(update={"slim": slim})
    page = _Page(render_html([made.model_copy(update={"blocks": (first, *made.blocks[1:])})]))
    assert "768 (154 used, 96 inputs)" in page.text


def test_html_says_what_the_training_changed() -> None:
    facts = TuneFacts(
        epochs=6, seconds=231.4, loss_first=0.5, loss_last=0.25, precision="bf16", seed=0, images=750,
        measured_on="openvino-cpu fp32", top1_before=0.71, agreement_before=0.8,
    )  # fmt: skip
    tuned = _Page(render_html([report().model_copy(update={"tune": facts})])).text
    changed = (
        "The training took agreement from 80.0% to 94.3%, top-1 from 71.0% to 78.6% (openvino-cpu fp32)."
    )
    assert changed in tuned


def test_html_names_how_tokens_become_fewer(one: str) -> None:
    plan = report().plan.model_copy(
        update={
            "reductions": (
                ReductionFacts(place="input", strategy="cells", before=197, after=150),
                ReductionFacts(place="blocks.3", strategy="merge", before=150, after=100),
            )
        }
    )
    text = _Page(render_html([report().model_copy(update={"plan": plan})])).text
    assert "cells in input, 197 to 150 tokens; merge in blocks.3, 150 to 100 tokens." in text
    assert "Tokens become fewer" not in _Page(one).text


def test_html_shows_what_each_layer_costs_in_int8(one: str) -> None:
    assert "int8, layer by layer" not in one
    text = render_html([report().model_copy(update={"int8": (int8_facts(),)})])
    assert "int8, layer by layer" in text
    assert "float, as number 1" in text
    assert text.index("<th>blocks.0.mlp.fc2</th>") < text.index("<th>blocks.0.attn.k</th>")


def test_html_shows_a_budget_of_time_block_by_block(one: str) -> None:
    assert "Budget, block by block" not in one
    text = _Page(render_html([report().model_copy(update={"budget": time_budget()})])).text
    assert "block tokens dense, ms planned, ms measured alone, ms KL of its cuts, nats promise kept" in text
    kept = 100 * (0.6 * 7.42 / 7.5) / (0.4 * 5.23 / 5.0) / (102_200_000 / 71_540_000)
    assert f"blocks.0 197 0.600 0.400 0.400 4.00e-03 {kept:.0f}% of 1.43x" in text
    assert "blocks.11 197 → 1 0.600 0.300 0.300 4.00e-03 " in text
    assert "dense blocks are multiplied by 0.99, those of the slim blocks by 1.05" in text


def test_html_shows_a_budget_of_macs_block_by_block_without_times() -> None:
    facts = time_budget()
    blocks = tuple(b.model_copy(update={"cost": 7e7, "dense": 1e8, "measured": None}) for b in facts.blocks)
    counted = {"unit": "macs", "key": "macs", "table": None, "blocks": blocks}
    made = report().model_copy(update={"budget": facts.model_copy(update=counted)})
    text = _Page(render_html([made])).text
    assert "block tokens dense, MACs planned, MACs KL of its cuts, nats blocks.0 197 100.0 M 70.0 M" in text


def test_html_of_an_older_report_with_a_budget_leaves_out_what_it_does_not_say() -> None:
    facts = time_budget()
    blocks = tuple(b.model_copy(update={"dense": None, "measured": None}) for b in facts.blocks)
    made = report().model_copy(update={"budget": facts.model_copy(update={"key": None, "blocks": blocks})})
    assert "blocks.0 197 - 0.400 - 4.00e-03 - blocks.1" in _Page(render_html([made])).text
