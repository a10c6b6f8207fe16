"""Let TensorRT's real parsers read DeiT, Swin and CCT in fp32, fp16 and int8, and TensorRT-RTX build them.

    python tools/tensorrt/fetch.py
    python tools/bench/tensorrt_parsers.py

No GPU is needed. Random weights, and noise in place of calibration images: neither parsers nor sizes depend
on them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import record
from record import Bound, Figure, Notebook, Row
from subjects import TOLD, Cut, cut_model, use_threads

from edgevit.backends.preflight import ask_parser, ask_process
from edgevit.engine import ENGINE, BuildOptions
from edgevit.export.half import to_half
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.precision import quantise
from edgevit.models.load import ModelSource, load_model
from edgevit.plan import Counts
from edgevit.slim import SlimOptions
from edgevit.target import Precision

FETCH = Path(__file__).resolve().parents[1] / "tensorrt"
CACHE = Path(os.environ.get("EDGEVIT_TENSORRT") or Path.home() / ".cache" / "edgevit" / "tensorrt")
PARSERS = {"10.15": "tensorrt", "11.2": "tensorrt", "rtx-1.7": "tensorrt-rtx"}
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
_IMAGES = 2
CARDS = ("8.6", "8.9", "12.0")

_HEAD = (("num_classes", 1000),)
DENSE = Cut("dense", Counts())
SLIM = Cut("QK 32, VO 48, hidden 384", Counts(qk_dim=32, vo_dim=48, hidden=384), dead_tokens=True)
MERGED = Cut(
    "the same, 80 tokens merged", Counts(qk_dim=32, vo_dim=48, hidden=384, tokens=[197] * 3 + [117] * 9)
)


@dataclass(frozen=True)
class Subject:
    """A model in one form."""

    name: str
    timm_name: str
    cut: Cut
    opset: int = 18
    batch: int | None = 1
    options: tuple[tuple[str, int], ...] = ()
    """For timm: a classifier where there is none, and another image size."""


SUBJECTS = (
    Subject("DeiT-T", "deit_tiny_patch16_224", DENSE),
    Subject("DeiT-T, opset 13", "deit_tiny_patch16_224", DENSE, opset=13),
    Subject("DeiT-T, dynamic batch", "deit_tiny_patch16_224", DENSE, batch=None),
    Subject("DeiT-T slim", "deit_tiny_patch16_224", SLIM),
    Subject("DeiT-T slim and merged", "deit_tiny_patch16_224", MERGED),
    Subject("DeiT-T slim and merged, opset 13", "deit_tiny_patch16_224", MERGED, opset=13),
    Subject("DeiT-T distilled", "deit_tiny_distilled_patch16_224", DENSE),
    Subject("DeiT-S", "deit_small_patch16_224", DENSE),
    Subject("Swin-T", "swin_tiny_patch4_window7_224", DENSE),
    Subject("CCT-7/3x1 at 32", "cct_7_3x1", DENSE),
    Subject("DINOv2-S at 224", "vit_small_patch14_dinov2", DENSE, options=(*_HEAD, ("img_size", 224))),
    Subject("DINOv3-S", "vit_small_patch16_dinov3", DENSE, options=_HEAD),
)


def measure(subject: Subject, precisions: Sequence[Precision], folder: Path) -> Iterator[Row]:
    """Export one model in each precision, show it to every parser, and build it for three kinds of cards."""
    dense = load_model(ModelSource(subject.timm_name, options=dict(subject.options))).model
    model = dense if subject.cut is DENSE else cut_model(dense, subject.cut, SlimOptions("none"), None)
    fp32 = folder / "fp32.onnx"
    export_onnx(model, fp32, ExportOptions(opset=subject.opset, batch=subject.batch))
    shape = (_IMAGES, 1, *model.arch.image)
    images = list(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    for precision in precisions:
        path = folder / f"{precision}.onnx"
        if precision == "fp16":
            to_half(fp32, images, path)
        elif precision == "int8":
            quantise(fp32, images, path, smooth=False)
        name = subject.name if precision == "fp32" else f"{subject.name}, {precision}"
        yield Row(name, show(path, precision, folder))


def show(path: Path, precision: Precision, folder: Path) -> dict[str, Figure | str]:
    """Show one graph to every parser and build it; return the cells of its row."""
    cells: dict[str, Figure | str] = {}
    refused = 0
    for version, runtime in PARSERS.items():
        found = ask_parser(path, [runtime], _env(version))
        cells[f"parser of {version}"] = (
            found.why if found.outcome == "accepted" else f"{found.outcome}: {found.why}"
        )
        refused += found.outcome != "accepted"
    options = BuildOptions(precision=precision, compute_capabilities=CARDS, batches=(1, 1, 32))
    begin = time.perf_counter()
    arguments = ["build", "tensorrt-rtx", str(path), json.dumps(asdict(options)), str(folder)]
    answer = ask_process(arguments, _env("rtx-1.7"))
    cells["seconds to build"] = f"{time.perf_counter() - begin:.1f}"
    built = answer["answer"] == "built"
    cells["MB of engine"] = f"{(folder / ENGINE).stat().st_size / 1e6:.1f}" if built else str(answer["words"])
    cells["MB of ONNX"] = f"{path.stat().st_size / 1e6:.1f}"
    cells["refused"] = Figure(refused + (not built), "d", None, Bound(0, 0))
    return cells


def _env(version: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(CACHE / version), os.environ.get("PYTHONPATH", "")]),
    }


def main() -> None:
    """Show every subject to every parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", nargs="*", metavar="NAME", help="of the rows; default: all")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    record.add_options(parser)
    arguments = parser.parse_args()
    known = tomllib.loads((FETCH / "versions.toml").read_text())
    missing = [version for version in PARSERS if version not in known or not (CACHE / version).is_dir()]
    if missing:
        raise SystemExit(f"TensorRT {', '.join(missing)} not here: python tools/tensorrt/fetch.py")
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    wanted = [one for one in SUBJECTS if not arguments.names or one.name in arguments.names]
    for subject in wanted[:1] if arguments.quick else wanted:
        TOLD.say(subject.name)
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(subject, arguments.precisions, Path(folder)):
                notebook.write("tensorrt-parsers", [row])


if __name__ == "__main__":
    main()
