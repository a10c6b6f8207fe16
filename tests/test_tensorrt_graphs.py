"""Every kind of graph in every precision: TensorRT's real parsers take it, and TensorRT-RTX builds it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from real_tensorrt import env_of
from test_export_onnx import ARCHS, make
from toy_choosers import chooser
from toy_dinos import toy_dino
from toy_streams import some_channels
from toy_vits import toy_model

from edgevit.backends.preflight import ask_parser, ask_process
from edgevit.engine import ENGINE, BuildOptions
from edgevit.export.half import to_half
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.parity import Batch
from edgevit.export.precision import quantise
from edgevit.models.anatomy import read_anatomy
from edgevit.models.layers import SlimViT
from edgevit.models.load import ModelSource, load_model
from edgevit.plan import Counts, plan_from_counts
from edgevit.progress import silent
from edgevit.slim import SlimOptions, slim_model
from edgevit.slim.channels import cut_channels
from edgevit.target import Precision

pytestmark = pytest.mark.tensorrt

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
FORMS = {
    "fp32": [(18, 1)],  # test_backends_preflight.py shows the parsers the others
    "fp16": [(18, 1), (18, None), (13, 1)],
    "int8": [(18, 1), (18, None), (13, 1)],
}
QUICK = {
    ("merged", "fp32", 18, 1),
    ("dense", "fp16", 18, 1),
    ("merged", "fp16", 18, None),
    ("swin", "fp16", 18, 1),
    ("chosen", "fp16", 13, 1),
    ("cct", "fp16", 18, 1),
    ("chooser", "fp16", 18, None),
    ("merged", "int8", 18, None),
    ("swin", "int8", 18, 1),
}
"""What covers the operators and types; all others with --slow."""


def narrow() -> SlimViT:
    """Return a model of which channels of the stream were cut, so that its norms are single operators."""
    model = toy_model()
    return cut_channels(model, some_channels(model))


OTHERS: dict[str, Callable[[], SlimViT]] = {"rotary": toy_dino, "narrow": narrow, "chooser": chooser}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in (
        (name, precision, opset, batch)
        for precision in PRECISIONS
        for opset, batch in FORMS[precision]
        for name in (*ARCHS, *OTHERS)
    )
]


def noise(path: Path, count: int) -> list[Batch]:
    """Return images as a graph takes them, one an array."""
    sizes = [size.dim_value for size in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    return list(np.random.default_rng(0).standard_normal((count, 1, *sizes[1:])).astype(np.float32))


def in_precision(fp32: Path, precision: Precision) -> Path:
    """Return the graph in another precision, beside the one in fp32."""
    out = fp32.with_name(f"{precision}.onnx")
    if precision == "fp16":
        to_half(fp32, noise(fp32, 2), out)
    elif precision == "int8":
        quantise(fp32, noise(fp32, 2), out, smooth=False)
    return fp32 if precision == "fp32" else out


def require_accepted(path: Path) -> None:
    for version in ("10.15", "11.2"):
        found = ask_parser(path, ["tensorrt"], env_of(version))
        assert found.outcome == "accepted", f"{version}: {found.why}"


def engine_bytes(path: Path, precision: Precision) -> int:
    """Build a graph, which parses it first, and return the engine's size."""
    options = BuildOptions(precision=precision, compute_capabilities=("8.6",), batches=(1, 1, 4))
    arguments = ["build", "tensorrt-rtx", str(path), json.dumps(asdict(options)), str(path.parent)]
    answer = ask_process(arguments, env_of("rtx-1.7"))
    assert answer["answer"] == "built", answer
    return (path.parent / ENGINE).stat().st_size


@pytest.mark.parametrize(("name", "precision", "opset", "batch"), CASES)
def test_every_graph_in_every_precision_is_accepted_and_built(
    tmp_path: Path, name: str, precision: Precision, opset: int, batch: int | None
) -> None:
    model = OTHERS[name]() if name in OTHERS else make(ARCHS[name])
    export_onnx(model, tmp_path / "fp32.onnx", ExportOptions(opset=opset, batch=batch))
    path = in_precision(tmp_path / "fp32.onnx", precision)
    require_accepted(path)
    assert engine_bytes(path, precision) > 10_000


CUTS = {
    "dense": Counts(),
    "slim": Counts(qk_dim=32, vo_dim=48, hidden=384),
    "merged": Counts(qk_dim=32, vo_dim=48, hidden=384, tokens=[197] * 3 + [117] * 9),
}


@pytest.mark.slow
def test_deit_tiny_is_accepted_by_all_and_its_engine_shrinks_with_it(tmp_path: Path) -> None:
    dense = load_model(ModelSource("deit_tiny_patch16_224")).model
    sizes: dict[tuple[str, str], int] = {}
    for name, counts in CUTS.items():
        plan = plan_from_counts(read_anatomy(dense.arch), counts, dead_tokens=name != "dense")
        folder = tmp_path / name
        folder.mkdir()
        slim = slim_model(dense, plan, SlimOptions("none"), None, silent)
        export_onnx(slim, folder / "fp32.onnx", ExportOptions())
        for precision in PRECISIONS:
            path = in_precision(folder / "fp32.onnx", precision)
            require_accepted(path)
            sizes[name, precision] = engine_bytes(path, precision)
    # Some 5 MB less of weights in fp16, 2.5 in int8; beside them stand kernels, of which merging takes more.
    for precision, most in {"fp32": 0.8, "fp16": 0.95, "int8": 0.95}.items():
        assert sizes["slim", precision] < most * sizes["dense", precision]
    assert sizes["merged", "fp32"] < 0.8 * sizes["dense", "fp32"]
    assert sizes["merged", "fp16"] < 0.95 * sizes["dense", "fp16"]
    assert sizes["dense", "fp16"] < 0.6 * sizes["dense", "fp32"]
    assert sizes["dense", "int8"] < 0.7 * sizes["dense", "fp32"]
