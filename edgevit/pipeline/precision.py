"""The graphs of a build in each precision: exported once in fp32, int8 made of that by quantising."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from edgevit.disk import sha256_tree
from edgevit.export.links import onnx_link
from edgevit.export.parity import Batch
from edgevit.export.precision import quantise
from edgevit.images import Images
from edgevit.measure.accuracy import agreement, mean_kl
from edgevit.pipeline.graphs import PARITY_FILE, Form, Graph, Graphs, Probe, export_graphs
from edgevit.pipeline.keys import code_sha256, images_key, library_versions
from edgevit.pipeline.models import Saved
from edgevit.pipeline.stages import Stages
from edgevit.store import JSON
from edgevit.target import Precision

GRAPH_OF: dict[Precision, Precision] = {
    "fp32": "fp32",
    "bf16": "fp32",
    "int8": "int8",
    "int8-bf16": "int8",
}
"""The precision of the graph that a candidate is built from; a runtime computes in bf16 by itself."""

QUANTISING_IMAGES = 256
"""Calibration images that ranges are taken from at most."""
_TRIAL_IMAGES = 32
SMOOTH_BELOW = 0.98
"""SmoothQuant, whose products cost time, is tried where the plain graph agrees with fp32 on fewer images."""


@dataclass(frozen=True)
class GraphFiles:
    """Every graph that the targets of a build take, made when it is first asked for."""

    stages: Stages
    models: Mapping[str, Saved]
    """As `export_graphs` takes them."""
    plan_sha256: str
    probe: Probe
    calibration: Images | None
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
            there[wanted] = self._quantise(there["fp32"])
        return there[wanted]

    def _quantise(self, fp32: Graphs) -> Graphs:
        assert self.calibration is not None  # read_inputs has made sure
        graphs, facts = {}, dict(fp32.parity)
        for side, graph in fp32.by_side.items():
            graphs[side], found = _quantise(self.stages, side, graph, self.calibration)
            facts |= found
        return replace(fp32, by_side=graphs, parity=facts)


def _quantise(stages: Stages, side: str, fp32: Graph, images: Images) -> tuple[Graph, dict[str, float]]:
    key: dict[str, JSON] = {
        "onnx": fp32.sha256,
        "images": images_key(images),
        "versions": library_versions(("nncf", "onnx", "onnxruntime")),
        "code": code_sha256("export", "pipeline/precision"),
    }

    def make(folder: Path) -> None:
        batches = _spread(images)
        out = folder / "onnx" / "int8.onnx"
        out.parent.mkdir()
        facts = _quantise_best(fp32.path, batches, out)
        named = {f"{side}_{name}": value for name, value in facts.items()}
        (folder / PARITY_FILE).write_text(json.dumps(named))

    folder = stages.run("quantise", key, make, of=side)
    facts: dict[str, float] = json.loads((folder / PARITY_FILE).read_text())
    return Graph(folder / "onnx" / "int8.onnx", sha256_tree(folder / "onnx"), fp32.arch), facts


def _spread(images: Images) -> list[Batch]:
    """Return single images, [1, C, H, W] each, spread evenly over the set, as its order may go by class."""
    wanted = set(np.linspace(0, len(images) - 1, min(len(images), QUANTISING_IMAGES)).astype(int).tolist())
    return [image for index, image in enumerate(images.batches(1)) if index in wanted]


@dataclass(frozen=True)
class _Trial:
    """How far an int8 graph is from its fp32 one, on calibration images."""

    fp32_int8_agreement: float
    fp32_int8_mean_kl: float


def _quantise_best(fp32: Path, images: list[Batch], out: Path) -> dict[str, float]:
    """Quantise without SmoothQuant, and with it where that agrees too little; keep what is nearer to fp32."""
    reference = onnx_link(fp32).run
    sample = images[:: max(1, len(images) // _TRIAL_IMAGES)]
    expected = np.concatenate([reference(image) for image in sample])

    def attempt(path: Path, *, smooth: bool) -> _Trial:
        quantise(fp32, images, path, smooth=smooth)
        got = onnx_link(path).run
        logits = np.concatenate([got(image) for image in sample])
        return _Trial(agreement(expected, logits), mean_kl(expected, logits))

    plain, kept, smoothed = attempt(out, smooth=False), out, False
    found = plain
    if plain.fp32_int8_agreement < SMOOTH_BELOW:
        other = out.with_name("smooth.onnx")
        smooth = attempt(other, smooth=True)
        if smooth.fp32_int8_mean_kl < plain.fp32_int8_mean_kl:
            found, smoothed = smooth, True
            other.replace(kept)
        other.unlink(missing_ok=True)
    return asdict(found) | {"int8_smooth_quant": float(smoothed)}
