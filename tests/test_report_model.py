from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sample_report import report, result

from edgevit.errors import OutputError
from edgevit.report.model import Latency, Report, Speedup, load_report, to_json

# The contract of report.json: these keys stand at these places.
CONTRACT = {
    "": ["schema", "name", "recipe_sha256", "versions", "plan", "models", "results"],
    "plan": ["blocks", "dead_tokens"],
    "plan.blocks.0": ["heads", "qk_dim", "vo_dim", "hidden", "tokens"],
    "models.dense": ["macs", "params"],
    "models.slim": ["macs", "params"],
    "results.0": [
        "target", "precision", "device", "chosen", "refused", "dense", "slim", "drop", "speedup", "parity",
        "verdict", "why",
    ],
    "results.0.dense": ["artefact", "sha256", "bytes", "top1", "latency_ms"],
    "results.0.slim": ["artefact", "sha256", "bytes", "top1", "latency_ms", "agreement"],
    "results.0.slim.latency_ms": ["median", "p90", "p99", "mad", "samples"],
    "results.0.drop": ["points", "interval"],
    "results.0.speedup": ["measured", "interval", "estimated", "promise"],
}  # fmt: skip


def _at(table: Any, place: str) -> Any:
    for key in filter(None, place.split(".")):
        table = table[int(key) if key.isdigit() else key]
    return table


def _write(folder: Path, text: str) -> Path:
    (folder / "report.json").write_text(text)
    return folder


@pytest.mark.parametrize("place", CONTRACT)
def test_json_has_the_keys_of_the_contract(place: str) -> None:
    table = json.loads(to_json(report()))
    assert table["schema"] == 1
    assert set(CONTRACT[place]) <= set(_at(table, place))


def test_json_read_back_is_the_same_report_and_text(tmp_path: Path) -> None:
    text = to_json(report())
    again = load_report(_write(tmp_path, text))
    assert again == report()
    assert to_json(again) == text
    assert json.loads(text) == report().model_dump(mode="json")


def test_json_does_not_depend_on_the_order_of_free_facts() -> None:
    one, two = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    texts = {
        to_json(Report.model_validate({**report().model_dump(), "machine": facts})) for facts in (one, two)
    }
    assert len(texts) == 1


def test_json_keeps_samples_in_one_line_and_strings_as_they_are() -> None:
    text = to_json(report().model_copy(update={"warnings": ("a [\n 1,\n 2\n ] b", "größer")}))
    assert json.loads(text)["warnings"] == ["a [\n 1,\n 2\n ] b", "größer"]
    samples = [line for line in text.splitlines() if '"samples"' in line]
    assert len(samples) == 6
    assert all(line.count(",") >= 299 and line.rstrip(",").endswith("]") for line in samples)
    assert text.count("\n") < 1000


def test_load_report_of_a_newer_edgevit_ignores_more_keys(tmp_path: Path) -> None:
    table = json.loads(to_json(report()))
    table["later"] = {"x": 1}
    table["results"][0]["speedup"]["later"] = 2
    assert load_report(_write(tmp_path, json.dumps(table))) == report()


def test_load_report_without_a_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"report\.json: expected the report of a finished build, found no such"
    ):
        load_report(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"schema": 2}',
            r"expected a report of schema 1, got 2\. Write it anew with `edgevit build RECIPE`",
        ),
        ("[]", "expected a report of schema 1, got None"),
        ('{"schema": 1, "na', "cannot be read as JSON"),
        ('{"schema": 1, "name": 3}', r"damaged: name: .*string.*; recipe_sha256: Field required"),
    ],
)
def test_load_report_of_a_file_it_cannot_use_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        load_report(_write(tmp_path, text))


def test_report_with_a_misspelt_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="medain"):
        Latency.model_validate({**report().results[0].dense.latency_ms.model_dump(), "medain": 1.0})


def test_speedup_whose_promise_does_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"expected measured / estimated = 0\.7500, got 0\.9"):
        Speedup(measured=1.5, interval=(1.4, 1.6), estimated=2.0, promise=0.9)


def test_interval_upside_down_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"an interval \[low, high\], not \[1.6, 1.4\]"):
        Speedup(measured=1.5, interval=(1.6, 1.4), estimated=2.0, promise=0.75)


def test_result_chosen_and_refused_is_refused() -> None:
    table = result("fp32", 2.0, 1.0).model_dump()
    with pytest.raises(ValidationError, match="expected false for a candidate that was refused"):
        type(report().results[0]).model_validate({**table, "chosen": True, "refused": "slower"})


def test_report_with_other_blocks_than_its_plan_is_refused() -> None:
    table = report().model_dump()
    with pytest.raises(ValidationError, match="expected 12 as in the plan, got 11"):
        Report.model_validate({**table, "blocks": table["blocks"][:11]})
