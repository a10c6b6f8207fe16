"""The graphs of a build in each precision: exported once in fp32, of which fp16 and int8 are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgevit.images import Images
from edgevit.pipeline.graphs import Form, Graphs, Probe, export_graphs
from edgevit.pipeline.half import Halving, make_half
from edgevit.pipeline.int8 import Asked, make_int8
from edgevit.pipeline.models import Saved
from edgevit.pipeline.stages import Stages
from edgevit.recipe import Int8Section
from edgevit.target import Precision

GRAPH_OF: dict[Precision, Precision] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "bf16": "fp32",
    "int8": "int8",
    "int8-bf16": "int8",
}
"""The precision of the graph that a candidate is built from; a runtime computes in bf16 by itself."""

_NO_LIMITS = Int8Section()


@dataclass(frozen=True)
class GraphFiles:
    """Every graph that the targets of a build take, made when it is first asked for."""

    stages: Stages
    models: Mapping[str, Saved]
    """As `export_graphs` takes them."""
    plan_sha256: str
    probe: Probe
    calibration: Images | None
    int8_limits: Int8Section = _NO_LIMITS
    made: dict[Form, dict[Precision, Graphs]] = field(default_factory=dict)

    def of(self, form: Form, precision: Precision) -> Graphs:
        """Return the models' graphs for a candidate.

        Raises:
            ExportError, ParityError: a file is not what it should be.
        """
        wanted = GRAPH_OF[precision]
        there = self.made.setdefault(form, {})
        if "fp32" not in there:
            there["fp32"] = export_graphs(self.stages, self.models, form, self.plan_sha256, self.probe)
        if wanted not in there:
            make = self._halve if wanted == "fp16" else self._quantise
            there[wanted] = make(there["fp32"])
        return there[wanted]

    def _halve(self, fp32: Graphs) -> Graphs:
        assert self.calibration is not None  # read_inputs has made sure
        graphs, parity = {}, dict(fp32.parity)
        for side, graph in fp32.by_side.items():
            asked = Halving(side, fp32.form, self.calibration, self.probe)
            graphs[side], facts = make_half(self.stages, graph, asked)
            parity |= facts
        return replace(fp32, by_side=graphs, parity=parity)

    def _quantise(self, fp32: Graphs) -> Graphs:
        assert self.calibration is not None  # read_inputs has made sure
        graphs, facts, parity = {}, [], dict(fp32.parity)
        for side, graph in fp32.by_side.items():
            asked = Asked(side, fp32.form, self.calibration, self.int8_limits)
            made = make_int8(self.stages, graph, asked)
            graphs[side] = made.graph
            facts.append(made.facts)
            parity |= made.parity
        return replace(fp32, by_side=graphs, parity=parity, int8=tuple(facts))
