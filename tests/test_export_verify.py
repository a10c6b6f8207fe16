from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from toy_graphs import ARCH, exported

from edgevit.errors import ExportError
from edgevit.export.verify import check_dims

Change = Callable[[onnx.GraphProto], None]


def _dead_weight(graph: onnx.GraphProto) -> None:
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((3, 4), np.float32), "blocks.0.forgotten"))


def _mask(graph: onnx.GraphProto) -> None:
    mask = onnx.numpy_helper.from_array(np.ones(16, np.float32), "mask")
    node = next(node for node in graph.node if node.name == "blocks.0.mlp.fc2")
    graph.node.insert(0, onnx.helper.make_node("Constant", [], ["mask"], value=mask))
    graph.node.append(
        onnx.helper.make_node("Mul", [node.input[0], "mask"], ["masked"], name="blocks.0.mlp.mask")
    )


def _lost_weight(graph: onnx.GraphProto) -> None:
    graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == "head.bias"))


def test_check_dims_of_an_export_passes(tmp_path: Path) -> None:
    check_dims(exported(tmp_path, ARCH), ARCH)


def test_check_dims_against_a_smaller_promise_names_block_expected_and_got(tmp_path: Path) -> None:
    promised = replace(ARCH, blocks=(ARCH.blocks[0], replace(ARCH.blocks[1], qk_dim=3, hidden=8)))
    with pytest.raises(ExportError) as raised:
        check_dims(exported(tmp_path, ARCH), promised)
    lines = str(raised.value).splitlines()
    assert lines[0].endswith("model.onnx: the file has not the promised tensors:")
    assert lines[1:-1] == [
        "  - blocks.1.attn.q.weight: expected [24, 6], got [24, 12]",
        "  - blocks.1.attn.k.weight: expected [24, 6], got [24, 12]",
        "  - blocks.1.attn.q.bias: expected [6], got [12]",
        "  - blocks.1.mlp.fc1.weight: expected [24, 8], got [24, 16]",
        "  - blocks.1.mlp.fc1.bias: expected [8], got [16]",
        "  - blocks.1.mlp.fc2.weight: expected [8, 24], got [16, 24]",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_dead_weight, r"blocks\.0\.forgotten: expected a node that reads it, got none: dead \[3, 4\]"),
        (_dead_weight, r"blocks\.0\.forgotten: expected no such weight, got \[3, 4\]"),
        (_mask, r"blocks\.0\.mlp\.mask: expected no product with a constant mask, got mask of \[16\]"),
        (_lost_weight, r"head\.bias: expected \[5\], got no such weight"),
    ],
)
def test_check_dims_of_a_changed_file_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    path = exported(tmp_path, ARCH)
    proto = onnx.load(path)
    change(proto.graph)
    onnx.save(proto, path)
    with pytest.raises(ExportError, match=message):
        check_dims(path, ARCH)


def test_check_dims_of_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path, ARCH)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ExportError, match=r"model\.onnx: cannot be read as ONNX"):
        check_dims(path, ARCH)
