"""The parsers' word on the graphs of TensorRT targets, before anything is built or sent to a board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgevit.backends.preflight import Preflight, ask_one, first_answer
from edgevit.errors import BackendError
from edgevit.pipeline.graphs import SIDES, Graph, Graphs
from edgevit.report.model import PreflightFacts
from edgevit.target import TENSORRT_RUNTIMES, Precision, Runtime, Target


@dataclass(frozen=True)
class Parsers:
    """What parsers said in this build: each is asked once about a file, whatever targets take it."""

    said: dict[tuple[str, Runtime], Preflight] = field(default_factory=dict)
    """By the hash of the file and whose parser."""

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
        found = first_answer((runtime, self._ask(graph, runtime)) for runtime in runtimes)
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

    def _ask(self, graph: Graph, runtime: Runtime) -> Preflight:
        key = graph.sha256, runtime
        if key not in self.said:
            self.said[key] = ask_one(graph.path, runtime)
        return self.said[key]
