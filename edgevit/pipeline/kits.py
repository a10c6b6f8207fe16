"""Build kits of targets that this machine cannot run, with what their boards need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgevit.backends import get_backend
from edgevit.backends.tensorrt import read_gpu
from edgevit.disk import sha256_file
from edgevit.engine import ENGINE, Allowed
from edgevit.export.links import onnx_link
from edgevit.export.onnx import INPUT_NAME
from edgevit.export.parity import Batch
from edgevit.kit.trtexec import TABLE
from edgevit.kit.write import KitCandidate, Side, Stored, write_kit
from edgevit.pipeline.artefacts import limits_of
from edgevit.pipeline.graphs import SIDES, Graph, Graphs, Probe
from edgevit.pipeline.keys import code_sha256, library_versions
from edgevit.pipeline.stages import Stages
from edgevit.store import JSON
from edgevit.target import Precision, Target

KIT_FOLDER = "kit"


def needs_kit(target: Target) -> bool:
    """Say whether engines of a target run elsewhere: on a board, or on a card that is not in this machine."""
    if target.device == "board":
        return True
    return target.runtime == "tensorrt-rtx" and not read_gpu(target.runtime).devices


def make_kit(stages: Stages, target: Target, graphs: Mapping[Precision, Graphs], probe: Probe) -> Path:
    """Write a target's kit, and return where it lies in the store.

    Raises:
        BackendError: TensorRT-RTX, which builds here, refuses a graph.
        RecipeError: the target asks for what one of its TensorRT versions lacks.
    """
    key = kit_key(target, graphs, probe)

    def make(folder: Path) -> None:
        form = next(iter(graphs.values())).form
        size = form.batch or target.batch
        images = np.concatenate(probe.batches(size))
        stored = Stored(images, size, form.batch is None, INPUT_NAME)
        with TemporaryDirectory() as built:
            found = [_candidate(target, name, one, stored, Path(built)) for name, one in graphs.items()]
            write_kit(folder / KIT_FOLDER, target, found, stored)

    return stages.run("kit", key, make, of=target.name) / KIT_FOLDER


def kit_key(target: Target, graphs: Mapping[Precision, Graphs], probe: Probe) -> dict[str, JSON]:
    """Return what a kit depends on: of the target only what the kit tells the board, and no path."""
    times = Path(target.tensorrt.timing_cache)
    return {
        "onnx": {name: [one.by_side[side].sha256 for side in SIDES] for name, one in graphs.items()},
        "allowed": {
            name: [asdict(_allowed(one.by_side[side], name)) for side in SIDES]
            for name, one in graphs.items()
        },
        "target": [target.name, target.runtime, target.device, target.batch],
        "tensorrt": target.tensorrt.model_dump(mode="json", exclude={"timing_cache"}),
        "timing": target.timing.model_dump(mode="json"),
        "images": probe.key,
        "times": sha256_file(times) if times.is_file() else None,
        "versions": {
            **library_versions(("numpy", "onnxruntime")),
            **({} if target.device == "board" else get_backend(target.runtime).versions()),
        },
        "trtexec": sha256_file(TABLE),
        "code": code_sha256("kit", "engine", "backends", "export/links", "pipeline/kits"),
    }


def _candidate(
    target: Target, precision: Precision, graphs: Graphs, stored: Stored, built: Path
) -> KitCandidate:
    dense, slim = (
        _side(target, precision, graphs.by_side[side], stored, built / precision / side) for side in SIDES
    )
    return KitCandidate(precision, dense, slim)


def _allowed(graph: Graph, precision: Precision) -> Allowed:
    """Return what a board's engine is held to: the limits of an artefact that is built here."""
    limits = limits_of(graph.arch, precision)
    return Allowed(limits.relative, limits.outliers, limits.agreement)


def _side(target: Target, precision: Precision, graph: Graph, stored: Stored, built: Path) -> Side:
    run = onnx_link(graph.path).run
    outputs: list[Batch] = [
        run(stored.images[start : start + stored.batch])
        for start in range(0, len(stored.images), stored.batch)
    ]
    engine = None
    if target.device != "board":
        get_backend(target.runtime).build(graph.path, target, precision, built)
        engine = built / ENGINE
    return Side(graph.path, np.concatenate(outputs), _allowed(graph, precision), engine)
