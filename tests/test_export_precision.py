from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from toy_vits import single_images, toy_model, toy_plan

from edgevit.errors import ExportError, ImagesError
from edgevit.export.links import first_not_finite, onnx_link
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.precision import quantise, require_nncf
from edgevit.models.anatomy import slim_arch
from edgevit.plan import Counts


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "fp32.onnx"
    export_onnx(toy_model(), path, ExportOptions(batch=1))
    return path


@pytest.fixture(scope="module")
def int8(fp32: Path) -> Path:
    path = fp32.with_name("int8.onnx")
    quantise(fp32, single_images(8), path, smooth=False)
    return path


def constants(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_quantise_has_zero_points_of_zero_only(int8: Path) -> None:
    graph, values = onnx.load(int8).graph, constants(int8)
    quantisers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert quantisers
    assert all(values[node.input[2]].dtype == np.int8 for node in quantisers)
    assert not any(values[node.input[2]].any() for node in quantisers)


def test_quantise_stores_weights_as_int8_with_a_scale_for_each_channel(int8: Path) -> None:
    graph, values = onnx.load(int8).graph, constants(int8)
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values]
    assert {values[node.input[0]].dtype for node in weights} == {np.dtype(np.int8)}
    fc1 = next(node for node in weights if "blocks.0.mlp.fc1.weight" in node.input[0])
    assert values[fc1.input[0]].shape == (24, 40)
    assert values[fc1.input[1]].shape == (40,)


def test_quantise_leaves_products_that_merge_tokens_in_float(tmp_path: Path) -> None:
    dense = toy_model()
    plan = toy_plan(dense, Counts(tokens=[13, 10, 10]))
    export_onnx(toy_model(slim_arch(dense.arch, plan)), tmp_path / "fp32.onnx", ExportOptions())
    quantise(tmp_path / "fp32.onnx", single_images(8), tmp_path / "int8.onnx", smooth=False)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    merging = [node for node in graph.node if "mat_mul" in node.name and node.op_type == "MatMul"]
    assert len(merging) == 6
    assert not any(made_by.get(name) == "DequantizeLinear" for node in merging for name in node.input)
    layers = [node for node in graph.node if node.op_type == "MatMul" and ".mlp." in node.name]
    assert all(made_by[layer.input[0]] == "DequantizeLinear" for layer in layers)


def test_quantise_computes_nearly_what_the_graph_did(fp32: Path, int8: Path) -> None:
    sample = np.concatenate(single_images(8))
    expected, got = (
        np.concatenate([onnx_link(path).run(image[None]) for image in sample]) for path in (fp32, int8)
    )
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.1


def test_quantise_keeps_the_blocks_that_parity_looks_at(int8: Path) -> None:
    block = onnx_link(int8).at
    assert block is not None
    assert block("blocks.1")(single_images(1)[0]).shape == (1, 17, 24)


def test_quantise_twice_gives_the_same_bytes(fp32: Path, int8: Path, tmp_path: Path) -> None:
    quantise(fp32, single_images(8), tmp_path / "again.onnx", smooth=False)
    assert (tmp_path / "again.onnx").read_bytes() == int8.read_bytes()


def test_quantise_smooth_multiplies_activations_first(fp32: Path, int8: Path, tmp_path: Path) -> None:
    quantise(fp32, single_images(8), tmp_path / "smooth.onnx", smooth=True)
    plain, smooth = (
        sum(node.op_type == "Mul" for node in onnx.load(path).graph.node)
        for path in (int8, tmp_path / "smooth.onnx")
    )
    assert smooth > plain


def test_quantise_without_images_is_refused(fp32: Path, tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match=r"needs calibration images, got none"):
        quantise(fp32, [], tmp_path / "int8.onnx", smooth=False)


def test_quantise_on_constant_images_is_refused(fp32: Path, tmp_path: Path) -> None:
    grey = [np.full((1, 3, 16, 16), 0.5, np.float32)] * 4
    with pytest.raises(ImagesError, match=r"all 4 are of one colour"):
        quantise(fp32, grey, tmp_path / "int8.onnx", smooth=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_quantise_weights_that_are_not_finite_are_named(fp32: Path, tmp_path: Path, value: float) -> None:
    model = onnx.load(fp32)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "blocks.1.mlp.fc1.weight")
    broken = numpy_helper.to_array(weight).copy()
    broken[0, 0] = value
    weight.CopyFrom(numpy_helper.from_array(broken, weight.name))
    (tmp_path / "fp32.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"blocks\.1\.mlp\.fc1\.weight holds NaN or infinity"):
        quantise(tmp_path / "fp32.onnx", single_images(2), tmp_path / "int8.onnx", smooth=False)
    assert first_not_finite(tmp_path / "fp32.onnx", single_images(1)[0]) == "blocks.1.mlp.fc1"


def test_first_not_finite_of_a_sound_graph_is_an_error(fp32: Path) -> None:
    with pytest.raises(ValueError, match="every value is finite"):
        first_not_finite(fp32, single_images(1)[0])


def test_quantise_graph_for_several_images_is_refused(tmp_path: Path) -> None:
    export_onnx(toy_model(), tmp_path / "fp32.onnx", ExportOptions(batch=2))
    with pytest.raises(ExportError, match=r"one image at a time, and this graph takes 2"):
        quantise(tmp_path / "fp32.onnx", single_images(2), tmp_path / "int8.onnx", smooth=False)


def test_quantise_without_nncf_says_how_to_get_it(
    fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)  # an import of it raises then
    with pytest.raises(ExportError, match=r"pip install 'edgevit\[int8\]'"):
        quantise(fp32, single_images(2), tmp_path / "int8.onnx", smooth=False)


def test_require_nncf_where_it_is_not_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevit.export.precision.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install 'edgevit\[int8\]'"):
        require_nncf()
