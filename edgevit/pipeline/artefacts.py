"""The artefacts of one candidate, a target in one precision: built, loaded once, compared with their ONNX."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from edgevit.backends import Backend, Session, get_backend
from edgevit.disk import files_below, sha256_file, sha256_tree
from edgevit.export.links import cut_after, onnx_link
from edgevit.export.parity import ONNX_TO_ARTEFACT, Limits, Link, Runner, check_parity, limits_for
from edgevit.models.arch import Arch
from edgevit.pipeline.graphs import PARITY_FILE, Graph, Graphs, Probe, parity_facts
from edgevit.pipeline.keys import code_sha256
from edgevit.pipeline.stages import Stages
from edgevit.store import JSON
from edgevit.target import Precision, Target

Device = tuple[Target, Precision]

# Largest difference of logits between ONNX and artefact, as a share of the largest logit (at least 1).
# fp32: another order of sums. fp16 keeps 11 bits of each factor: 0.0013 for DeiT-T even where each step of a
# sum is rounded to half precision (onnx's reference evaluator); its graph is held to the same against fp32's.
# bf16 keeps 8 bits of each factor, errors add up over the blocks, and where tokens are merged many choices
# turn; what that costs is measured as accuracy. int8: where two sums differ in the last bit, an activation
# falls on the other step of its scale, so top-1 is compared instead (below), and this only shown beside it.
_TOLERANCE: dict[Precision, float] = {
    "fp32": ONNX_TO_ARTEFACT,
    "fp16": 0.02,
    "bf16": 0.15,
    "int8": 0.3,
    "int8-bf16": 0.3,
}
_MERGED_OUTLIERS = 0.5
_INT8_AGREEMENT = 0.9
"""Share of the compared images, at least, on which an int8 artefact has its graph's top-1."""


@dataclass(frozen=True)
class Artefact:
    """A built artefact."""

    folder: Path
    entry: Path
    """The file to load."""
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ArtefactPair:
    """The artefacts of one candidate, dense and slim; each is loaded once, when first needed."""

    stages: Stages
    backend: Backend
    target: Target
    precision: Precision
    artefacts: dict[str, Artefact]
    session: Callable[[str], Session]

    @property
    def label(self) -> str:
        """Return how messages and stages call the candidate."""
        return f"{self.target.name} {self.precision}"

    def key(self, *rooms: str) -> dict[str, JSON]:
        """Return what every output of an artefact on this device depends on."""
        return {
            "runtime": self.target.runtime,
            "device": self.target.device,
            "threads": self.target.threads,
            "precision": self.precision,
            "versions": self.backend.versions(),
            "code": code_sha256("backends", "board", *rooms),
        }


def tensorrt_key(target: Target) -> JSON:
    """Return what decides over an engine besides its graph; kernel times only where nothing else may."""
    options = target.tensorrt
    cache = Path(options.timing_cache)
    pinned = sha256_file(cache) if options.pinned and cache.is_file() else None
    return {**options.model_dump(mode="json", exclude={"memory_mb", "timing_cache"}), "times": pinned}


@contextmanager
def build_pair(stages: Stages, device: Device, graphs: Graphs) -> Iterator[ArtefactPair]:
    """Build the artefacts of a candidate; leaving the context frees the sessions.

    Raises:
        BackendUnavailableError: the device lacks the precision.
        BackendError: the runtime refuses a graph.
    """
    target, precision = device
    backend = get_backend(target.runtime)
    artefacts = {side: _build(stages, backend, device, side, graph) for side, graph in graphs.by_side.items()}
    loaded: dict[str, Session] = {}
    with ExitStack() as stack:

        def session(side: str) -> Session:
            if side not in loaded:
                loaded[side] = stack.enter_context(backend.load(artefacts[side].entry, target, precision))
            return loaded[side]

        yield ArtefactPair(stages, backend, target, precision, artefacts, session)


def _build(stages: Stages, backend: Backend, device: Device, side: str, graph: Graph) -> Artefact:
    target, precision = device
    key: dict[str, JSON] = {
        "onnx": graph.sha256,
        "runtime": target.runtime,
        "device": target.device,
        "precision": precision,
        "tensorrt": tensorrt_key(target),
        "versions": backend.versions(),
        "code": code_sha256("backends", "board", "engine"),
    }

    def make(folder: Path) -> None:
        entry = backend.build(graph.path, target, precision, folder / "artefact")
        (folder / "entry.txt").write_text(entry.relative_to(folder).as_posix())

    folder = stages.run(f"build-{target.runtime}", key, make, of=f"{side}, {target.name} {precision}")
    files = files_below(folder / "artefact")
    return Artefact(
        folder=folder / "artefact",
        entry=folder / (folder / "entry.txt").read_text(),
        sha256=sha256_tree(folder / "artefact"),
        bytes=sum(path.stat().st_size for path in files),
    )


def compare_with_onnx(pair: ArtefactPair, side: str, graph: Graph, probe: Probe) -> dict[str, float]:
    """Compare an artefact with its ONNX file on the same images; return what the report says about it.

    Raises:
        ParityError: it does not compute what the file does; the first diverging block is named.
    """
    key = pair.key("export", "pipeline") | {
        "onnx": graph.sha256,
        "artefact": pair.artefacts[side].sha256,
        "images": probe.key,
    }

    def make(folder: Path) -> None:
        session = pair.session(side)
        batches = probe.batches(session.input_shape[0])
        with _blocks_of(pair, graph) as at:
            artefact = Link(f"{side} artefact ({pair.label})", session.run, at)
            limits = limits_of(graph.arch, pair.precision)
            found = check_parity(onnx_link(graph.path), artefact, batches, limits, graph.arch)
        (folder / PARITY_FILE).write_text(json.dumps(parity_facts(f"{side}_onnx_artefact", found)))

    folder = pair.stages.run("compare", key, make, of=f"{side}, {pair.label}")
    facts: dict[str, float] = json.loads((folder / PARITY_FILE).read_text())
    return facts


def limits_of(arch: Arch, precision: Precision) -> Limits:
    """Return how far an artefact may be from its graph; for fp16 also the graph from the fp32 one."""
    if precision in ("int8", "int8-bf16"):
        return Limits(_TOLERANCE[precision], agreement=_INT8_AGREEMENT)
    limits = limits_for(arch, _TOLERANCE[precision])
    if precision != "fp32" and limits.outliers:
        return replace(limits, outliers=_MERGED_OUTLIERS, explained=False)
    return limits


@contextmanager
def _blocks_of(pair: ArtefactPair, graph: Graph) -> Iterator[Callable[[str], Runner]]:
    """Give what leaves a block of an artefact: each that is asked for is built as a graph that ends there."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        @cache
        def at(block: str) -> Runner:
            cut = folder / f"{block}.onnx"
            cut_after(graph.path, block, cut)
            entry = pair.backend.build(cut, pair.target, pair.precision, folder / block)
            return stack.enter_context(pair.backend.load(entry, pair.target, pair.precision)).run

        yield at
