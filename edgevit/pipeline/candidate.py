"""One candidate, a target in one precision: build dense and slim, compare, score and time those files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from edgevit.backends import Backend, Session, get_backend
from edgevit.disk import files_below, sha256_tree
from edgevit.export.links import onnx_link
from edgevit.export.parity import ONNX_TO_ARTEFACT, Limits, Link, check_parity, limits_for
from edgevit.images import Images
from edgevit.measure.accuracy import Logits, predict
from edgevit.measure.environment import read_conditions, read_machine
from edgevit.measure.protocol import Latency as Times
from edgevit.measure.protocol import Measurement, measure_pair
from edgevit.pipeline.graphs import PARITY_FILE, SIDES, Form, Graph, Graphs, Probe, parity_facts, remembered
from edgevit.pipeline.keys import code_sha256, images_key
from edgevit.pipeline.stages import Workshop
from edgevit.report.model import Facts, Interval, Latency, Part
from edgevit.store import JSON
from edgevit.target import Precision, Target

LOGITS_FILE = "logits.npy"
TIMING_FILE = "timing.json"

Device = tuple[Target, Precision]

# Largest difference of logits between ONNX and artefact, as a share of the largest logit (at least 1).
# fp32: another order of sums. bf16 keeps 8 bits of each factor, errors add up over the blocks, and where
# tokens are merged many choices turn; what that costs is measured as accuracy.
_TOLERANCE: dict[Precision, float] = {"fp32": ONNX_TO_ARTEFACT, "bf16": 0.15}
_BF16_MERGED_OUTLIERS = 0.5


class Timing(Part):
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
class Artefact:
    """A built artefact."""

    folder: Path
    entry: Path
    """The file to load."""
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Candidate:
    """What was found out about one target and precision."""

    target: Target
    precision: Precision
    artefacts: dict[str, Artefact]
    parity: dict[str, float]
    logits: dict[str, Logits]
    """Of the evaluation images, by side; empty without images."""
    timing: Timing


@dataclass(frozen=True)
class Bench:
    """The workplace of one candidate: its backend and the sessions, each loaded once, when first needed."""

    shop: Workshop
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
            "code": code_sha256("backends", *rooms),
        }


def try_candidate(
    shop: Workshop, device: Device, graphs: Graphs, probe: Probe, evaluation: Images | None
) -> Candidate:
    """Build, compare, score and time one candidate; all on the same two files, in the same two sessions.

    Raises:
        BackendUnavailableError: the device lacks the precision.
        ParityError: an artefact does not compute what its ONNX file does.
    """
    with _bench(shop, device, graphs) as bench:
        parity: dict[str, float] = {}
        for side in SIDES:
            parity |= _compare(bench, side, graphs.by_side[side], probe)
        logits = {side: _score(bench, side, evaluation) for side in SIDES} if evaluation is not None else {}
        timing = _time(bench, graphs.form, probe)
    return Candidate(bench.target, bench.precision, bench.artefacts, parity, logits, timing)


@contextmanager
def _bench(shop: Workshop, device: Device, graphs: Graphs) -> Iterator[Bench]:
    target, precision = device
    backend = get_backend(target.runtime)
    artefacts = {side: _build(shop, backend, device, side, graphs.by_side[side]) for side in SIDES}
    loaded: dict[str, Session] = {}
    with ExitStack() as stack:

        def session(side: str) -> Session:
            if side not in loaded:
                loaded[side] = stack.enter_context(backend.load(artefacts[side].entry, target, precision))
            return loaded[side]

        yield Bench(shop, backend, target, precision, artefacts, session)


def _build(shop: Workshop, backend: Backend, device: Device, side: str, graph: Graph) -> Artefact:
    target, precision = device
    key: dict[str, JSON] = {
        "onnx": graph.sha256,
        "runtime": target.runtime,
        "device": target.device,
        "precision": precision,
        "versions": backend.versions(),
        "code": code_sha256("backends"),
    }

    def make(folder: Path) -> None:
        entry = backend.build(graph.path, target, precision, folder / "artefact")
        (folder / "entry.txt").write_text(entry.relative_to(folder).as_posix())

    folder = shop.run(f"build-{target.runtime}", key, make, of=f"{side}, {target.name} {precision}")
    files = files_below(folder / "artefact")
    return Artefact(
        folder=folder / "artefact",
        entry=folder / (folder / "entry.txt").read_text(),
        sha256=sha256_tree(folder / "artefact"),
        bytes=sum(path.stat().st_size for path in files),
    )


def _compare(bench: Bench, side: str, graph: Graph, probe: Probe) -> dict[str, float]:
    """Compare an artefact with its ONNX file on the same images."""
    key = bench.key("export", "pipeline") | {
        "onnx": graph.sha256,
        "artefact": bench.artefacts[side].sha256,
        "images": probe.key,
    }

    def make(folder: Path) -> None:
        session = bench.session(side)
        batches = probe.batches(session.input_shape[0])
        onnx = remembered(onnx_link(graph.path), batches)
        largest = max(float(np.abs(onnx.run(batch)).max()) for batch in batches)
        limits = limits_for(graph.arch, _TOLERANCE[bench.precision] * max(1.0, largest))
        if bench.precision != "fp32" and limits.outliers:
            limits = Limits(limits.max_abs, _BF16_MERGED_OUTLIERS)
        artefact = Link(f"{side} artefact ({bench.label})", session.run)
        found = check_parity(onnx, artefact, batches, limits, graph.arch)
        (folder / PARITY_FILE).write_text(
            json.dumps(parity_facts(f"{side}_onnx_artefact", found, limits.max_abs))
        )

    folder = bench.shop.run("compare", key, make, of=f"{side}, {bench.label}")
    facts: dict[str, float] = json.loads((folder / PARITY_FILE).read_text())
    return facts


def _score(bench: Bench, side: str, images: Images) -> Logits:
    key = bench.key("measure") | {"artefact": bench.artefacts[side].sha256, "images": images_key(images)}

    def make(folder: Path) -> None:
        session = bench.session(side)
        task = f"evaluating {side}, {bench.label}"
        batches = images.batches(session.input_shape[0] or bench.target.batch)
        logits = predict(session, batches, progress=lambda done: bench.shop.progress(task, done, len(images)))
        np.save(folder / LOGITS_FILE, logits)

    folder = bench.shop.run("evaluate", key, make, of=f"{side}, {bench.label}")
    logits: Logits = np.load(folder / LOGITS_FILE, allow_pickle=False)
    return logits


def _time(bench: Bench, form: Form, probe: Probe) -> Timing:
    """Time both artefacts side by side; only a trusted timing is kept for later builds."""
    machine = read_machine(bench.backend.versions())
    key = bench.key("measure") | {
        "artefacts": {side: bench.artefacts[side].sha256 for side in SIDES},
        "batch": _timed_batch(form, bench.target),
        "timing": bench.target.timing.model_dump(),
        # Times belong to the machine that they were taken on, should the build directory move.
        "machine": [machine.cpu, machine.cores, list(machine.affinity or ())],
    }

    def make(folder: Path) -> None:
        timing = _measure(bench, form, probe)
        if not timing.trusted:
            raise _Untrusted(timing)
        (folder / TIMING_FILE).write_text(timing.model_dump_json())

    begin = time.perf_counter()
    try:
        folder = bench.shop.run("time", key, make, of=bench.label)
    except _Untrusted as untrusted:
        bench.shop.note(f"time {bench.label}", begin, reused=False)
        return untrusted.timing
    return Timing.model_validate_json((folder / TIMING_FILE).read_bytes())


class _Untrusted(Exception):
    """Leaves the stage without output: the next build shall measure again."""

    def __init__(self, timing: Timing) -> None:
        super().__init__(timing.why)
        self.timing = timing


def _timed_batch(form: Form, target: Target) -> int:
    return form.batch or target.batch


def _measure(bench: Bench, form: Form, probe: Probe) -> Timing:
    size = _timed_batch(form, bench.target)
    sample = np.resize(probe.images, (size, *probe.images.shape[1:]))
    dense, slim = bench.session("dense"), bench.session("slim")
    before = read_conditions()
    found = measure_pair(
        dense,
        slim,
        sample,
        bench.target.timing,
        progress=lambda share: bench.shop.progress(f"timing {bench.label}", round(1000 * share), 1000),
    )
    after = read_conditions()
    states = {name: [getattr(before, name), getattr(after, name)] for name in asdict(before)}
    return _timing(
        found, slim.device(), {"batch": size, "runs_per_burst": found.runs_per_burst, **states}, bench.target
    )


def _timing(
    found: Measurement, device: dict[str, str], protocol: dict[str, JsonValue], target: Target
) -> Timing:
    assert found.candidate is not None
    assert found.speedup is not None
    return Timing(
        dense=report_latency(found.reference),
        slim=report_latency(found.candidate),
        speedup=found.speedup.value,
        interval=(found.speedup.low, found.speedup.high),
        trusted=found.verdict == "trusted",
        why=found.why,
        device=dict(device),
        protocol={**protocol, "timing": target.timing.model_dump(mode="json")},
    )


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
