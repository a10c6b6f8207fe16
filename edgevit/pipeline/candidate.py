"""One candidate, a target in one precision: build dense and slim, compare, score and time those files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from edgevit.board import read_conditions, read_machine
from edgevit.images import Images
from edgevit.measure.accuracy import Logits, predict
from edgevit.measure.protocol import Latency as Times
from edgevit.measure.protocol import Measurement, measure_pair
from edgevit.pipeline.artefacts import Artefact, ArtefactPair, Device, build_pair, compare_with_onnx
from edgevit.pipeline.graphs import SIDES, Form, Graphs, Probe
from edgevit.pipeline.keys import images_key
from edgevit.pipeline.stages import Stages
from edgevit.report.model import Facts, Interval, Latency, Part
from edgevit.target import Precision, Target

LOGITS_FILE = "logits.npy"
TIMES_FILE = "times.json"

_GPU_RUNS = 100
"""Runs whose time on the GPU is taken, where a runtime tells it."""


class PairTimes(Part):
    """Times of both artefacts, as the report shows them."""

    dense: Latency
    slim: Latency
    speedup: float
    interval: Interval
    trusted: bool
    why: str
    device: Facts
    protocol: Facts


@dataclass(frozen=True)
class Candidate:
    """What was found out about one target and precision."""

    target: Target
    precision: Precision
    artefacts: dict[str, Artefact]
    parity: dict[str, float]
    logits: dict[str, Logits]
    """Of the evaluation images, by side; empty without images."""
    times: PairTimes

    def folder(self, side: str) -> str:
        """Return where an artefact's files lie below the build directory; what ships has the short name."""
        below = self.precision if side == "slim" else f"{side}/{self.precision}"
        return f"{self.target.name}/{below}"

    def entry(self, side: str) -> str:
        """Return the file that a runtime loads, relative to the build directory."""
        artefact = self.artefacts[side]
        return f"{self.folder(side)}/{artefact.entry.relative_to(artefact.folder).as_posix()}"


def measure_candidate(
    stages: Stages, device: Device, graphs: Graphs, probe: Probe, evaluation: Images | None
) -> Candidate:
    """Build, compare, score and time one candidate; all on the same two files, in the same two sessions.

    Raises:
        BackendUnavailableError: the device lacks the precision.
        ParityError: an artefact does not compute what its ONNX file does.
    """
    with build_pair(stages, device, graphs) as pair:
        parity: dict[str, float] = {}
        for side in SIDES:
            parity |= compare_with_onnx(pair, side, graphs.by_side[side], probe)
        logits = {} if evaluation is None else {side: score(pair, side, evaluation) for side in SIDES}
        times = _time(pair, graphs.form, probe)
    return Candidate(pair.target, pair.precision, pair.artefacts, parity, logits, times)


def score(pair: ArtefactPair, side: str, images: Images) -> Logits:
    """Return what an artefact answers to each image, [n, classes]."""
    key = pair.key("measure") | {
        "artefact": pair.artefacts[side].sha256,
        "images": images_key(images),
        "batch": pair.target.batch,  # how many are run at once where the artefact leaves it open
    }

    def make(folder: Path) -> None:
        session = pair.session(side)
        task = f"evaluating {side}, {pair.label}"
        batches = images.batches(session.input_shape[0] or pair.target.batch)
        logits = predict(
            session, batches, progress=lambda done: pair.stages.progress(task, done, len(images))
        )
        np.save(folder / LOGITS_FILE, logits)

    folder = pair.stages.run("evaluate", key, make, of=f"{side}, {pair.label}")
    logits: Logits = np.load(folder / LOGITS_FILE, allow_pickle=False)
    return logits


def _time(pair: ArtefactPair, form: Form, probe: Probe) -> PairTimes:
    """Time both artefacts side by side; only a trusted timing is kept for later builds."""
    machine = read_machine(pair.backend.versions())
    key = pair.key("measure", "pipeline/candidate", "report/model") | {
        "artefacts": {side: pair.artefacts[side].sha256 for side in SIDES},
        "batch": _timed_batch(form, pair.target),
        "timing": pair.target.timing.model_dump(),
        # Times belong to the machine that they were taken on, should the build directory move.
        "machine": [machine.cpu, machine.cores, list(machine.affinity or ())],
    }

    def make(folder: Path) -> None:
        times = _measure(pair, form, probe)
        if not times.trusted:
            raise _Untrusted(times)
        (folder / TIMES_FILE).write_text(times.model_dump_json())

    begin = time.perf_counter()
    try:
        folder = pair.stages.run("time", key, make, of=pair.label)
    except _Untrusted as untrusted:
        pair.stages.note(f"time {pair.label}", begin, reused=False)
        return untrusted.times
    return PairTimes.model_validate_json((folder / TIMES_FILE).read_bytes())


class _Untrusted(Exception):
    """Leaves the stage without output: the next build shall measure again."""

    def __init__(self, times: PairTimes) -> None:
        super().__init__(times.why)
        self.times = times


def _timed_batch(form: Form, target: Target) -> int:
    return form.batch or target.batch


def _measure(pair: ArtefactPair, form: Form, probe: Probe) -> PairTimes:
    size = _timed_batch(form, pair.target)
    sample = np.resize(probe.images, (size, *probe.images.shape[1:]))
    dense, slim = pair.session("dense"), pair.session("slim")
    before = read_conditions()
    found = measure_pair(
        dense,
        slim,
        sample,
        pair.target.timing,
        progress=lambda share: pair.stages.progress(f"timing {pair.label}", round(1000 * share), 1000),
    )
    after = read_conditions()
    gpu = gpu_medians({side: pair.session(side).device_ms(_GPU_RUNS) for side in SIDES})
    states = {name: [getattr(before, name), getattr(after, name)] for name in asdict(before)}
    protocol: dict[str, JsonValue] = {"batch": size, "runs_per_burst": found.runs_per_burst, **states, **gpu}
    return _pair_times(found, slim.device(), protocol | {"attempts": found.attempts}, pair.target)


def _pair_times(
    found: Measurement, device: dict[str, str], protocol: dict[str, JsonValue], target: Target
) -> PairTimes:
    assert found.candidate is not None
    assert found.speedup is not None
    return PairTimes(
        dense=report_latency(found.reference),
        slim=report_latency(found.candidate),
        speedup=found.speedup.value,
        interval=(found.speedup.low, found.speedup.high),
        trusted=found.verdict == "trusted",
        why=found.why,
        device=dict(device),
        protocol={**protocol, "timing": target.timing.model_dump(mode="json")},
    )


def gpu_medians(ms: Mapping[str, Sequence[float]]) -> dict[str, JsonValue]:
    """Return the medians of the GPU's own times, in ms by side, as facts of the protocol."""
    return {f"{side}_gpu_ms_median": float(np.median(taken)) for side, taken in ms.items() if taken}


def report_latency(times: Times) -> Latency:
    """Turn measured times into those of the report."""
    return Latency(
        median=times.median,
        interval=(times.low, times.high),
        p90=times.p90,
        p99=times.p99,
        mad=times.mad,
        first=times.first_ms,
        samples=times.samples_ms,
    )
