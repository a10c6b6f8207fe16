from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from toy_vits import single_images, toy_model

from edgevit.errors import ExportError
from edgevit.export.graph_cost import graph_cost
from edgevit.export.int8_layers import Int8Graph
from edgevit.export.links import onnx_link
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.precision import quantise

PARTS = ["attn.q", "attn.k", "attn.v", "attn.logits", "attn.proj", "mlp.fc1", "mlp.fc2"]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "smooth"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Int8Graph:
    folder = tmp_path_factory.mktemp("graph")
    export_onnx(toy_model(), folder / "fp32.onnx", ExportOptions(batch=1))
    quantise(folder / "fp32.onnx", single_images(8), folder / "int8.onnx", smooth=request.param)
    return Int8Graph(folder / "fp32.onnx", folder / "int8.onnx")


def fp32_of(graph: Int8Graph) -> Path:
    return graph.path.with_name("fp32.onnx")


def quantisers(path: Path) -> int:
    return sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


def test_layers_are_the_products_between_quantisers(graph: Int8Graph) -> None:
    found = [layer.name for layer in graph.layers]
    assert {"patch_embed", "head"} < set(found)
    assert {f"blocks.0.{part}" for part in PARTS} < set(found)
    assert graph.layers[0].block is None
    assert {layer.block for layer in graph.layers} == {None, "blocks.0", "blocks.1", "blocks.2"}


def test_layers_have_the_macs_of_the_fp32_graph(graph: Int8Graph) -> None:
    macs = graph_cost(fp32_of(graph)).node_macs
    assert all(layer.macs == macs[layer.name] > 0 for layer in graph.layers)


def test_write_with_every_layer_in_float_computes_what_fp32_does(graph: Int8Graph, tmp_path: Path) -> None:
    graph.write(tmp_path / "float.onnx", [layer.name for layer in graph.layers])
    onnx.checker.check_model(tmp_path / "float.onnx")
    assert quantisers(tmp_path / "float.onnx") == 0
    expected, got = (
        onnx_link(path).run(single_images(1)[0]) for path in (fp32_of(graph), tmp_path / "float.onnx")
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_write_with_no_layer_in_float_leaves_every_node(graph: Int8Graph, tmp_path: Path) -> None:
    graph.write(tmp_path / "same.onnx", [])
    before, after = (onnx.load(path).graph for path in (graph.path, tmp_path / "same.onnx"))
    assert list(after.node) == list(before.node)
    assert {tensor.name for tensor in after.initializer} <= {tensor.name for tensor in before.initializer}
    expected, got = (
        onnx_link(path).run(single_images(1)[0]) for path in (graph.path, tmp_path / "same.onnx")
    )
    np.testing.assert_array_equal(got, expected)


def test_write_takes_weight_and_bias_of_a_float_layer_from_fp32(graph: Int8Graph, tmp_path: Path) -> None:
    graph.write(tmp_path / "part.onnx", ["blocks.0.attn.q"])
    part, fp32 = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (tmp_path / "part.onnx", fp32_of(graph))
    )
    for name in ("blocks.0.attn.q.weight", "blocks.0.attn.q.bias"):
        np.testing.assert_array_equal(part[name], fp32[name])
    assert "blocks.0.attn.k.weight" not in part


def test_write_keeps_a_quantiser_that_another_layer_reads(graph: Int8Graph, tmp_path: Path) -> None:
    graph.write(tmp_path / "one.onnx", ["blocks.0.attn.q"])
    graph.write(tmp_path / "three.onnx", [f"blocks.0.attn.{name}" for name in "qkv"])
    assert quantisers(tmp_path / "one.onnx") == quantisers(graph.path)
    assert quantisers(tmp_path / "three.onnx") == quantisers(graph.path) - 1


def test_write_of_something_else_than_a_layer_is_refused(graph: Int8Graph, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"got 'blocks.9.mlp.fc1'; it has patch_embed, .* and \d+ more"):
        graph.write(tmp_path / "none.onnx", ["blocks.9.mlp.fc1"])


def test_switched_computes_each_choice_as_a_graph_of_its_own_does(graph: Int8Graph, tmp_path: Path) -> None:
    switched = graph.switched(threads=1)
    names = {layer.name for layer in graph.layers}
    for in_float in (set(), names, {"blocks.1.attn.proj", "blocks.0.attn.logits", "patch_embed"}):
        graph.write(tmp_path / "part.onnx", in_float)
        expected = onnx_link(tmp_path / "part.onnx").run(single_images(1)[0])
        (got,) = switched.run(single_images(1)[0], names - in_float)
        # Two graphs round sums differently, which moves an activation by a step of its scale here and there.
        np.testing.assert_allclose(got, expected, atol=1e-5 if in_float == names else 0.02)


def test_switched_shows_what_layers_put_out(graph: Int8Graph) -> None:
    switched = graph.switched(threads=1)
    _, plain = switched.run(single_images(1)[0], [], ["blocks.0.mlp.fc1"])
    _, noisy = switched.run(single_images(1)[0], ["blocks.0.mlp.fc1"], ["blocks.0.mlp.fc1"])
    _, other = switched.run(single_images(1)[0], ["blocks.1.mlp.fc1"], ["blocks.0.mlp.fc1"])
    assert plain.shape == (1, 17, 40)
    assert 0 < np.abs(noisy - plain).max() < 0.1
    np.testing.assert_array_equal(other, plain)
