"""Layers of an int8 graph: run each in int8 or in float, and write a graph in which some are float again.

A layer is a matrix product or convolution whose inputs come out of quantisers. Its node has one name in the
fp32 and in the int8 graph. What NNCF put in, quantisers and SmoothQuant's products, has names that the fp32
graph lacks; so a layer is in float again when its inputs step over such nodes, and its weight and bias, which
NNCF corrects, are the fp32 graph's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgevit.errors import ExportError
from edgevit.export.graph_cost import graph_cost
from edgevit.export.links import open_graph
from edgevit.export.parity import Batch

_PRODUCTS = {"Conv", "Gemm", "MatMul"}
# NNCF moves quantisers up through operators that only move numbers.
_MOVING = {
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "MaxPool", "Pad", "Reshape",
    "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
_FLAGS = "int8_layers"
_FLOAT = ".float"


@dataclass(frozen=True)
class Int8Layer:
    """One matrix product or convolution that an int8 graph computes in int8."""

    name: str
    """Path of its module (`blocks.3.mlp.fc1`), or that and what it does (`blocks.3.attn.logits`)."""
    macs: int
    """Of one image."""

    @property
    def block(self) -> str | None:
        """Return the block that it is in, `blocks.3`; None for what is before and behind the blocks."""
        found = re.match(r"blocks\.\d+(?=\.)", self.name)
        return found[0] if found else None


class Int8Graph:
    """An int8 graph beside the fp32 one that it was made of."""

    def __init__(self, fp32: Path, int8: Path) -> None:
        self.path = int8
        self._fp32_path = fp32
        self._fp32, self._int8 = onnx.load(fp32), onnx.load(int8)
        self._float_nodes = {node.name: node for node in self._fp32.graph.node}
        self._float_tensors = {tensor.name: tensor for tensor in self._fp32.graph.initializer}
        self._makers = {name: node for node in self._int8.graph.node for name in node.output}
        self._products = [node for node in self._int8.graph.node if self._is_int8(node)]

    @cached_property
    def layers(self) -> tuple[Int8Layer, ...]:
        """Return the layers in the order of the graph.

        Raises:
            ExportError: shapes of the fp32 graph depend on its input, so that nobody can count.
        """
        macs = graph_cost(self._fp32_path).node_macs
        return tuple(Int8Layer(node.name, macs[node.name]) for node in self._products)

    def write(self, out: Path, in_float: Collection[str]) -> None:
        """Write the int8 graph with some layers in float again; the same names give the same bytes.

        Raises:
            ExportError: a name is no layer of this graph.
        """
        self._require_layers(in_float)
        model = onnx.ModelProto()
        model.CopyFrom(self._int8)
        graph, tensors = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
        nodes: list[onnx.NodeProto] = []
        for node in list(graph.node):
            if node.name in in_float:
                inputs = [self._float_input(name, nodes) for name in self._float_nodes[node.name].input]
                del node.input[:]
                node.input.extend(inputs)
                for name in (*inputs, *self._biases(node)):
                    if name in tensors:
                        tensors[name].CopyFrom(self._float_tensors[name])
                    elif name in self._float_tensors:
                        graph.initializer.append(self._float_tensors[name])
            nodes.append(node)
        _keep_needed_(graph, nodes)
        out.write_bytes(model.SerializeToString(deterministic=True))

    def switched(self, threads: int = 0) -> Switched:
        """Load a graph that has every layer twice, in int8 and in float, and runs the one asked for."""
        return Switched(self._with_switches(), self.path, [layer.name for layer in self.layers], threads)

    def _is_int8(self, node: onnx.NodeProto) -> bool:
        return node.op_type in _PRODUCTS and any(self._is_quantised(name) for name in node.input)

    def _is_quantised(self, name: str) -> bool:
        maker = self._makers.get(name)
        if maker is None:
            return False
        if maker.name in self._float_nodes and maker.op_type in _MOVING:
            return any(self._is_quantised(above) for above in maker.input)
        return str(maker.op_type) == "DequantizeLinear"

    def _float_input(self, name: str, nodes: list[onnx.NodeProto]) -> str:
        """Return the value `name` as it is without quantisers; what only moves numbers is doubled."""
        maker = self._makers.get(name)
        if maker is None or not self._is_quantised(name):
            return name
        if maker.name not in self._float_nodes:
            while maker is not None and maker.name not in self._float_nodes:  # DQ, Q, SmoothQuant's product
                name = maker.input[0]
                maker = self._makers.get(name)
            return self._float_input(name, nodes)
        if not any(name + _FLOAT in node.output for node in nodes):
            copy = onnx.NodeProto()
            copy.CopyFrom(maker)
            copy.name += _FLOAT
            del copy.input[:], copy.output[:]
            copy.input.extend([self._float_input(above, nodes) for above in maker.input])
            copy.output.extend([above + _FLOAT for above in maker.output])
            nodes.append(copy)
        return name + _FLOAT

    def _biases(self, node: onnx.NodeProto) -> list[str]:
        """Return the constants that are added to what a layer puts out."""
        return [
            name
            for after in self._fp32.graph.node
            if after.op_type == "Add" and node.output[0] in after.input
            for name in after.input
            if name in self._float_tensors
        ]

    def _with_switches(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._int8)
        graph, nodes, added = model.graph, list[onnx.NodeProto](), dict[str, TensorProto]()
        numbers = {node.name: index for index, node in enumerate(self._products)}
        biases = {name: node.name for node in self._products for name in self._biases(node)}

        def float_name(name: str) -> str:
            if name not in self._float_tensors:
                return self._float_input(name, nodes)
            if name + _FLOAT not in added:
                added[name + _FLOAT] = TensorProto()
                added[name + _FLOAT].CopyFrom(self._float_tensors[name])
                added[name + _FLOAT].name += _FLOAT
            return name + _FLOAT

        for node in list(graph.node):
            number = numbers.get(node.name)
            if number is not None:
                inputs = [float_name(name) for name in self._float_nodes[node.name].input]
                nodes += _flag(node.name, number, added)
                nodes.append(_switch(node, inputs))
                continue
            for index, name in enumerate(node.input):
                if node.op_type == "Add" and name in biases:
                    either = [f"{biases[name]}.flag", name, float_name(name)]
                    nodes.append(helper.make_node("Where", either, [f"{name}.either"], f"{name}.either"))
                    node.input[index] = f"{name}.either"
            nodes.append(node)
        graph.initializer.extend(added.values())
        graph.input.append(helper.make_tensor_value_info(_FLAGS, TensorProto.BOOL, [len(numbers)]))
        for node in self._products:
            if node.output[0] not in {value.name for value in graph.output}:
                graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
        _keep_needed_(graph, nodes)
        del graph.value_info[:]
        return model

    def _require_layers(self, names: Collection[str]) -> None:
        known = [node.name for node in self._products]
        other = sorted(set(names) - set(known))
        if other:
            raise ExportError(
                f"{self.path}: expected layers that it computes in int8, got {other[0]!r}; it has"
                f" {', '.join(known[:3])} and {max(0, len(known) - 3)} more."
            )


class Switched:
    """An int8 graph in ONNX Runtime whose layers are computed in int8 or in float, as each run asks.

    Quantisers round as the graph says and products are computed in float, so what a layer loses is what its
    quantisers lose, whatever kernels a runtime has.
    """

    def __init__(self, model: onnx.ModelProto, path: Path, layers: Sequence[str], threads: int) -> None:
        self.layers = tuple(layers)
        self._products = {node.name: node.output[0] for node in model.graph.node}
        self._session = open_graph(model, path, threads, integer=False)
        self._image = self._session.get_inputs()[0].name
        self._logits = self._session.get_outputs()[0].name

    def run(self, image: Batch, in_int8: Collection[str], outputs: Sequence[str] = ()) -> list[Batch]:
        """Return logits, [1, classes], and what some layers put out.

        Args:
            image: [1, C, H, W].
            in_int8: names of the layers that are computed in int8; all others are in float.
            outputs: names of the layers whose outputs are wanted as well.
        """
        flags = np.array([name in in_int8 for name in self.layers])
        wanted = [self._logits, *(self._products[name] for name in outputs)]
        found = self._session.run(wanted, {self._image: image, _FLAGS: flags})
        return [np.asarray(one, np.float32) for one in found]


def _flag(layer: str, number: int, added: dict[str, TensorProto]) -> list[onnx.NodeProto]:
    index = helper.make_tensor(f"{layer}.number", TensorProto.INT64, [], [number])
    added[index.name] = index
    return [helper.make_node("Gather", [_FLAGS, index.name], [f"{layer}.flag"], f"{layer}.flag", axis=0)]


def _switch(node: onnx.NodeProto, float_inputs: list[str]) -> onnx.NodeProto:
    """Return a node that computes a layer in int8 where its flag says so, else in float."""
    branches = {}
    for branch, inputs in (("then_branch", list(node.input)), ("else_branch", float_inputs)):
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        del inner.input[:], inner.output[:]
        inner.input.extend(inputs)
        inner.output.append(f"{node.output[0]}.{branch}")
        shown = helper.make_tensor_value_info(inner.output[0], TensorProto.FLOAT, None)
        branches[branch] = helper.make_graph([inner], branch, [], [shown])
    return helper.make_node("If", [f"{node.name}.flag"], list(node.output), node.name, **branches)


def _keep_needed_(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Give a graph those of the nodes, and of its constants, that its outputs need."""
    needed, kept = {value.name for value in graph.output}, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_inputs(node))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for field in (graph.initializer, graph.value_info):
        left = [one for one in field if one.name in needed]
        del field[:]
        field.extend(left)


def _inputs(node: onnx.NodeProto) -> set[str]:
    """Return what a node reads, in its branches too."""
    inner = (attribute.g.node for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH)
    return set(node.input).union(*(_inputs(one) for nodes in inner for one in nodes))
