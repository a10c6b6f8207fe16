"""The latency table of a target in one precision: measured once for a machine, runtime version and model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edgevit.backends import Backend, Session, get_backend
from edgevit.board import read_machine
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.parity import Batch
from edgevit.export.parts import cut_parts
from edgevit.export.precision import quantise
from edgevit.measure.long_model import GRID, Grid, LongModel, make_long_model
from edgevit.measure.parts import PartTimes, parts_budget, time_parts
from edgevit.measure.table import (
    LatencyTable,
    TableDevice,
    TimedPart,
    make_table,
    part_terms,
    scale_table,
)
from edgevit.models.arch import Arch, arch_to_json
from edgevit.models.layers import SlimViT
from edgevit.pipeline.artefacts import Device
from edgevit.pipeline.graphs import Form, Graph
from edgevit.pipeline.keys import code_sha256, library_versions
from edgevit.pipeline.precision import GRAPH_OF
from edgevit.pipeline.stages import Stages
from edgevit.store import JSON
from edgevit.target import Precision, Target
from edgevit.version import __version__

_FILE = "times.json"
_DENSE = "dense"
_RANGING_IMAGES = 2
"""Images of noise by which the long model is quantised: times do not depend on the ranges."""


def measure_table(
    stages: Stages, device: Device, form: Form, dense: Graph, grid: Grid = GRID
) -> LatencyTable:
    """Measure how long blocks take, or take the times that are there.

    Args:
        stages: runs the stages.
        device: the target, and the precision that is computed in.
        form: of the graphs; a dynamic batch is timed at the target's.
        dense: the dense model's graph in this precision, which is timed whole beside the parts.
        grid: which dims are timed.

    Raises:
        UnsupportedModelError: its blocks are not those of a plain ViT.
        BackendUnavailableError: the runtime or device is not here, or it lacks the precision.
        BackendError: the runtime refuses a part.
        MeasurementError: the times tell nothing of blocks.
    """
    arch, bench = dense.arch, _Bench.of(stages, device, form)
    model = make_long_model(arch, grid)
    parts = _make_parts(stages, model, replace(form, batch=bench.on.batch), GRAPH_OF[bench.on.precision])
    key: dict[str, JSON] = {
        "parts": parts.name,
        "dense": arch_to_json(arch),  # its weights do not matter
        "code": code_sha256("measure/long_model"),
    }

    def graphs(folder: Path) -> dict[str, Path]:
        return {name: parts / f"{name}.onnx" for name in model.parts} | {_DENSE: dense.path}

    times = bench.time("latency-times", key, graphs)
    timed = [_timed_part(model.arch, name, blocks, times) for name, blocks in model.parts.items()]
    table = make_table(bench.on, arch.embed, timed, times.drift)
    return scale_table(table, arch, times.median_ms[_DENSE])


def measure_blocks(
    stages: Stages, device: Device, form: Form, graph: Graph, table: LatencyTable
) -> tuple[float, ...]:
    """Measure the blocks of a model one by one, to be compared with what a table predicts of them.

    Args:
        stages: runs the stage.
        device: the target, and the precision that is computed in.
        form: of the graph.
        graph: of the model, in this precision.
        table: of this device; what a block takes as a graph of its own is subtracted by it.

    Returns:
        Milliseconds of each block.
    """
    arch, bench = graph.arch, _Bench.of(stages, device, form)
    blocks = {f"blocks.{index}": range(index, index + 1) for index in range(len(arch.blocks))}
    key: dict[str, JSON] = {
        "onnx": graph.sha256,
        "code": code_sha256("export/parts"),
    }
    times = bench.time("latency-blocks", key, lambda folder: cut_parts(graph.path, blocks, folder))
    timed = [_timed_part(arch, name, part, times) for name, part in blocks.items()]
    return tuple(table.blocks_of_part_ms(part) for part in timed)


def _timed_part(arch: Arch, name: str, blocks: range, times: PartTimes) -> TimedPart:
    return TimedPart(name, part_terms(arch, blocks), times.median_ms[name], times.mad_ms[name])


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


def _describe(backend: Backend, device: Device, batch: int) -> TableDevice:
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
    return TableDevice(
        runtime=target.runtime,
        versions={"edgevit": __version__, **backend.versions()},
        device=target.device,
        machine={name: str(value) for name, value in named.items() if value is not None},
        threads=target.threads,
        precision=precision,
        batch=batch,
    )


@dataclass(frozen=True)
class _Bench:
    """A device on which graphs are timed side by side."""

    stages: Stages
    backend: Backend
    target: Target
    on: TableDevice

    @classmethod
    def of(cls, stages: Stages, device: Device, form: Form) -> _Bench:
        target = device[0]
        backend = get_backend(target.runtime)
        return cls(stages, backend, target, _describe(backend, device, form.batch or target.batch))

    def time(
        self,
        stage: str,
        key: Mapping[str, JSON],
        graphs: Callable[[Path], Mapping[str, Path]],
    ) -> PartTimes:
        """Build, load and time graphs as a stage; `graphs` names them, and may write them into a folder."""
        store = self.stages.store
        whole = {
            **key,
            "on": asdict(self.on),
            "timing": asdict(parts_budget(self.target.timing)),
            "code of bench": code_sha256("backends", "board", "measure/parts"),
        }

        def make(folder: Path) -> None:
            with tempfile.TemporaryDirectory() as written:
                times = self._time(graphs(Path(written)))
            found = {"on": asdict(self.on), "times": asdict(times)}
            (folder / _FILE).write_text(json.dumps(found, sort_keys=True), encoding="utf-8")

        again = "" if store.stage_path(stage, whole).exists() else self._why_again(stage)
        folder = self.stages.run(stage, whole, make, of=self._label + again)
        return PartTimes(**json.loads((folder / _FILE).read_text(encoding="utf-8"))["times"])

    def _why_again(self, stage: str) -> str:
        """Say which version changed, where times of this device in other versions are there."""
        for folder in self.stages.store.outputs(stage):
            before = TableDevice(**json.loads((folder / _FILE).read_text(encoding="utf-8"))["on"])
            if before != self.on and replace(before, versions=self.on.versions) == self.on:
                versions = self.on.versions.items()
                changed = [
                    f"{name} was {before.versions.get(name)}, is {now}"
                    for name, now in versions
                    if before.versions.get(name) != now
                ]
                return f", measured again as {'; '.join(changed)}"
        return ""

    @property
    def _label(self) -> str:
        return f"{self.target.name} {self.on.precision}"

    def _time(self, graphs: Mapping[str, Path]) -> PartTimes:
        progress, precision = self.stages.progress, self.on.precision
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sessions: dict[str, Session] = {}
            for name, graph in graphs.items():
                entry = self.backend.build(graph, self.target, precision, folder / name)
                sessions[name] = stack.enter_context(self.backend.load(entry, self.target, precision))
                progress(f"building parts, {self._label}", len(sessions), len(graphs))
            return time_parts(
                sessions,
                self.on.batch,
                parts_budget(self.target.timing),
                progress=lambda share: progress(f"timing parts, {self._label}", round(1000 * share), 1000),
            )
