"""The latency table of a target in one precision: measured once for a machine, runtime version and model."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from edgevit.backends import Backend, Session, get_backend
from edgevit.board import TimeBudget, read_machine
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.parity import Batch
from edgevit.export.parts import cut_parts
from edgevit.export.precision import quantise
from edgevit.measure.long_model import GRID, Grid, LongModel, make_long_model
from edgevit.measure.parts import TABLE_BUDGET, PartTimes, time_parts
from edgevit.measure.table import (
    Device,
    LatencyTable,
    TimedPart,
    make_table,
    part_terms,
    scale_table,
)
from edgevit.models.arch import Arch, arch_to_json
from edgevit.models.layers import SlimViT
from edgevit.pipeline.graphs import Form, Graph
from edgevit.pipeline.keys import code_sha256, library_versions
from edgevit.pipeline.precision import GRAPH_OF
from edgevit.pipeline.stages import Stages
from edgevit.store import JSON
from edgevit.target import Precision, Target
from edgevit.version import __version__

TIMES_FILE = "times.json"
_DENSE = "dense"
_RANGING_IMAGES = 2
"""Images of noise by which the long model is quantised: times do not depend on the ranges."""


@dataclass(frozen=True)
class Effort:
    """How much is measured for a table."""

    grid: Grid = GRID
    budget: TimeBudget = TABLE_BUDGET


EFFORT = Effort()


def measure_table(
    stages: Stages,
    device: tuple[Target, Precision],
    form: Form,
    dense: Graph,
    effort: Effort = EFFORT,
) -> LatencyTable:
    """Measure how long blocks take, or take the table that is there.

    Args:
        stages: runs the stages.
        device: the target, and the precision that is computed in.
        form: of the graphs; a dynamic batch is timed at the target's.
        dense: the dense model's graph in this precision, which is timed whole beside the parts.
        effort: how much is measured.

    Raises:
        UnsupportedModelError: its blocks are not those of a plain ViT.
        BackendUnavailableError: the runtime or device is not here, or it lacks the precision.
        BackendError: the runtime refuses a part.
    """
    target, precision = device
    backend = get_backend(target.runtime)
    arch = dense.arch
    model = make_long_model(arch, effort.grid)
    batch = form.batch or target.batch
    parts = _make_parts(stages, model, Form(form.opset, batch, form.simplify), GRAPH_OF[precision])
    on = _describe(backend, device, batch)
    key: dict[str, JSON] = {
        "on": asdict(on),
        "parts": parts.name,
        "dense": arch_to_json(arch),  # its weights do not matter
        "budget": asdict(effort.budget),
        "code": code_sha256("backends", "board", "measure/parts", "measure/long_model"),
    }

    def make(folder: Path) -> None:
        times = _time(stages, backend, device, _Parts(parts, model, dense.path, batch), effort.budget)
        (folder / TIMES_FILE).write_text(json.dumps(asdict(times), sort_keys=True), encoding="utf-8")

    folder = stages.run("latency-times", key, make, of=f"{target.name} {precision}")
    times = PartTimes(**json.loads((folder / TIMES_FILE).read_text(encoding="utf-8")))
    timed = [
        TimedPart(name, part_terms(model.arch, blocks), times.median_ms[name], times.mad_ms[name])
        for name, blocks in model.parts.items()
    ]
    table = make_table(on, arch.embed, timed, times.drift)
    return scale_table(table, arch, times.median_ms[_DENSE])


def _make_parts(stages: Stages, model: LongModel, form: Form, precision: Precision) -> Path:
    """Export the long model, in int8 quantised, and cut its parts; its weights are random numbers."""
    key: dict[str, JSON] = {
        "arch": arch_to_json(model.arch),
        "form": asdict(form),
        "precision": precision,
        "versions": library_versions(
            ("onnx", "onnxscript", "onnx-ir", "torch", *(("nncf",) if precision == "int8" else ()))
        ),
        "code": code_sha256("export", "models", "measure/long_model"),
    }

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as whole:
            path = Path(whole) / "fp32.onnx"
            export_onnx(_random_model(model.arch), path, ExportOptions(form.opset, form.batch, form.simplify))
            if precision == "int8":
                path, fp32 = path.with_name("int8.onnx"), path
                quantise(fp32, _noise(model.arch), path, smooth=False)
            cut_parts(path, model.parts, folder)

    return stages.run("latency-parts", key, make, of=precision)


def _random_model(arch: Arch) -> SlimViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SlimViT(arch).eval().requires_grad_(False)


def _noise(arch: Arch) -> list[Batch]:
    drawn = np.random.default_rng(0).standard_normal((_RANGING_IMAGES, 1, *arch.image))
    return list(drawn.astype(np.float32))


def _describe(backend: Backend, device: tuple[Target, Precision], batch: int) -> Device:
    target, precision = device
    machine = read_machine(backend.versions())
    named = {
        "cpu": machine.cpu,
        "cores": machine.cores,
        "affinity": machine.affinity,
        "governor": machine.governor,
        "turbo": machine.turbo,
        "power profile": machine.power_profile,
    }
    return Device(
        runtime=target.runtime,
        versions={"edgevit": __version__, **backend.versions()},
        device=target.device,
        machine={name: str(value) for name, value in named.items() if value is not None},
        threads=target.threads,
        precision=precision,
        batch=batch,
    )


@dataclass(frozen=True)
class _Parts:
    folder: Path
    """With the parts' ONNX files."""
    model: LongModel
    dense: Path
    batch: int

    @property
    def graphs(self) -> dict[str, Path]:
        """Return the graphs that are timed, by name: all parts, and the dense model."""
        return {name: self.folder / f"{name}.onnx" for name in self.model.parts} | {_DENSE: self.dense}


def _time(
    stages: Stages, backend: Backend, device: tuple[Target, Precision], parts: _Parts, budget: TimeBudget
) -> PartTimes:
    """Build all parts, load them side by side and time them."""
    target, precision = device
    label = f"{target.name} {precision}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sessions: dict[str, Session] = {}
        for name, graph in parts.graphs.items():
            entry = backend.build(graph, target, precision, folder / name)
            sessions[name] = stack.enter_context(backend.load(entry, target, precision))
            stages.progress(f"building parts, {label}", len(sessions), len(parts.graphs))
        return time_parts(
            sessions,
            parts.batch,
            budget,
            progress=lambda share: stages.progress(f"timing parts, {label}", round(1000 * share), 1000),
        )
