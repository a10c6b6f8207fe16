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
from edgevit.measure.long_model import TIMED_SHARES, TimedShares, make_long_model, make_whole_models
from edgevit.measure.parts import PartTimes, parts_budget, time_parts, until_steady
from edgevit.measure.table import (
    LatencyTable,
    TableDevice,
    TimedModel,
    TimedPart,
    fit_whole,
    make_table,
    part_terms,
)
from edgevit.models.arch import Arch, arch_to_json
from edgevit.models.layers import SlimViT
from edgevit.pipeline.artefacts import Device
from edgevit.pipeline.graphs import Form, Graph
from edgevit.pipeline.keys import code_sha256, library_versions, value_sha256
from edgevit.pipeline.precision import GRAPH_OF
from edgevit.pipeline.stages import Stages
from edgevit.store import JSON
from edgevit.target import Precision, Target
from edgevit.version import __version__

_FILE = "times.json"
_DENSE = "dense"
_OF_VERSIONS = ("code", "versions", "quantised")
"""Of what is timed: what may change with a version of edgevit or a library."""
_RANGING_IMAGES = 2
"""Images of noise by which what is timed is quantised: times do not depend on the ranges."""


def measure_table(
    stages: Stages, device: Device, form: Form, dense: Graph, shares: TimedShares = TIMED_SHARES
) -> LatencyTable:
    """Measure how long blocks take, or take the times that are there.

    Args:
        stages: runs the stages.
        device: the target, and the precision that is computed in.
        form: of the graphs; a dynamic batch is timed at the target's.
        dense: the dense model's graph in this precision, which is timed whole beside the parts.
        shares: which dims are timed.

    Raises:
        UnsupportedModelError: its blocks are not those of a plain ViT.
        BackendUnavailableError: the runtime or device is not here, or it lacks the precision.
        BackendError: the runtime refuses a part.
        MeasurementError: the times tell nothing of blocks.
    """
    arch, bench = dense.arch, _Bench.of(stages, device, form)
    long, whole = make_long_model(arch, shares), make_whole_models(arch, shares)
    form, precision = replace(form, batch=bench.on.batch), GRAPH_OF[bench.on.precision]
    key: dict[str, JSON] = {
        "dense": arch_to_json(arch),  # its weights do not matter, but which layers are in float
        "quantised": dense.sha256 if precision == "int8" else None,
        "long": arch_to_json(long.arch),
        "whole": {name: arch_to_json(model) for name, model in whole.items()},
        "form": asdict(form),
        "versions": library_versions(
            ("onnx", "onnxscript", "onnx-ir", "torch", *(("nncf",) if precision == "int8" else ()))
        ),
        "code": code_sha256("export", "models", "measure/long_model"),
    }

    def graphs(folder: Path) -> dict[str, Path]:
        stages.progress("exporting models to be timed", 0, len(whole) + 1)
        found = {_DENSE: dense.path}
        for done, (name, model) in enumerate(whole.items(), start=1):
            found[name] = _write_random(model, form, precision, folder / f"whole{done}")
            stages.progress("exporting models to be timed", done, len(whole) + 1)
        path = _write_random(long.arch, form, precision, folder / "long")
        return found | cut_parts(path, long.parts, folder)

    times = bench.time("latency-times", key, graphs)
    timed = [_timed_part(long.arch, name, blocks, times) for name, blocks in long.parts.items()]
    table = make_table(bench.on, timed, times.drift)
    models = [TimedModel(name, model, times.median_ms[name]) for name, model in whole.items()]
    return fit_whole(table, TimedModel(_DENSE, arch, times.median_ms[_DENSE]), models)


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
    return TimedPart(name, part_terms(arch, blocks), times.median_ms[name])


def _write_random(arch: Arch, form: Form, precision: Precision, folder: Path) -> Path:
    """Export a model of random numbers, in int8 quantised."""
    folder.mkdir()
    path = folder / "fp32.onnx"
    export_onnx(_random_model(arch), path, ExportOptions(form.opset, form.batch, form.simplify))
    if precision != "int8":
        return path
    quantise(path, _noise(arch), folder / "int8.onnx", smooth=False)
    path.unlink()
    return folder / "int8.onnx"


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
            "steady": [self.target.timing.attempts, self.target.timing.max_interval_ratio],
            "code of timing": code_sha256("backends", "board", "measure/parts"),
        }
        same = {name: value for name, value in key.items() if name not in _OF_VERSIONS}
        what = value_sha256(same)

        def make(folder: Path) -> None:
            with tempfile.TemporaryDirectory() as written:
                times = self._time(graphs(Path(written)))
            found = {"of": what, "on": asdict(self.on), "times": asdict(times)}
            (folder / _FILE).write_text(json.dumps(found, sort_keys=True), encoding="utf-8")

        there = store.stage_path(stage, whole).name in {folder.name for folder in store.outputs(stage)}
        again = "" if there else self._why_again(stage, what)
        folder = self.stages.run(stage, whole, make, of=self._label + again, shared=True)
        return PartTimes(**json.loads((folder / _FILE).read_text(encoding="utf-8"))["times"])

    def _why_again(self, stage: str, what: str) -> str:
        """Say which version changed, where times of the same on this device in other versions are there."""
        for folder in self.stages.store.outputs(stage):
            try:
                kept = json.loads((folder / _FILE).read_text(encoding="utf-8"))
                before, of = TableDevice(**kept["on"]), kept["of"]
            except (FileNotFoundError, KeyError, TypeError, ValueError):
                continue  # a build beside this one has just removed it, or is of another edgevit
            here = replace(before, versions=self.on.versions) == self.on
            changed = [
                f"{name} was {before.versions.get(name)}, is {now}"
                for name, now in self.on.versions.items()
                if before.versions.get(name) != now
            ]
            if of == what and here and changed:
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

            def once() -> PartTimes:
                return time_parts(
                    sessions,
                    self.on.batch,
                    parts_budget(self.target.timing),
                    progress=lambda share: progress(
                        f"timing parts, {self._label}", round(1000 * share), 1000
                    ),
                )

            return until_steady(once, self.target.timing)
