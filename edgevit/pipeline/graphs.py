"""The ONNX files of a build: exported once for each opset and batch that its targets want, and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgevit.disk import sha256_file, sha256_tree
from edgevit.engine import SIDES as SIDES  # the two models of a build, and of a kit
from edgevit.export.graph_cost import check_macs, graph_cost
from edgevit.export.links import onnx_link, torch_link
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.parity import TORCH_TO_ONNX, Batch, Parity, check_parity, limits_for
from edgevit.export.verify import check_dims
from edgevit.images import Images
from edgevit.models.arch import Arch
from edgevit.models.load import WEIGHTS_FILE
from edgevit.pipeline.keys import code_sha256, images_key, library_versions
from edgevit.pipeline.models import Saved
from edgevit.pipeline.stages import Stages
from edgevit.preprocess import preprocess_to_json
from edgevit.recipe import ExportSection
from edgevit.report.model import Int8Facts
from edgevit.store import JSON
from edgevit.target import Target
from edgevit.version import __version__

GRAPH_FILE = "fp32.onnx"
_FOLDER = "onnx"  # below the stage's own, which also holds the store's record with its times
PARITY_FILE = "parity.json"
PARITY_IMAGES = 32
"""Images on which outputs are compared; the accuracy is computed on all."""


@dataclass(frozen=True)
class Form:
    """What decides over an ONNX file besides the model."""

    opset: int
    batch: int | None
    simplify: bool

    @classmethod
    def of(cls, section: ExportSection, target: Target) -> Form:
        """Return the form that the recipe asks for, and the target where it says nothing."""
        batch = section.batch or target.batch
        return cls(section.opset or target.opset, None if batch == "dynamic" else batch, section.simplify)

    @property
    def folder(self) -> str:
        """Return the name of the folder for files of this form, where a build has several."""
        return f"opset{self.opset}-batch{self.batch or '-dynamic'}"


@dataclass(frozen=True)
class Graph:
    """The ONNX file of one model."""

    path: Path
    sha256: str
    """Of the file and its external weights."""
    arch: Arch


@dataclass(frozen=True)
class Graphs:
    """The checked ONNX files of a build's models in one form."""

    form: Form
    by_side: dict[str, Graph]
    parity: dict[str, float]
    """How far their outputs are from torch's, by name."""
    int8: tuple[Int8Facts, ...] = ()
    """Of graphs in int8: what their layers cost, and which are in float."""


@dataclass(frozen=True)
class Probe:
    """What outputs are compared on along the chain of custody."""

    images: Batch
    """[n, C, H, W]."""
    key: JSON
    """What they depend on."""

    def batches(self, batch: int | None) -> list[Batch]:
        """Cut the images into batches, the last one filled up; None: of two sizes, 1 and more."""
        if batch is None:
            two = np.resize(self.images, (2, *self.images.shape[1:]))
            return [self.images[:1], self.images[1:] if len(self.images) > 2 else two]
        count = -(-len(self.images) // batch)
        filled = np.resize(self.images, (count * batch, *self.images.shape[1:]))
        return [filled[start : start + batch] for start in range(0, len(filled), batch)]


def make_probe(images: Images | None, arch: Arch) -> Probe:
    """Take the first images of a set, or seeded noise where there is none."""
    if images is not None:
        return Probe(next(iter(images.batches(PARITY_IMAGES))), images_key(images))
    noise = np.random.default_rng(0).standard_normal((PARITY_IMAGES, *arch.image))
    return Probe(noise.astype(np.float32), "noise")


def export_graphs(
    stages: Stages, models: Mapping[str, Saved], form: Form, plan_sha256: str, probe: Probe
) -> Graphs:
    """Export models, and make sure that the files have the promised dims and give torch's outputs.

    Args:
        stages: runs the stages.
        models: each under the name that stages and messages have for it; "dense" alone follows no plan.
        form: what the files are like.
        plan_sha256: of the plan that the others follow.
        probe: what outputs are compared on.

    Raises:
        ExportError: a file lacks the dims, or cannot be written.
        ParityError: a file gives other outputs; the first diverging block is named.
    """
    graphs: dict[str, Graph] = {}
    parity: dict[str, float] = {}
    for side, model in models.items():
        graphs[side] = _export(stages, side, model, form, plan_sha256)
        parity |= _compare(stages, side, model, graphs[side], form, probe)
    return Graphs(form, graphs, parity)


def _export(stages: Stages, side: str, model: Saved, form: Form, plan_sha256: str) -> Graph:
    metadata = _metadata(model, None if side == "dense" else plan_sha256)
    arch = model.loaded.model.arch
    key: dict[str, JSON] = {
        "model": model.sha256,
        "form": asdict(form),
        "metadata": metadata,
        "versions": library_versions(
            ("onnx", "onnxscript", "onnx-ir", "torch", *(("onnxsim",) if form.simplify else ()))
        ),
        "code": code_sha256("export", "models", "cost"),
    }

    def make(folder: Path) -> None:
        path = folder / _FOLDER / GRAPH_FILE
        path.parent.mkdir()
        export_onnx(model.loaded.model, path, ExportOptions(form.opset, form.batch, form.simplify, metadata))
        check_dims(path, arch)
        check_macs(path, arch)

    folder = stages.run("export", key, make, of=side) / _FOLDER
    return Graph(folder / GRAPH_FILE, sha256_tree(folder), arch)


def _metadata(model: Saved, plan_sha256: str | None) -> dict[str, str]:
    """Return what an ONNX file says of itself: how its input is made, what its outputs mean, whence it came.

    The dense model follows no plan, so that another one leaves its file as it is.
    The hash of the weights stands for all that they came from; the recipe's own hash, which a changed gate or
    comment changes, is in the manifest.
    """
    metadata = {
        "edgevit.version": __version__,
        "edgevit.versions": json.dumps(
            library_versions(("onnx", "onnxscript", "timm", "torch")), sort_keys=True
        ),
        "edgevit.weights_sha256": sha256_file(model.folder / WEIGHTS_FILE),
        "edgevit.preprocess": json.dumps(preprocess_to_json(model.loaded.preprocess), sort_keys=True),
    }
    if plan_sha256 is not None:
        metadata["edgevit.plan_sha256"] = plan_sha256
    if model.loaded.labels is not None:
        metadata["edgevit.labels"] = json.dumps(list(model.loaded.labels), ensure_ascii=False)
    return metadata


def _compare(
    stages: Stages, side: str, model: Saved, graph: Graph, form: Form, probe: Probe
) -> dict[str, float]:
    key: dict[str, JSON] = {
        "model": model.sha256,
        "onnx": graph.sha256,
        "images": probe.key,
        "versions": library_versions(("onnxruntime", "torch")),
        "code": code_sha256("export", "models", "pipeline"),
    }

    def make(folder: Path) -> None:
        batches = probe.batches(form.batch)
        links = torch_link(model.loaded.model), onnx_link(graph.path)
        found = check_parity(*links, batches, limits_for(graph.arch, TORCH_TO_ONNX), graph.arch)
        facts = parity_facts(f"{side}_torch_onnx", found) | _element_facts(side, graph.path)
        (folder / PARITY_FILE).write_text(json.dumps(facts))

    facts: dict[str, float] = json.loads((stages.run("verify", key, make, of=side) / PARITY_FILE).read_text())
    return facts


def _element_facts(side: str, path: Path) -> dict[str, float]:
    """Return what a graph computes beside its MACs, which count no elementwise work: elements of an image."""
    cost = graph_cost(path)
    return {f"{side}_elementwise_elements": cost.elementwise, f"{side}_softmax_elements": cost.softmax}


def parity_facts(link: str, found: Parity) -> dict[str, float]:
    """Return what the report says about one link of the chain of custody."""
    return {
        f"{link}_max_abs": found.max_abs,
        f"{link}_allowed": found.tolerance,
        f"{link}_top1_agreement": found.top1_agreement,
    }
