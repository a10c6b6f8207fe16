"""Every kind of graph in every precision: TensorRT's real parsers take it, and TensorRT-RTX builds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from real_tensorrt import WITHOUT_GPU, show_graphs
from toy_ccts import CCT_ARCH
from toy_choosers import chooser
from toy_dinos import toy_dino
from toy_graphs import ARCHS, RARE, exported, random_model
from toy_streams import some_channels
from toy_swins import SWIN
from toy_vits import toy_model, toy_plan

from edgevit.export.half import to_half
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.parity import Batch
from edgevit.export.precision import quantise
from edgevit.models.arch import Arch
from edgevit.models.layers import SlimViT
from edgevit.models.load import ModelSource, load_model
from edgevit.plan import Counts
from edgevit.progress import silent
from edgevit.slim import SlimOptions, slim_model
from edgevit.slim.channels import cut_channels
from edgevit.slim.select import slim_by_selection
from edgevit.target import Precision

pytestmark = pytest.mark.tensorrt

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


def narrow() -> SlimViT:
    """Return a model of which channels of the stream were cut, so that its norms are single operators."""
    model = toy_model()
    return cut_channels(model, some_channels(model))


def slim_dino() -> SlimViT:
    """Return a DINOv3 with fewer heads, dims and neurons; its query dims go by whole pairs that rotate."""
    model = toy_dino()
    return slim_by_selection(
        model, toy_plan(model, Counts(heads=2, qk_dim=6, vo_dim=5, hidden=30), dead_tokens=True)
    )


DIMS: dict[str, Arch] = ARCHS | {"swin-dense": SWIN, "cct-dense": CCT_ARCH}
MODELS: dict[str, Callable[[], SlimViT]] = {
    "rotary": toy_dino,
    "rotary-slim": slim_dino,
    "narrow": narrow,
    "chooser": chooser,
}


class Wanted(NamedTuple):
    """A graph by its model and form; a batch of None is a dynamic one."""

    name: str
    precision: Precision
    opset: int
    batch: int | None


ALL = [
    Wanted(name, precision, opset, batch)
    for name in (*DIMS, *MODELS)
    for precision in PRECISIONS
    for opset, batch in [(18, 1), (18, None), (17, 1), (13, 1), (13, None)]
]
OTHER_FORMS = {
    ("merged", 18, None),
    ("swin", 18, None),
    ("chooser", 18, None),
    ("cct", 13, None),
    ("chosen", 13, 1),
    ("swin", 13, 1),
    ("dense", 17, 1),
}
"""Older opsets and dynamic batches of those whose operators depend on them."""


def is_quick(one: Wanted) -> bool:
    if (one.opset, one.batch) == (18, 1):
        return one.name not in RARE
    return (one.name, one.opset, one.batch) in OTHER_FORMS


GROUPS = {
    "quick": [one for one in ALL if is_quick(one)],
    "all others": [one for one in ALL if not is_quick(one)],
}


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


def in_fp32(folder: Path, one: Wanted) -> Path:
    """Return a model's graph in one form, exported once."""
    folder = folder / f"{one.name}-opset{one.opset}-batch{one.batch}"
    path = folder / "model.onnx"
    if path.is_file():
        return path
    folder.mkdir()
    if one.name in DIMS:
        usual = {"opset": 18, "batch": 1}  # other tests export in these without naming them
        form = {name: getattr(one, name) for name in usual if getattr(one, name) != usual[name]}
        return exported(folder, DIMS[one.name], **form)
    export_onnx(MODELS[one.name](), path, ExportOptions(opset=one.opset, batch=one.batch))
    return path


@pytest.fixture(scope="module", params=["quick", pytest.param("all others", marks=pytest.mark.slow)])
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Wanted, Path]:
    """Return graphs in all precisions, those that cover operators and types, or all others."""
    folder = tmp_path_factory.mktemp("graphs")
    return {one: in_precision(in_fp32(folder, one), one.precision) for one in GROUPS[request.param]}


@pytest.mark.parametrize("version", WITHOUT_GPU)
def test_every_graph_in_every_precision_is_accepted_and_by_rtx_built(
    graphs: dict[Wanted, Path], version: str
) -> None:
    found = show_graphs(version, [(path, one.precision) for one, path in graphs.items()])
    refused = {one: words for one, words in zip(graphs, found, strict=True) if isinstance(words, str)}
    assert refused == {}
    assert min(int(number) for number in found) > (10_000 if version.startswith("rtx") else 20)


def sizes_of_engines(folder: Path, models: Iterator[tuple[str, SlimViT]]) -> dict[tuple[str, Precision], int]:
    """Return the bytes of TensorRT-RTX's engines of models in all precisions; the parsers take them, too."""
    wanted: dict[tuple[str, Precision], Path] = {}
    for name, model in models:
        (folder / name).mkdir()
        export_onnx(model, folder / name / "fp32.onnx", ExportOptions())
        for precision in PRECISIONS:
            wanted[name, precision] = in_precision(folder / name / "fp32.onnx", precision)
    found = {
        version: show_graphs(version, [(path, precision) for (_, precision), path in wanted.items()])
        for version in WITHOUT_GPU
    }
    refused = [words for answers in found.values() for words in answers if isinstance(words, str)]
    assert refused == []
    return {one: int(size) for one, size in zip(wanted, found["rtx-1.7"], strict=True)}


def cuts_of(dense: SlimViT, cuts: dict[str, Counts]) -> Iterator[tuple[str, SlimViT]]:
    """Yield a model and its cuts, without dead tokens."""
    yield "dense", dense
    for name, counts in cuts.items():
        yield (
            name,
            slim_model(dense, toy_plan(dense, counts, dead_tokens=True), SlimOptions("none"), None, silent),
        )


def test_engines_shrink_with_the_model_and_with_its_precision(tmp_path: Path) -> None:
    block = replace(ARCHS["dense"].blocks[0], heads=4, qk_dim=64, vo_dim=64, hidden=1024, embed=256)
    dense = random_model(replace(ARCHS["dense"], blocks=(block,) * 4))
    sizes = sizes_of_engines(tmp_path, cuts_of(dense, {"slim": Counts(qk_dim=32, vo_dim=32, hidden=512)}))
    for precision in PRECISIONS:
        assert sizes["slim", precision] < 0.9 * sizes["dense", precision]
    assert sizes["dense", "fp16"] < 0.7 * sizes["dense", "fp32"]
    assert sizes["dense", "int8"] < 0.7 * sizes["dense", "fp32"]


CUTS = {
    "slim": Counts(qk_dim=32, vo_dim=48, hidden=384),
    "merged": Counts(qk_dim=32, vo_dim=48, hidden=384, tokens=[197] * 3 + [117] * 9),
}


@pytest.mark.slow
def test_deit_tiny_is_accepted_by_all_and_its_engine_shrinks_with_it(tmp_path: Path) -> None:
    dense = load_model(ModelSource("deit_tiny_patch16_224")).model
    sizes = sizes_of_engines(tmp_path, cuts_of(dense, CUTS))
    # Some 5 MB less of weights in fp16, 2.5 in int8; beside them stand kernels, of which merging takes more.
    for precision, most in {"fp32": 0.8, "fp16": 0.95, "int8": 0.95}.items():
        assert sizes["slim", precision] < most * sizes["dense", precision]
    assert sizes["merged", "fp32"] < 0.8 * sizes["dense", "fp32"]
    assert sizes["merged", "fp16"] < 0.95 * sizes["dense", "fp16"]
    assert sizes["dense", "fp16"] < 0.6 * sizes["dense", "fp32"]
    assert sizes["dense", "int8"] < 0.7 * sizes["dense", "fp32"]
