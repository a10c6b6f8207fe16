"""MACs, params and bytes of an ONNX file, counted from its own tensors: the check on `edgevit.cost`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgevit.cost import model_cost
from edgevit.errors import ExportError
from edgevit.export.read import read_onnx
from edgevit.models.arch import Arch

Shape = tuple[int, ...]

_ELEMENTWISE = {
    "Abs", "Add", "Clip", "Div", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Log", "Max", "Min", "Mul",
    "Neg", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh",
}  # fmt: skip
_SOFTMAX = {"Softmax", "LogSoftmax"}


@dataclass(frozen=True)
class GraphCost:
    """What one image costs, counted over the nodes of a graph.

    `params` are the elements of the initialisers that are no scalars: in files that edgevit wrote these are
    the model's parameters, one for one, since constants stand in Constant nodes.
    """

    macs: int
    params: int
    node_macs: Mapping[str, int]  # of each Conv, MatMul and Gemm, by name
    elementwise: int  # elements that elementwise operators put out
    softmax: int  # elements that softmax puts out

    def block_macs(self, blocks: int) -> tuple[int, ...]:
        """Return the MACs of each of the `blocks` transformer blocks, from the nodes' names."""
        sums: Counter[int] = Counter()
        for name, macs in self.node_macs.items():
            found = re.match(r"blocks\.(\d+)\.", name)
            if found:
                sums[int(found[1])] += macs
        return tuple(sums[index] for index in range(blocks))


def graph_cost(path: Path) -> GraphCost:
    """Count an ONNX file for one image, from the shapes that ONNX's own inference finds.

    Raises:
        ExportError: no ONNX file, or shapes that depend on the input, so that nobody can count.
    """
    model = read_onnx(path)
    batch = _fix_batch(model)
    shapes = _infer(model, path)
    macs = {
        node.name: count(node, shapes) for node in model.graph.node if (count := _COUNTS.get(node.op_type))
    }
    floats = [tensor for tensor in model.graph.initializer if tensor.dims]
    return GraphCost(
        macs=sum(macs.values()) // batch,
        params=sum(math.prod(tensor.dims) for tensor in floats),
        node_macs={name: count // batch for name, count in macs.items()},
        elementwise=_elements(model, shapes, _ELEMENTWISE) // batch,
        softmax=_elements(model, shapes, _SOFTMAX) // batch,
    )


def check_macs(path: Path, arch: Arch) -> None:
    """Check that each block, and the whole graph, do the MACs of their dims: a report estimates from these.

    Raises:
        ExportError: they do not; the first block that differs is named, with both numbers.
    """
    promised, found = model_cost(arch), graph_cost(path)
    counted = found.block_macs(len(promised.blocks))
    of_parts = [
        *((f"blocks.{index}", cost.macs, counted[index]) for index, cost in enumerate(promised.blocks)),
        ("the whole graph", promised.total.macs, found.macs),
    ]
    for name, expected, got in of_parts:
        if got != expected:
            raise ExportError(
                f"{path}: {name}: expected {expected:,} MACs from the model's dims, got {got:,}. This is a"
                " fault of edgevit's export, please report it with the recipe."
            )


def _fix_batch(model: onnx.ModelProto) -> int:
    """Set a dynamic batch to 1 and return the batch."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.HasField("dim_value"):
        batch.dim_value = 1
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")
    return int(batch.dim_value)


def _infer(model: onnx.ModelProto, path: Path) -> dict[str, Shape]:
    weights = [
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer
    ]
    light = onnx.ModelProto()  # weights as inputs: shapes never come from them, and a message holds 2 GB
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend([*model.graph.input, *weights])
    light.graph.output.extend(model.graph.output)
    graph = onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True).graph
    shapes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in sizes):
            shapes[value.name] = tuple(int(size.dim_value) for size in sizes)
    unknown = [name for node in graph.node for name in node.output if name and name not in shapes]
    if unknown:
        raise ExportError(
            f"{path}: {len(unknown)} tensors have no fixed shape, the first is {unknown[0]!r}; expected "
            "shapes that follow from the input's. Export the model with edgevit, which writes sizes down."
        )
    return shapes


def _conv(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    weight = shapes[node.input[1]]  # [out, in / groups, kernel...]
    return math.prod(shapes[node.output[0]]) * math.prod(weight[1:])


def _matmul(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


_COUNTS: dict[str, Callable[[onnx.NodeProto, Mapping[str, Shape]], int]] = {
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
}


def _elements(model: onnx.ModelProto, shapes: Mapping[str, Shape], kinds: set[str]) -> int:
    return sum(math.prod(shapes[node.output[0]]) for node in model.graph.node if node.op_type in kinds)
