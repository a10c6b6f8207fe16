from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import openvino
import pytest
import torch
from toy_dinos import toy_dino
from toy_graphs import ARCH, ARCHS, FORMS, MERGED, exported, noise, random_model
from toy_vits import toy_plan

import edgevit
from edgevit.errors import ExportError, ParityError
from edgevit.export import onnx as onnx_export
from edgevit.export import simplify
from edgevit.export.graph_cost import check_macs
from edgevit.export.links import onnx_link, torch_link
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.opset import to_older_opset
from edgevit.export.parity import TORCH_TO_ONNX, check_parity, limits_for
from edgevit.export.verify import check_dims
from edgevit.models.arch import Arch
from edgevit.models.families import from_timm
from edgevit.models.layers import SlimViT
from edgevit.plan import Counts
from edgevit.slim.select import slim_by_selection

CHECKOUT = Path(__file__).resolve().parents[1]


def assert_equal_to_torch(path: Path, arch: Arch, batch: int) -> None:
    link, limits = torch_link(random_model(arch)), limits_for(arch, TORCH_TO_ONNX)
    check_parity(link, onnx_link(path, 1), [noise(arch, batch)], limits, arch)


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("name", FORMS)
def test_export_of_every_form_gives_the_outputs_of_torch(tmp_path: Path, name: str) -> None:
    path = exported(tmp_path, ARCHS[name])
    onnx.checker.check_model(onnx.load(path), full_check=True)
    check_dims(path, ARCHS[name])
    assert_equal_to_torch(path, ARCHS[name], batch=1)


@pytest.mark.parametrize(
    ("name", "opset"),
    [
        ("merged", 13),
        ("swin", 13),
        ("chosen", 13),
        ("merged", 17),
        ("swin", 17),
        pytest.param("cct", 13, marks=pytest.mark.slow),
        pytest.param("gated", 15, marks=pytest.mark.slow),
        pytest.param("swin", 23, marks=pytest.mark.slow),
        pytest.param("cct", 17, marks=pytest.mark.slow),
        pytest.param("cct", 23, marks=pytest.mark.slow),
        pytest.param("mean-merged", 17, marks=pytest.mark.slow),
        ("chosen", 17),
        pytest.param("mean-chosen", 17, marks=pytest.mark.slow),
        pytest.param("chosen", 23, marks=pytest.mark.slow),
        ("dense", 20),
        pytest.param("merged", 23, marks=pytest.mark.slow),
        pytest.param("registers", 20, marks=pytest.mark.slow),
    ],
)
def test_export_with_other_opsets_gives_the_outputs_of_torch(tmp_path: Path, name: str, opset: int) -> None:
    path = exported(tmp_path, ARCHS[name], opset=opset)
    proto = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    onnx.checker.check_model(proto, full_check=True)
    check_dims(path, ARCHS[name])
    assert_equal_to_torch(path, ARCHS[name], batch=1)


def test_export_below_opset_17_has_no_layer_norm_and_keeps_its_names(tmp_path: Path) -> None:
    path = exported(tmp_path, MERGED, opset=13)
    assert kinds(path)["LayerNormalization"] == 0
    made = {name for node in onnx.load(path).graph.node for name in node.output}
    assert {"blocks.0.norm1", "blocks.0.norm1.mean", "norm"} <= made


@pytest.mark.parametrize(
    ("name", "opset"),
    [
        ("dense", 18),
        ("merged", 13),
        ("merged", 17),
        ("chosen", 17),
        ("swin", 18),
        pytest.param("cct", 18, marks=pytest.mark.slow),
        pytest.param("merged", 18, marks=pytest.mark.slow),
        pytest.param("no-prefix", 18, marks=pytest.mark.slow),
    ],
)
def test_export_with_dynamic_batch_runs_at_two_batch_sizes(tmp_path: Path, name: str, opset: int) -> None:
    path = exported(tmp_path, ARCHS[name], batch=None, opset=opset)
    graph = onnx.load(path).graph
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert_equal_to_torch(path, ARCHS[name], batch=1)
    assert_equal_to_torch(path, ARCHS[name], batch=3)


def test_export_with_static_batch_has_one_input_one_output_and_fixed_shapes(tmp_path: Path) -> None:
    graph = onnx.load(exported(tmp_path, MERGED, batch=2)).graph
    (image,), (logits,) = graph.input, graph.output
    assert (image.name, logits.name) == ("image", "logits")
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, logits)}
    assert shapes == {"image": [2, 3, 32, 32], "logits": [2, 5]}
    known = {value.name for value in graph.value_info if value.type.tensor_type.HasField("shape")}
    made = {name for node in graph.node for name in node.output} - {"logits"}
    assert made <= known


def test_export_of_dense_model_has_the_operators_of_a_vit_and_no_others(tmp_path: Path) -> None:
    found = kinds(exported(tmp_path, ARCH))
    del found["Constant"]
    assert found == {
        "Conv": 1,
        "Concat": 1,
        "Gather": 1,
        "Gemm": 1,
        "LayerNormalization": 2 * 2 + 1,
        "MatMul": 2 * 8,
        "Softmax": 2,
        "Add": 1 + 2 * (4 + 2 + 1),  # position; biases but those of k and v, residuals, gelu
        "Mul": 2 * (1 + 2),  # scale, gelu
        "Div": 2,
        "Erf": 2,
        "Reshape": 1 + 2 * 4,
        "Transpose": 1 + 2 * 4,
    }


@pytest.mark.parametrize("opset", [20, pytest.param(23, marks=pytest.mark.slow)])
def test_export_from_opset_20_has_gelu_as_one_operator(tmp_path: Path, opset: int) -> None:
    found = kinds(exported(tmp_path, ARCH, opset=opset))
    assert (found["Gelu"], found["Erf"], found["LayerNormalization"]) == (2, 0, 5)


def test_export_of_merged_model_computes_no_sizes(tmp_path: Path) -> None:
    found = kinds(exported(tmp_path, MERGED))
    assert not {"Shape", "Range", "ConstantOfShape", "Identity", "Where", "OneHot"} & found.keys()
    assert found["Cast"] == found["Equal"] == found["TopK"] == 2


def test_export_of_merging_compares_keys_as_their_layer_gives_them(tmp_path: Path) -> None:
    nodes = onnx.load(exported(tmp_path, MERGED)).graph.node
    turned = [node.name for node in nodes if node.op_type == "Transpose" and ".attn.k." in node.name]
    assert turned == [f"blocks.{index}.attn.k.transpose" for index in range(3)]  # for the logits alone


def test_export_with_dynamic_batch_reads_the_batch_once(tmp_path: Path) -> None:
    found = kinds(exported(tmp_path, ARCH, batch=None))
    assert found["Shape"] <= 1
    assert found["Expand"] == 1


def test_export_names_nodes_values_and_weights_by_module(tmp_path: Path) -> None:
    graph = onnx.load(exported(tmp_path, ARCH)).graph
    operators = {node.name: node.op_type for node in graph.node}
    expected = {
        "patch_embed": "Conv",
        "position.add": "Add",
        "prefix.concat": "Concat",
        "blocks.1.norm1": "LayerNormalization",
        "blocks.1.attn.q": "MatMul",
        "blocks.1.attn.k": "MatMul",
        "blocks.1.attn.v": "MatMul",
        "blocks.1.attn.scale": "Mul",
        "blocks.1.attn.logits": "MatMul",
        "blocks.1.attn.softmax": "Softmax",
        "blocks.1.attn.mix": "MatMul",
        "blocks.1.attn.proj": "MatMul",
        "blocks.1.mlp.fc1": "MatMul",
        "blocks.1.mlp.gelu": "Mul",
        "blocks.1.mlp.gelu.erf": "Erf",
        "blocks.1.mlp.fc2": "MatMul",
        "blocks.1": "Add",
        "norm": "LayerNormalization",
        "head": "Gemm",
    }
    assert expected.items() <= operators.items()
    reads = {node.name: list(node.input) for node in graph.node}
    assert reads["blocks.1.attn.q"] == ["blocks.1.norm1", "blocks.1.attn.q.weight"]
    assert reads["blocks.1.norm1"][0] == "blocks.0"
    assert len(operators) == len(graph.node)


def test_export_of_swin_is_small_and_named_by_module(tmp_path: Path) -> None:
    graph = onnx.load(exported(tmp_path, ARCHS["swin"])).graph
    operators = {node.name: node.op_type for node in graph.node}
    expected = {
        "blocks.1.gather": "Gather",  # shift and windows in one
        "blocks.1.attn.logits": "MatMul",
        "blocks.1.attn.softmax": "Softmax",
        "blocks.1.attn.gather": "Gather",
        "blocks.2.downsample.norm": "LayerNormalization",
        "blocks.2.downsample.reduction": "MatMul",
        "blocks.3": "Add",
    }
    assert expected.items() <= operators.items()
    found = kinds(tmp_path / "model.onnx")
    assert (found["Gather"], found["Slice"], found["Concat"], found["Identity"]) == (4, 0, 0, 0)
    assert found["Reshape"] == 1 + 2 * 5 + 2 + 2 + 2 * 4  # stem, windows, shift mask, merging, one window


@pytest.mark.parametrize("name", ["swin", "cct", "gated"])
def test_openvino_gives_the_outputs_of_torch(tmp_path: Path, name: str) -> None:
    path = exported(tmp_path, ARCHS[name])
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = noise(ARCHS[name])
    expected = torch_link(random_model(ARCHS[name])).run(image)
    np.testing.assert_allclose(compiled([image])[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("opset", "batch"), [(18, None), pytest.param(17, 1, marks=pytest.mark.slow)])
def test_export_of_rotary_positions_has_the_outputs_and_dims(
    tmp_path: Path, opset: int, batch: int | None
) -> None:
    path, dense = tmp_path / "model.onnx", toy_dino()
    plan = toy_plan(dense, Counts(heads=2, qk_dim=[8, 6, 4], hidden=32), dead_tokens=True)
    model = slim_by_selection(dense, plan)
    export_onnx(model, path, ExportOptions(opset=opset, batch=batch))
    check_dims(path, model.arch)
    check_macs(path, model.arch)
    limits = limits_for(model.arch, TORCH_TO_ONNX)
    check_parity(torch_link(model), onnx_link(path, 1), [noise(model.arch)], limits, model.arch)
    names = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert names == {name for name, _ in model.named_parameters()}  # angles are constants


@pytest.mark.parametrize("name", ["chosen", "mean-chosen", "input-merged"])
def test_runtimes_choose_alike_among_equal_patches(tmp_path: Path, name: str) -> None:
    """On a plain background many patches are equal; rounding would keep others in each runtime."""
    path = exported(tmp_path, ARCHS[name], batch=None, opset=18)
    images = np.ones((24, 3, 32, 32), np.float32)
    for index, image in enumerate(images):
        image[:, index : index + 8, 2 * index // 3 : 2 * index // 3 + 8] = noise(ARCH)[0, :, :8, :8]
    expected = torch_link(random_model(ARCHS[name])).run(images)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for found in (onnx_link(path, 1).run(images), compiled([images])[0]):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["merged", "chosen", "mean-chosen"])
def test_export_of_fewer_tokens_scatters_nothing(tmp_path: Path, name: str) -> None:
    """TensorRT refuses ScatterElements, and NonZero gives shapes that depend on the image."""
    found = kinds(exported(tmp_path, ARCHS[name]))
    assert not {kind for kind in found if kind.startswith(("Scatter", "NonZero", "Loop", "If"))}
    assert found["TopK"]


def test_export_of_merged_model_keeps_names_of_attention_and_blocks(tmp_path: Path) -> None:
    names = {node.name for node in onnx.load(exported(tmp_path, MERGED)).graph.node}
    for index in range(3):
        assert {f"blocks.{index}", f"blocks.{index}.attn.logits", f"blocks.{index}.attn.softmax"} <= names


def test_export_leaves_nothing_of_the_exporter_in_the_file(tmp_path: Path) -> None:
    path = exported(tmp_path, MERGED, metadata={"plan": "abc", "labels": "a,b"})
    proto = onnx.load(path)
    assert (proto.producer_name, proto.producer_version) == ("edgevit", edgevit.__version__)
    assert [(entry.key, entry.value) for entry in proto.metadata_props] == [
        ("labels", "a,b"),
        ("plan", "abc"),
    ]
    assert not proto.doc_string
    assert not proto.graph.doc_string
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    raw = path.read_bytes()
    for trace in (b".py", b"torch", str(CHECKOUT).encode(), str(tmp_path).encode()):
        assert trace not in raw


def test_export_says_nothing_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(
        random_model(ARCH), tmp_path / "model.onnx", ExportOptions()
    )  # warnings are errors in these tests
    assert capfd.readouterr() == ("", "")


def test_export_from_another_process_and_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    here = exported(tmp_path, MERGED)
    there = tmp_path / "elsewhere" / "other.onnx"
    there.parent.mkdir()
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from pathlib import Path; from toy_graphs import *;"
        "export_onnx(random_model(MERGED), Path(sys.argv[3]), ExportOptions())"
    )
    command = [sys.executable, "-c", code, str(CHECKOUT), str(CHECKOUT / "tests"), str(there)]
    done = subprocess.run(command, cwd=there.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (here, there)]
    assert digests[0] == digests[1]


def test_export_above_the_limit_puts_weights_in_one_file_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "LARGEST_FILE_BYTES", 1000)
    path = tmp_path / "model.onnx"
    export_onnx(random_model(ARCH), path, ExportOptions())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    check_dims(path, ARCH)
    assert_equal_to_torch(path, ARCH, batch=1)


def test_export_below_the_limit_leaves_no_data_file_of_an_earlier_export(tmp_path: Path) -> None:
    (tmp_path / "model.onnx.data").write_bytes(b"of an earlier export")
    export_onnx(SlimViT(ARCH).eval(), tmp_path / "model.onnx", ExportOptions())  # norms are all 1 and 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    check_dims(tmp_path / "model.onnx", ARCH)  # equal weights of different blocks stay apart


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 12}, r"opset: expected 13\.\.23, got 12"),
        ({"opset": 24}, r"opset: expected 13\.\.23, got 24"),
        ({"batch": 0}, "batch: expected 1 or more, or None for any, got 0"),
    ],
)
def test_export_with_impossible_options_is_refused(
    tmp_path: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        exported(tmp_path, ARCH, **options)


def test_opset_17_refuses_an_operator_that_it_cannot_say() -> None:
    value = ir.val("x", ir.DataType.FLOAT, ir.Shape([2]))
    pad = ir.node("Pad", [value], name="blocks.0.pad")
    graph = ir.Graph([value], pad.outputs, nodes=[pad], opset_imports={"": 18})
    with pytest.raises(ExportError, match=r"node blocks\.0\.pad: Pad took another form in opset 18"):
        to_older_opset(graph, 17)


@pytest.mark.parametrize("name", ["merged", pytest.param("dense", marks=pytest.mark.slow)])
def test_export_with_simplify_keeps_dims_and_outputs(tmp_path: Path, name: str) -> None:
    path = exported(tmp_path, ARCHS[name], simplify=True, metadata={"plan": "abc"})
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.producer_name == "edgevit"
    assert [entry.key for entry in proto.metadata_props] == ["plan"]
    check_dims(path, ARCHS[name])
    assert_equal_to_torch(path, ARCHS[name], batch=1)


def test_export_with_simplify_that_gives_up_says_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*graph: object, **options: object) -> None:
        raise RuntimeError("no shape\nfor x")

    monkeypatch.setattr("onnxsim.simplify", fails)
    with pytest.raises(
        ExportError, match=r"gave up \(RuntimeError: no shape for x\)\. Set export\.simplify = false"
    ):
        exported(tmp_path, ARCH, simplify=True)


def test_export_with_simplify_that_changes_outputs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = simplify._run_onnxsim

    def dishonest(graph: ir.Model) -> onnx.ModelProto:
        proto = honest(graph)
        bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "blocks.1.mlp.fc2.bias")
        changed = onnx.numpy_helper.to_array(bias).copy()
        changed[0] += 1  # not all of them: a norm takes out what is added to all channels
        bias.CopyFrom(onnx.numpy_helper.from_array(changed, bias.name))
        return proto

    monkeypatch.setattr(simplify, "_run_onnxsim", dishonest)
    with pytest.raises(ParityError, match=r"onnxsim's graph against the torch model: blocks\.1 is the first"):
        exported(tmp_path, ARCH, simplify=True)
    assert list(tmp_path.iterdir()) == []


def test_export_of_timm_model_gives_its_outputs(tmp_path: Path, toy_vit: torch.nn.Module) -> None:
    path = tmp_path / "toy.onnx"
    model = from_timm(toy_vit, "toy")
    export_onnx(model, path, ExportOptions())
    images = noise(model.arch)
    with torch.inference_mode():
        expected = toy_vit(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(onnx_link(path, 1).run(images), expected, atol=1e-4)
