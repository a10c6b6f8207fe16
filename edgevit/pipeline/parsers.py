"""The parsers' word on the graphs of TensorRT targets, before anything is built or sent to a board."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgevit.backends.preflight import Preflight, ask_one, find_parser, first_answer
from edgevit.errors import BackendError
from edgevit.pipeline.graphs import SIDES, Graph, Graphs
from edgevit.pipeline.keys import code_sha256
from edgevit.pipeline.stages import Stages
from edgevit.report.model import PreflightFacts
from edgevit.store import JSON
from edgevit.target import TENSORRT_RUNTIMES, Precision, Runtime, Target

_ANSWER_FILE = "preflight.json"


class _NoAnswerError(Exception):
    """A parser could not be asked, or died: nothing that the next build should take for its word."""

    def __init__(self, found: Preflight) -> None:
        super().__init__(found.why)
        self.found = found


@dataclass(frozen=True)
class Parsers:
    """What parsers say: each is asked once about a file, whatever targets take it; builds keep its answer."""

    stages: Stages
    here: dict[Runtime, str | None] = field(default_factory=dict)
    """Module and version of each runtime's parser; None where it cannot be imported."""
    said: dict[tuple[str, Runtime], Preflight] = field(default_factory=dict)
    """By the hash of the file and whose parser; no hash where none can be imported."""

    def check(self, target: Target, graphs: Mapping[Precision, Graphs]) -> list[PreflightFacts]:
        """Ask the parser that is here about both graphs, in each precision; the target's own one first.

        Raises:
            BackendError: it refuses one; says the node, which has the block in its name, and the operator.
        """
        return [
            self._check(target, precision, side, checked.by_side[side])
            for precision, checked in graphs.items()
            for side in SIDES
        ]

    def _check(self, target: Target, precision: Precision, side: str, graph: Graph) -> PreflightFacts:
        runtimes = sorted(TENSORRT_RUNTIMES, key=lambda runtime: runtime != target.runtime)
        label = f"{side} {precision}"
        found = first_answer((runtime, self._ask(graph, runtime, label)) for runtime in runtimes)
        if found.outcome == "refused":
            raise BackendError(
                f"{target.name} {precision}: {found.parser} does not take the {side} graph. {found.why}."
                " Try another opset, or leave this target out."
            )
        return PreflightFacts(
            target=target.name,
            precision=precision,
            side="dense" if side == "dense" else "slim",
            outcome=found.outcome,
            parser=found.parser,
            why=found.why,
        )

    def _ask(self, graph: Graph, runtime: Runtime, label: str) -> Preflight:
        if runtime not in self.here:
            self.here[runtime] = find_parser(runtime)
        parser = self.here[runtime]
        key = graph.sha256 if parser else "", runtime
        if key not in self.said:
            of = f"{label}, {parser}"
            self.said[key] = self._kept(graph, runtime, of) if parser else ask_one(graph.path, runtime)
        return self.said[key]

    def _kept(self, graph: Graph, runtime: Runtime, of: str) -> Preflight:
        """Return what the parser that is here said of a graph, in this build or in an earlier one."""
        key: dict[str, JSON] = {
            "onnx": graph.sha256,
            "parser": self.here[runtime],
            "code": code_sha256("engine", "backends/preflight"),
        }

        def make(folder: Path) -> None:
            found = ask_one(graph.path, runtime)
            if found.outcome not in ("accepted", "refused"):
                raise _NoAnswerError(found)
            (folder / _ANSWER_FILE).write_text(json.dumps(asdict(found)))

        try:
            folder = self.stages.run("parse", key, make, of=of)
        except _NoAnswerError as error:
            return error.found
        return Preflight(**json.loads((folder / _ANSWER_FILE).read_text()))
