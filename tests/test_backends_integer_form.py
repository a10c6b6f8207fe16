from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_onnx import draw_images

from edgevit.backends.integer_form import write_integer_form
from edgevit.errors import BackendError

_TOKENS, _WIDTH = 4, 6


def write_quantised(path: Path) -> Path:
    """Write two products of the same int8 activations with int8 weights, one with a bias, over 4 tokens."""
    draw = np.random.default_rng(0)
    constants = {
        "shape": np.array([1, _TOKENS, 3]),
        "scale": np.float32(0.02),
        "zero": np.int8(0),
        "bias": draw.standard_normal(_WIDTH).astype(np.float32),
        "weight_scale": np.linspace(0.01, 0.02, _WIDTH, dtype=np.float32),
        "weight_zero": np.zeros(_WIDTH, np.int8),
        "one": draw.integers(-127, 128, (3, _WIDTH), np.int8),
        "other": draw.integers(-127, 128, (3, _WIDTH), np.int8),
    }
    nodes = [
        helper.make_node("Reshape", ["images", "shape"], ["tokens"]),
        helper.make_node("QuantizeLinear", ["tokens", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
    ]
    for name in ("one", "other"):
        inputs = [name, "weight_scale", "weight_zero"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"], axis=1))
        nodes.append(helper.make_node("MatMul", ["dq", f"{name}.dq"], [f"{name}.product"]))
    nodes.append(helper.make_node("Add", ["one.product", "bias"], ["one.sum"]))
    nodes.append(helper.make_node("Mul", ["one.sum", "other.product"], ["out"]))
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, _TOKENS, _WIDTH])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def run(path: Path, optimised: Path) -> tuple[np.ndarray, Counter[str]]:
    """Return the output for one image, and the operators that ONNX Runtime made of the graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"images": draw_images(1)})
    return out, Counter(node.op_type for node in onnx.load(optimised).graph.node)


def test_integer_form_makes_every_product_one_of_integers(tmp_path: Path) -> None:
    write_quantised(tmp_path / "plain.onnx")
    write_integer_form(tmp_path / "plain.onnx", tmp_path / "form.onnx")
    _, operators = run(tmp_path / "form.onnx", tmp_path / "optimised.onnx")
    assert operators["MatMulIntegerToFloat"] == 2
    assert not operators["MatMul"] + operators["Gemm"]


def test_integer_form_computes_the_same(tmp_path: Path) -> None:
    write_quantised(tmp_path / "plain.onnx")
    write_integer_form(tmp_path / "plain.onnx", tmp_path / "form.onnx")
    expected, _ = run(tmp_path / "plain.onnx", tmp_path / "optimised-plain.onnx")
    got, _ = run(tmp_path / "form.onnx", tmp_path / "optimised.onnx")
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_integer_form_of_no_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"broken\.onnx: cannot be read as ONNX"):
        write_integer_form(tmp_path / "broken.onnx", tmp_path / "form.onnx")
