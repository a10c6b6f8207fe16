"""Write a build kit: the graphs, stored inputs and outputs, `build.sh`, and the runner for the board."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.files import artefact_files
from edgevit.backends.tensorrt import batch_range, build_options, read_side_file
from edgevit.disk import sha256_file
from edgevit.engine import ENGINE, FILE, GRAPH, KIT, REPORT, SCHEMA, SIDES, TIMING_CACHE, Allowed
from edgevit.kit.trtexec import Graph, build_script
from edgevit.target import Precision, Target

RUNNER = "run.py"
SCRIPT = "build.sh"
_IMAGES, _OUTPUTS = "images.f32", "outputs.f32"


@dataclass(frozen=True)
class Side:
    """One model of a candidate."""

    onnx: Path
    outputs: NDArray[np.float32]
    """What ONNX Runtime makes of the stored images, [n, classes]."""
    allowed: Allowed
    """How far an engine's outputs may be from these."""
    engine: Path | None = None
    """Where it was built ahead of time (TensorRT-RTX)."""


@dataclass(frozen=True)
class KitCandidate:
    """One precision of a kit, dense and slim."""

    precision: Precision
    dense: Side
    slim: Side


@dataclass(frozen=True)
class Stored:
    """Images that a board compares outputs on, and how many it runs at once."""

    images: NDArray[np.float32]
    """[n, C, H, W]; n is a multiple of `batch`."""
    batch: int
    dynamic: bool
    """Whether the graphs leave the batch open."""
    input_name: str


def write_kit(folder: Path, target: Target, candidates: Sequence[KitCandidate], stored: Stored) -> None:
    """Fill `folder` with everything that a board needs besides its own TensorRT.

    Raises:
        RecipeError: the target asks for what one of its TensorRT versions lacks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entry = {
        **_write_tensor(folder, _IMAGES, stored.images),
        "batch": [stored.batch, *stored.images.shape[1:]],
    }
    table = {
        "schema": SCHEMA,
        "target": target.name,
        "runtime": target.runtime,
        "versions": list(target.tensorrt.versions),
        "options": asdict(replace(build_options(target, "fp32"), compute_capabilities=())),
        "timing": target.timing.model_dump(mode="json"),
        "images": entry,
        "candidates": [_write_candidate(folder, one) for one in candidates],
    }
    if target.tensorrt.timing_cache and Path(target.tensorrt.timing_cache).is_file():
        shutil.copyfile(target.tensorrt.timing_cache, folder / TIMING_CACHE)
    (folder / KIT).write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    shutil.copyfile(FILE, folder / RUNNER)
    if target.tensorrt.versions:
        graphs = [_graph(one, side, target, stored) for one in candidates for side in SIDES]
        (folder / SCRIPT).write_text(build_script(target, graphs))
    (folder / "README.txt").write_text(_readme(target))


def _write_candidate(folder: Path, candidate: KitCandidate) -> dict[str, object]:
    sides = {name: _write_side(folder, candidate.precision, name, getattr(candidate, name)) for name in SIDES}
    return {"precision": candidate.precision, **sides}


def _write_side(folder: Path, precision: Precision, name: str, side: Side) -> dict[str, object]:
    where = folder / precision / name
    where.mkdir(parents=True)
    # Its weights may lie beside it, under their own name.
    for number, part in enumerate(artefact_files(side.onnx)):
        shutil.copyfile(side.onnx.parent / part, where / (part if number else GRAPH))
    entry: dict[str, object] = {
        "folder": f"{precision}/{name}",
        "onnx_sha256": sha256_file(where / GRAPH),
        "outputs": _write_tensor(folder, f"{precision}/{name}/{_OUTPUTS}", side.outputs),
        "allowed": asdict(side.allowed),
    }
    if side.engine is not None:
        shutil.copyfile(side.engine, where / ENGINE)
        entry |= {"engine_sha256": sha256_file(side.engine), "facts": read_side_file(side.engine)}
    return entry


def _write_tensor(folder: Path, name: str, values: NDArray[np.float32]) -> dict[str, object]:
    (folder / name).write_bytes(np.ascontiguousarray(values, "<f4").tobytes())
    return {"file": name, "sha256": sha256_file(folder / name)}


def _graph(candidate: KitCandidate, side: str, target: Target, stored: Stored) -> Graph:
    shapes = None
    if stored.dynamic:
        rest = "x".join(map(str, stored.images.shape[1:]))
        least, usual, most = (f"{stored.input_name}:{size}x{rest}" for size in batch_range(target))
        shapes = (least, usual, most)
    return Graph(f"{candidate.precision}/{side}", candidate.precision, shapes)


def _readme(target: Target) -> str:
    runner = f"""python3 {RUNNER}
    builds the engines (or loads those that lie here), compares their outputs with the stored ones, times
    dense and slim side by side, and writes {REPORT}. Needs Python 3.8 and the board's own TensorRT
    module, nothing else. Bring {REPORT} back:
    edgevit report BUILD --import {REPORT}
"""
    script = f"""sh {SCRIPT}
    the same engines and the GPU's times with trtexec alone, where there is no Python module for TensorRT.
    Outputs are not compared.
"""
    versions = " or ".join(target.tensorrt.versions)
    needs = f" with TensorRT {versions}" if versions else " with TensorRT for RTX"
    memory = f", {target.tensorrt.memory_mb} MiB of memory" if target.tensorrt.memory_mb else ""
    return f"Build kit of edgevit for {target.name}{needs}{memory}.\n\n{runner}\n{script if versions else ''}"
