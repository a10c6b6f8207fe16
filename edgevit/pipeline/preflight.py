"""The parsers' word on the graphs of TensorRT targets, before anything is built or sent to a board."""

from __future__ import annotations

from collections.abc import Mapping

from edgevit.backends.preflight import ask_parser
from edgevit.errors import BackendError
from edgevit.pipeline.graphs import SIDES, Graphs
from edgevit.report.model import PreflightFacts
from edgevit.target import Precision, Target


def check_graphs(target: Target, graphs: Mapping[Precision, Graphs]) -> list[PreflightFacts]:
    """Ask the parser that is here about both graphs, in each precision.

    Raises:
        BackendError: it refuses one; says the node, which has the block in its name, and the operator.
    """
    facts = []
    for precision, checked in graphs.items():
        for side in SIDES:
            found = ask_parser(checked.by_side[side].path)
            facts.append(
                PreflightFacts(
                    target=target.name,
                    precision=precision,
                    side="dense" if side == "dense" else "slim",
                    outcome=found.outcome,
                    parser=found.parser,
                    why=found.why,
                )
            )
            if found.outcome == "refused":
                raise BackendError(
                    f"{target.name} {precision}: {found.parser} does not take the {side} graph. {found.why}."
                    " Try another opset, or leave this target out."
                )
    return facts
