"""Time DeiT-Small in every precision of OpenVINO, dense and slim, against its dense fp32: which is fastest?

    python tools/bench/fastest.py --seconds 20     # alone on the machine

Random weights, and noise in place of calibration images: times depend on neither. Batch 1, edgevit's timing
protocol; every candidate is timed side by side with dense fp32 and takes `--seconds` of samples.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import record
from precision import int8_precisions
from record import Bound, Figure, Notebook, Row
from speed import SMALL, Bench, Pair, load_dense, time_pair, timing_of
from subjects import TOLD, Cut, cpu_target, cut_model, use_threads

from edgevit.backends import get_backend
from edgevit.board import read_machine
from edgevit.cost import model_cost
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.precision import quantise
from edgevit.models.layers import SlimViT
from edgevit.pipeline.precision import GRAPH_OF
from edgevit.plan import Counts
from edgevit.slim import SlimOptions
from edgevit.target import Precision

_IMAGES = 8


@dataclass(frozen=True)
class Subject:
    """DeiT-S dense or cut, and how much faster than dense fp32 its fastest candidate is to be."""

    name: str
    cut: Cut | None
    wanted: float
    wanted_with_amx: float


SUBJECTS = {
    "dense": Subject("DeiT-S dense", None, 2.1, 3.7),
    "dims": Subject(
        "DeiT-S, QK 32, VO 48, hidden 832",
        Cut("dims", Counts(qk_dim=32, vo_dim=48, hidden=832), dead_tokens=True), 3.2, 5.0,
    ),
    "heads": Subject(
        "DeiT-S, 3 of 6 heads, hidden 960",
        Cut("heads", Counts(heads=3, hidden=960), dead_tokens=True), 3.2, 5.0,
    ),
}  # fmt: skip
"""Both cuts have 46 % fewer MACs."""


def candidates() -> tuple[Precision, ...]:
    """Return the precisions that this machine runs."""
    int8 = int8_precisions("openvino")
    return ("fp32", "bf16", *int8) if "int8-bf16" in int8 else ("fp32", *int8)


def graphs_of(model: SlimViT, folder: Path) -> dict[Precision, Path]:
    """Write a model's graphs in fp32 and int8."""
    graphs: dict[Precision, Path] = {"fp32": folder / "fp32.onnx", "int8": folder / "int8.onnx"}
    folder.mkdir()
    export_onnx(model, graphs["fp32"], ExportOptions(batch=1))
    shape = (_IMAGES, 1, *model.arch.image)
    images = list(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    quantise(graphs["fp32"], images, graphs["int8"], smooth=False)
    return graphs


def time_subject(bench: Bench, key: str, reference: Path) -> Iterator[Row]:
    """Time all candidates of a model; yield a row for each, and the fastest again beside its bound."""
    subject, dense = SUBJECTS[key], load_dense(SMALL)
    model = dense if subject.cut is None else cut_model(dense, subject.cut, SlimOptions("none"), None)
    share = model_cost(model.arch).total.macs / model_cost(dense.arch).total.macs
    graphs = graphs_of(model, bench.folder / key)
    backend, found = get_backend(bench.target.runtime), dict[Precision, Pair]()
    for precision in candidates():
        if subject.cut is None and precision == "fp32":
            continue
        TOLD.say(f"{subject.name}, {precision}")
        folder = bench.folder / key / precision
        artefact = backend.build(graphs[GRAPH_OF[precision]], bench.target, precision, folder)
        found[precision] = time_pair(bench, reference, artefact, dense.arch.image, ("fp32", precision))
        yield Row(f"{subject.name}, {precision}: {bench.title}", cells(found[precision], share, None))
    fastest = max(found, key=lambda precision: found[precision].speedup().value)
    amx = "amx_tile" in read_machine({}).flags
    bound = Bound(low=subject.wanted_with_amx if amx else subject.wanted)
    row = {"candidate": fastest, **cells(found[fastest], share, bound)}
    yield Row(f"{subject.name}, the fastest: {bench.title}", row)


def cells(pair: Pair, share: float, bound: Bound | None) -> dict[str, Figure | str]:
    """Return what a pair gave."""
    return {"MACs of dense": f"{share:.3f}", "faster by": pair.speedup(bound), **pair.times()}


def main() -> None:
    """Time what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--seconds", type=float, default=20.0, help="of samples for each pair")
    record.add_options(parser)
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = Bench(
            cpu_target("openvino", arguments.threads),
            timing_of(arguments.seconds, quick=arguments.quick),
            folder,
        )
        export_onnx(load_dense(SMALL), folder / "dense.onnx", ExportOptions(batch=1))
        backend = get_backend("openvino")
        reference = backend.build(folder / "dense.onnx", bench.target, "fp32", folder / "reference")
        for key in arguments.subjects:
            for row in time_subject(bench, key, reference):
                notebook.write("fastest", [row])


if __name__ == "__main__":
    main()
