"""What runtimes make of the exported attention: OpenVINO one kernel, ONNX Runtime what its kernels allow."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from toy_graphs import ARCH, DENSE, exported

from edgevit.board import read_machine
from edgevit.export.precision import quantise
from edgevit.models.arch import Arch

MODELS = {
    "dense": ARCH,
    "slim": replace(ARCH, blocks=(replace(DENSE, qk_dim=4, hidden=8), replace(DENSE, vo_dim=4))),
    "odd dims": replace(ARCH, blocks=(replace(DENSE, qk_dim=3, vo_dim=5, hidden=7),) * 2),
    "dead tokens": replace(ARCH, blocks=(DENSE, replace(DENSE, queries=1, tokens_out=1))),
}
wide_vectors = pytest.mark.skipif(
    "avx512f" not in read_machine({}).flags, reason="OpenVINO's attention kernel is for AVX-512 here"
)


def layers_of(path: Path, hint: str = "f32") -> Counter[tuple[str, str]]:
    """Count what OpenVINO runs, by kind and precision."""
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return Counter((one["layerType"].astype(str), one["runtimePrecision"].astype(str)) for one in facts)


def kinds(layers: Counter[tuple[str, str]]) -> set[str]:
    return {kind for kind, _ in layers}


@wide_vectors
@pytest.mark.parametrize("name", MODELS)
def test_attention_is_one_kernel_of_openvino(tmp_path: Path, name: str) -> None:
    layers = layers_of(exported(tmp_path, MODELS[name]))
    assert "Subgraph" in kinds(layers)
    assert not kinds(layers) & {"Softmax", "MatMul", "Multiply", "Gelu", "Math"}
    assert layers["FullyConnected", "f32"] == 6 * len(MODELS[name].blocks) + 1


@wide_vectors
def test_attention_of_one_head_is_no_single_kernel_of_openvino(tmp_path: Path) -> None:
    """The form that OpenVINO does not fuse, so that the test above can fail."""
    one_head: Arch = replace(ARCH, blocks=(replace(DENSE, heads=1),) * 2)
    assert {"Softmax", "MatMul"} <= kinds(layers_of(exported(tmp_path, one_head)))


@wide_vectors
def test_attention_in_int8_is_one_kernel_of_openvino_and_its_layers_are_in_int8(tmp_path: Path) -> None:
    fp32 = exported(tmp_path, ARCH)
    images = list(np.random.default_rng(0).standard_normal((4, 1, 3, 32, 32)).astype(np.float32))
    quantise(fp32, images, tmp_path / "int8.onnx", smooth=False)
    layers = layers_of(tmp_path / "int8.onnx")
    assert not kinds(layers) & {"Softmax", "MatMul"}
    assert layers["FullyConnected", "i8"] + layers["FullyConnected", "u8"] == 13


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_takes_the_scale_and_the_gelu_into_its_kernels(tmp_path: Path, name: str) -> None:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    path = exported(tmp_path, MODELS[name])
    onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    blocks = len(MODELS[name].blocks)
    assert (found["FusedMatMul"], found["Softmax"], found["Gelu"]) == (blocks, blocks, blocks)
    assert found["Erf"] == found["Div"] == found["Mul"] == 0
