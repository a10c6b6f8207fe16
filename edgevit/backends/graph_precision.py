"""Make sure that a graph has the precision that an engine is to be built in.

Where networks are strongly typed, TensorRT computes what the graph says: an fp32 graph built "in fp16" would
be an fp32 engine, as slow, and nobody would see it.
"""

from __future__ import annotations

import math
from pathlib import Path

from edgevit.backends.files import read_model
from edgevit.errors import BackendError
from edgevit.target import Precision


def require_graph_precision(onnx: Path, precision: Precision) -> None:
    """Refuse a graph whose weights or quantisers say another precision.

    Raises:
        BackendError: says which precision the graph has; or the file cannot be read.
    """
    found = graph_precision(onnx)
    if found != precision:
        raise BackendError(
            f"{onnx}: expected a graph in {precision}, got one in {found}. TensorRT computes what the"
            f' graph says: export it in {precision}, or use precisions = ["{found}"].'
        )


def graph_precision(onnx: Path) -> Precision:
    """Read a graph's precision: int8 where it quantises, else that of its weights where most are narrower.

    Raises:
        BackendError: the file cannot be read.
    """
    from onnx import TensorProto

    graph = read_model(onnx).graph
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return "int8"
    elements = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 0, TensorProto.BFLOAT16: 0}
    for tensor in graph.initializer:
        if tensor.data_type in elements:
            elements[tensor.data_type] += math.prod(tensor.dims)
    widest = max(elements, key=lambda kind: elements[kind])
    names: dict[int, Precision] = {
        TensorProto.FLOAT: "fp32",
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
    }
    return names[widest]
