from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from toy_graphs import ARCHS, exported
from toy_vits import single_images, toy_model

from edgevit.errors import ImagesError
from edgevit.export import half
from edgevit.export.half import KEPT, Kept, to_half
from edgevit.export.links import cut_after, onnx_link
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.verify import check_dims


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "fp32.onnx"
    export_onnx(toy_model(), path, ExportOptions(batch=1))
    return path


def outputs(path: Path) -> np.ndarray:
    run = onnx_link(path).run
    return np.concatenate([run(image) for image in single_images(4)])


def test_half_computes_nearly_the_same(fp32: Path, tmp_path: Path) -> None:
    assert to_half(fp32, single_images(4), tmp_path / "fp16.onnx") == Kept((), ())
    expected, got = outputs(fp32), outputs(tmp_path / "fp16.onnx")
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.01


def test_half_stores_weights_in_half_and_keeps_types_at_the_ends(fp32: Path, tmp_path: Path) -> None:
    to_half(fp32, single_images(2), tmp_path / "fp16.onnx")
    graph = onnx.load(tmp_path / "fp16.onnx").graph
    assert {tensor.data_type for tensor in graph.initializer} == {TensorProto.FLOAT16}
    ends = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    assert ends == [TensorProto.FLOAT, TensorProto.FLOAT]
    assert sum(node.op_type == "Cast" for node in graph.node) == 2
    onnx.checker.check_model(onnx.load(tmp_path / "fp16.onnx"), full_check=True)


def test_half_leaves_what_goes_beyond_its_range_in_fp32(tmp_path: Path) -> None:
    model = toy_model()
    with torch.no_grad():  # fc2 puts out numbers that half precision does not have
        model.blocks[1].mlp.fc2.weight.mul_(1e6)
    export_onnx(model, tmp_path / "fp32.onnx", ExportOptions(batch=1))
    kept = to_half(tmp_path / "fp32.onnx", single_images(4), tmp_path / "fp16.onnx")
    assert {"blocks.1.mlp.fc2", "blocks.1", "blocks.2.norm1"} <= set(kept.by_range)
    assert not any(name.startswith("blocks.0") for name in kept.by_range)
    proto = onnx.load(tmp_path / "fp16.onnx")
    (noted,) = [entry.value for entry in proto.metadata_props if entry.key == KEPT]
    assert json.loads(noted) == list(kept.by_range)
    expected, got = outputs(tmp_path / "fp32.onnx"), outputs(tmp_path / "fp16.onnx")
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.02


def test_half_leaves_squares_of_a_written_out_norm_in_fp32_where_their_sum_is_too_large(
    tmp_path: Path,
) -> None:
    model = toy_model()
    with torch.no_grad():
        model.blocks[0].attn.proj.weight.mul_(300)
    export_onnx(model, tmp_path / "fp32.onnx", ExportOptions(batch=1, opset=13))
    kept = to_half(tmp_path / "fp32.onnx", single_images(4), tmp_path / "fp16.onnx")
    assert "blocks.0.norm2.variance" in kept.by_range
    assert "blocks.0.norm2" not in kept.by_range
    assert np.isfinite(outputs(tmp_path / "fp16.onnx")).all()


def test_half_leaves_an_epsilon_that_would_be_zero_in_fp32(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y", "z")]
    nodes = [
        helper.make_node("Add", ["x", "epsilon"], ["y"], "add"),
        helper.make_node("Neg", ["y"], ["z"], "neg"),
    ]
    epsilon = numpy_helper.from_array(np.float32([1e-12]), "epsilon")
    graph = helper.make_graph(nodes, "tiny", values[:1], values[2:], [epsilon], value_info=values[1:2])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "fp32.onnx")
    kept = to_half(tmp_path / "fp32.onnx", [np.ones((1, 3), np.float32)], tmp_path / "fp16.onnx")
    assert kept == Kept(("add",), ())


@pytest.mark.parametrize(
    ("name", "opset", "batch"), [("merged", 18, 2), ("chosen", 13, None), ("swin", 18, 1)]
)
def test_half_of_other_forms_is_valid_and_near_fp32(
    tmp_path: Path, name: str, opset: int, batch: int | None
) -> None:
    path, out = exported(tmp_path, ARCHS[name], opset=opset, batch=batch), tmp_path / "fp16.onnx"
    given = list(np.random.default_rng(0).standard_normal((5, 1, *ARCHS[name].image)).astype(np.float32))
    kept = to_half(path, given, out)
    onnx.checker.check_model(onnx.load(out), full_check=True)
    check_dims(out, ARCHS[name])
    pair = np.concatenate(given[:2]) if batch == 2 else given[0]
    expected, got = onnx_link(path).run(pair), onnx_link(out).run(pair)
    assert 0 < np.abs(got - expected).max() < 0.02 * max(1.0, float(np.abs(expected).max()))
    assert any(name.endswith(("top_k", "arg_max")) for name in kept.by_choice) == (name != "swin")


def test_half_shows_its_blocks_and_where_it_is_cut_they_are_fp32(fp32: Path, tmp_path: Path) -> None:
    to_half(fp32, single_images(2), tmp_path / "fp16.onnx")
    cut_after(tmp_path / "fp16.onnx", "blocks.1", tmp_path / "cut.onnx")
    (shown,) = onnx.load(tmp_path / "cut.onnx").graph.output
    assert shown.type.tensor_type.elem_type == TensorProto.FLOAT
    at = onnx_link(tmp_path / "fp16.onnx").at
    assert at is not None
    image = single_images(1)[0]
    assert np.array_equal(at("blocks.1")(image), onnx_link(tmp_path / "cut.onnx").run(image))


def test_half_keeps_its_place_with_weights_beside_the_file(
    fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "LARGEST_FILE_BYTES", 1000)
    to_half(fp32, single_images(2), tmp_path / "fp16.onnx")
    assert (tmp_path / "fp16.onnx.data").is_file()
    assert np.isfinite(outputs(tmp_path / "fp16.onnx")).all()


def test_half_twice_gives_the_same_bytes(fp32: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        to_half(fp32, single_images(2), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_half_without_images_is_refused(fp32: Path, tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match=r"fp16 needs calibration images, got none"):
        to_half(fp32, [], tmp_path / "fp16.onnx")
