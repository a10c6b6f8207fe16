"""Which parser is asked about which graph; with a fake one, test_backends_preflight.py asks the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.backends.preflight import Preflight
from edgevit.errors import BackendError
from edgevit.pipeline import parsers
from edgevit.pipeline.graphs import Form, Graph, Graphs
from edgevit.pipeline.parsers import Parsers
from edgevit.target import Runtime, Target

ORIN = Target(name="orin", runtime="tensorrt", device="gpu")
RTX = Target(name="rtx", runtime="tensorrt-rtx", device="gpu")


def graphs(*hashes: str) -> Graphs:
    sides = dict(zip(("dense", "slim"), hashes, strict=True))
    made = {side: Graph(Path(f"{one}.onnx"), one, None) for side, one in sides.items()}  # type: ignore[arg-type]
    return Graphs(Form(18, 1, False), made, {})


class FakeParsers:
    """Says "accepted" for the runtimes that are here, and notes what it was asked."""

    def __init__(self, *here: Runtime) -> None:
        self.here = here
        self.asked: list[tuple[str, str]] = []

    def __call__(self, onnx: Path, runtime: Runtime) -> Preflight:
        self.asked.append((onnx.stem, runtime))
        outcome = "accepted" if runtime in self.here else "unavailable"
        return Preflight(outcome, runtime, "")  # type: ignore[arg-type]


def test_graph_that_the_parser_refuses_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Preflight("refused", "tensorrt 10.3", "the parser refuses the graph at blocks.3.attn (Foo): no")
    monkeypatch.setattr(parsers, "ask_one", lambda path, runtime: refused)
    with pytest.raises(
        BackendError, match=r"orin fp32: tensorrt 10\.3 does not take the dense graph.*blocks\.3\.attn"
    ):
        Parsers().check(ORIN, {"fp32": graphs("a", "b")})


def test_graph_is_parsed_once_for_all_precisions_and_targets_that_take_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeParsers("tensorrt")
    monkeypatch.setattr(parsers, "ask_one", fake)
    asked = Parsers()
    fp32, int8 = graphs("a", "b"), graphs("c", "d")
    facts = asked.check(ORIN, {"fp32": fp32, "bf16": fp32, "int8": int8})
    facts += asked.check(ORIN.model_copy(update={"name": "thor"}), {"fp32": fp32})
    assert [(one.target, one.precision, one.side) for one in facts[2:5]] == [
        ("orin", "bf16", "dense"),
        ("orin", "bf16", "slim"),
        ("orin", "int8", "dense"),
    ]
    assert len(facts) == 8
    assert sorted(fake.asked) == [(name, "tensorrt") for name in "abcd"]


def test_target_is_judged_by_the_parser_of_its_own_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsers, "ask_one", FakeParsers("tensorrt", "tensorrt-rtx"))
    checked = [Parsers().check(target, {"fp32": graphs("a", "b")}) for target in (ORIN, RTX)]
    assert [facts[0].parser for facts in checked] == ["tensorrt", "tensorrt-rtx"]


def test_other_parser_is_asked_where_the_own_one_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeParsers("tensorrt-rtx")
    monkeypatch.setattr(parsers, "ask_one", fake)
    asked = Parsers()
    facts = asked.check(ORIN, {"fp32": graphs("a", "b")}) + asked.check(RTX, {"fp32": graphs("a", "b")})
    assert {one.parser for one in facts} == {"tensorrt-rtx"}
    assert sorted(fake.asked) == [(name, one) for name in "ab" for one in ("tensorrt", "tensorrt-rtx")]
