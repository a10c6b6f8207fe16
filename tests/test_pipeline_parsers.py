"""Which parser is asked about which graph; with a fake one, test_backends_preflight.py asks the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgevit.backends.preflight import Outcome, Preflight
from edgevit.errors import BackendError
from edgevit.pipeline import parsers
from edgevit.pipeline.graphs import Form, Graph, Graphs
from edgevit.pipeline.parsers import Parsers
from edgevit.pipeline.stages import Stages
from edgevit.progress import silent
from edgevit.store import Store
from edgevit.target import Runtime, Target

ORIN = Target(name="orin", runtime="tensorrt", device="gpu")
RTX = Target(name="rtx", runtime="tensorrt-rtx", device="gpu")


def graphs(*hashes: str) -> Graphs:
    sides = dict(zip(("dense", "slim"), hashes, strict=True))
    made = {side: Graph(Path(f"{one}.onnx"), one, None) for side, one in sides.items()}  # type: ignore[arg-type]
    return Graphs(Form(18, 1, False), made, {})


class FakeParsers:
    """Says one thing for the runtimes that are here, in the real ones' place, and notes what it was asked."""

    def __init__(self, patch: pytest.MonkeyPatch, *here: Runtime, outcome: Outcome = "accepted") -> None:
        self.here = here
        self.outcome: Outcome = outcome
        self.version = "10.3"
        self.asked: list[tuple[str, str]] = []
        patch.setattr(parsers, "find_parser", self.find)
        patch.setattr(parsers, "ask_one", self.ask)

    def find(self, runtime: Runtime) -> str | None:
        return f"{runtime} {self.version}" if runtime in self.here else None

    def ask(self, onnx: Path, runtime: Runtime) -> Preflight:
        self.asked.append((onnx.stem, runtime))
        found = self.outcome if runtime in self.here else "unavailable"
        return Preflight(found, self.find(runtime), "the parser refuses the graph at blocks.3.attn (Foo): no")


@pytest.fixture
def stages(tmp_path: Path) -> Iterator[Stages]:
    with Store.open(tmp_path / "build", "toy") as store:
        yield Stages(store, silent)


def test_graph_that_the_parser_refuses_fails_the_build_each_time(
    monkeypatch: pytest.MonkeyPatch, stages: Stages
) -> None:
    fake = FakeParsers(monkeypatch, "tensorrt", outcome="refused")
    for _ in range(2):
        with pytest.raises(
            BackendError, match=r"orin fp32: tensorrt 10\.3 does not take the dense graph.*blocks\.3\.attn"
        ):
            Parsers(stages).check(ORIN, {"fp32": graphs("a", "b")})
    assert fake.asked == [("a", "tensorrt")]


def test_graph_is_parsed_once_for_all_precisions_and_targets_that_take_it(
    monkeypatch: pytest.MonkeyPatch, stages: Stages
) -> None:
    fake = FakeParsers(monkeypatch, "tensorrt")
    asked = Parsers(stages)
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


def test_target_is_judged_by_the_parser_of_its_own_runtime(
    monkeypatch: pytest.MonkeyPatch, stages: Stages
) -> None:
    FakeParsers(monkeypatch, "tensorrt", "tensorrt-rtx")
    checked = [Parsers(stages).check(target, {"fp32": graphs("a", "b")}) for target in (ORIN, RTX)]
    assert [facts[0].parser for facts in checked] == ["tensorrt 10.3", "tensorrt-rtx 10.3"]


def test_other_parser_is_asked_where_the_own_one_is_not_here(
    monkeypatch: pytest.MonkeyPatch, stages: Stages
) -> None:
    fake = FakeParsers(monkeypatch, "tensorrt-rtx")
    asked = Parsers(stages)
    facts = asked.check(ORIN, {"fp32": graphs("a", "b")}) + asked.check(RTX, {"fp32": graphs("a", "b")})
    assert {one.parser for one in facts} == {"tensorrt-rtx 10.3"}
    assert fake.asked == [("a", "tensorrt"), ("a", "tensorrt-rtx"), ("b", "tensorrt-rtx")]


def test_rebuild_asks_about_other_graphs_and_by_other_versions_alone(
    monkeypatch: pytest.MonkeyPatch, stages: Stages
) -> None:
    fake = FakeParsers(monkeypatch, "tensorrt")
    first = Parsers(stages).check(ORIN, {"fp32": graphs("a", "b")})
    assert Parsers(stages).check(ORIN, {"fp32": graphs("a", "b")}) == first
    assert fake.asked == [("a", "tensorrt"), ("b", "tensorrt")]
    Parsers(stages).check(ORIN, {"fp32": graphs("a", "c")})
    assert fake.asked[2:] == [("c", "tensorrt")]
    fake.version = "10.4"
    Parsers(stages).check(ORIN, {"fp32": graphs("a", "c")})
    assert fake.asked[3:] == [("a", "tensorrt"), ("c", "tensorrt")]


@pytest.mark.parametrize("outcome", ["died", "unavailable"])
def test_parser_that_gave_no_answer_is_asked_again_by_the_next_build(
    monkeypatch: pytest.MonkeyPatch, stages: Stages, outcome: Outcome
) -> None:
    fake = FakeParsers(monkeypatch, "tensorrt", outcome=outcome)
    Parsers(stages).check(ORIN, {"fp32": graphs("a", "b")})
    fake.outcome = "accepted"
    facts = Parsers(stages).check(ORIN, {"fp32": graphs("a", "b")})
    assert {one.outcome for one in facts} == {"accepted"}
