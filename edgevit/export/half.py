"""Make the fp16 graph from the fp32 one: weights and tensors in half precision, casts where they must not be.

Nothing stays in fp32 by habit. What does is found in the graph and on calibration images: nodes whose values
or sums go beyond what half precision holds, and numbers that serve only to choose tokens or neurons, where 11
bits are fewer than what tells two of them apart. Layer norms, by ONNX's definition, compute their means
and squares in fp32 whatever their input is.

Input and output of the graph stay in fp32: images are made, stored outputs compared and logits read in fp32
by everything around a graph, on a host and on a board, and two casts cost nothing beside a block.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgevit.errors import ImagesError
from edgevit.export.parity import Batch
from edgevit.export.ranges import read_ranges
from edgevit.export.read import LARGEST_FILE_BYTES

LARGEST = 65504 / 4
"""What goes beyond stays in fp32: a quarter of what half precision holds, as other images may go further."""
KEPT = "edgevit.fp32_nodes"
"""Metadata of the file: names of the nodes that stayed in fp32, as JSON."""

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_CHOICES = ("ArgMax", "ArgMin", "TopK", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_UNTOUCHED = ("Cast", "Shape", "Size")  # read a tensor of any type: their input needs no cast


@dataclass(frozen=True)
class Kept:
    """Names of the nodes that stayed in fp32."""

    by_range: tuple[str, ...]
    by_choice: tuple[str, ...]
    """Those that only lead to a choice."""


def to_half(fp32: Path, images: Sequence[Batch], out: Path) -> Kept:
    """Write the fp16 graph of an fp32 graph; the same inputs give the same bytes.

    Args:
        fp32: a graph for any number of images, as edgevit exports them.
        images: calibration images for the range check, [1, C, H, W] each.
        out: the file to write; weights above 1.5 GB go beside it.

    Raises:
        ImagesError: no images.
        ExportError: a tensor of the graph is not finite on the images; its node is named.
    """
    if not images:
        raise ImagesError(
            "fp16 needs calibration images, got none. Add [calibration], which needs no labels."
        )
    ranges = read_ranges(fp32, images)
    model = onnx.load(fp32)
    graph, opset = model.graph, model.opset_import[0].version
    choosing, names = _choosing(graph), [node.name for node in graph.node]
    wide = _beyond(graph, ranges, opset) - choosing
    _Rewrite(graph, choosing | wide).run()
    model.metadata_props.add(key=KEPT, value=json.dumps([names[at] for at in sorted(choosing | wide)]))
    _save(model, out)
    return Kept(*(tuple(names[at] for at in sorted(part)) for part in (wide, choosing)))


def _save(model: onnx.ModelProto, out: Path) -> None:
    data = out.with_name(f"{out.name}.data")
    data.unlink(missing_ok=True)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_FILE_BYTES:
        onnx.save_model(model, out, save_as_external_data=True, location=data.name)
    else:
        out.write_bytes(model.SerializeToString(deterministic=True))


# What stays in fp32


def _beyond(graph: onnx.GraphProto, ranges: dict[str, float], opset: int) -> set[int]:
    """Return the places of nodes whose values half precision does not hold, or that ONNX lacks in it."""
    values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = {tensor.name: _range(tensor) for tensor in _constants(graph)}
    reach = ranges | constants
    return {
        index
        for index, node in enumerate(graph.node)
        if node.op_type != "Constant"
        and (_reach(node, reach, values) > LARGEST or not _has_half(node, opset))
    }


def _constants(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yield every float32 constant: initializers, and the values of Constant nodes under their names."""
    yield from (tensor for tensor in graph.initializer if tensor.data_type == _FLOAT)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].t.data_type == _FLOAT:
            tensor = TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            yield tensor


def _range(tensor: TensorProto) -> float:
    """Return the largest absolute value; infinite where half precision would make it all zeros."""
    found = np.abs(numpy_helper.to_array(tensor))
    largest = float(found.max(initial=0.0))
    vanishes = largest > 0.0 and np.float32(np.float16(min(largest, LARGEST))) == 0.0
    return np.inf if vanishes else largest


def _reach(node: NodeProto, reach: dict[str, float], values: dict[str, ValueInfoProto]) -> float:
    """Return the largest number that a node reads, puts out, or sums up on the way."""
    largest = max((reach.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
    put_out = reach.get(node.output[0], 0.0) if node.output else 0.0
    if node.op_type == "ReduceMean":
        size, left = (_elements(values[name]) for name in (node.input[0], node.output[0]))
        return max(largest, put_out * size / left)
    return max(largest, put_out**2) if node.op_type == "ReduceL2" else largest


def _elements(value: ValueInfoProto) -> int:
    """Return how many elements a tensor has for one image, where the batch is open."""
    return prod(max(1, size.dim_value) for size in value.type.tensor_type.shape.dim)


def _has_half(node: NodeProto, opset: int) -> bool:
    """Say whether ONNX defines an operator for half precision in every place where it takes float32 here."""
    schema = onnx.defs.get_schema(node.op_type, opset)
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    sides = (schema.inputs, node.input), (schema.outputs, node.output)
    for formal, names in sides:
        for index, name in enumerate(names):
            types = allowed.get(formal[min(index, len(formal) - 1)].type_str, ()) if name else ()
            if "tensor(float)" in types and "tensor(float16)" not in types:
                return False
    return True


def _choosing(graph: onnx.GraphProto) -> set[int]:
    """Return the places of the nodes that choose by float numbers, and of those that lead nowhere else."""
    floats = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == _FLOAT}
    readers: defaultdict[str, set[int]] = defaultdict(set)
    for index, node in enumerate(graph.node):
        for name in node.input if node.op_type not in ("Shape", "Size") else ():
            readers[name].add(index)
    outputs, found = {value.name for value in graph.output}, set[int]()
    for index, node in reversed(list(enumerate(graph.node))):
        made = floats.intersection(node.output)
        leads = [readers[name] for name in made]
        chooses = node.op_type in _CHOICES and floats.intersection(node.input)
        if chooses or (made and not outputs.intersection(made) and all(to and to <= found for to in leads)):
            found.add(index)
    return {index for index in found if graph.node[index].op_type != "Constant"}


# Rewriting


@dataclass
class _Rewrite:
    """The state of one pass over a graph in its order."""

    graph: onnx.GraphProto
    kept: set[int]
    types: dict[str, int] = field(default_factory=dict)
    values: dict[str, ValueInfoProto] = field(default_factory=dict)
    nodes: list[NodeProto] = field(default_factory=list)
    other: dict[tuple[str, int], str] = field(default_factory=dict)
    """Names of tensors in another type than the one that they are made in."""

    def run(self) -> None:
        """Rewrite the graph in place."""
        graph = self.graph
        self.values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
        self.types = {name: value.type.tensor_type.elem_type for name, value in self.values.items()}
        self.types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        wanted = self._wanted_of_constants()
        self._initializers(wanted)
        for index, node in enumerate(list(graph.node)):
            if node.op_type == "Constant":
                self._constant(node, wanted[node.output[0]])
            else:
                self._node(node, _FLOAT if index in self.kept else _HALF)
        del graph.node[:]
        graph.node.extend(self.nodes)
        for value in graph.value_info:
            value.type.tensor_type.elem_type = self.types[value.name]

    def _wanted_of_constants(self) -> defaultdict[str, set[int]]:
        """Return the types in which constants are read."""
        wanted: defaultdict[str, set[int]] = defaultdict(set)
        for index, node in enumerate(self.graph.node):
            for name in node.input:
                wanted[name].add(_FLOAT if index in self.kept or node.op_type in _UNTOUCHED else _HALF)
        return wanted

    def _initializers(self, wanted: defaultdict[str, set[int]]) -> None:
        for tensor in [one for one in self.graph.initializer if one.data_type == _FLOAT]:
            if wanted[tensor.name] == {_HALF}:
                tensor.CopyFrom(_halved(tensor, tensor.name))
                self.types[tensor.name] = _HALF
            elif _HALF in wanted[tensor.name]:
                self.graph.initializer.append(_halved(tensor, self._name_other(tensor.name, _HALF)))

    def _constant(self, node: NodeProto, wanted: set[int]) -> None:
        name, attribute = node.output[0], node.attribute[0]
        self.nodes.append(node)
        if self.types.get(name) != _FLOAT or attribute.t.data_type != _FLOAT or _HALF not in wanted:
            return
        if wanted == {_HALF}:
            attribute.t.CopyFrom(_halved(attribute.t, attribute.t.name))
            self.types[name] = _HALF
            return
        other = self._name_other(name, _HALF)
        halved = helper.make_node("Constant", [], [other], other, value=_halved(attribute.t, ""))
        self.nodes.append(halved)

    def _node(self, node: NodeProto, wanted: int) -> None:
        for index, name in enumerate(node.input):
            if self.types.get(name) in (_FLOAT, _HALF) and node.op_type not in _UNTOUCHED:
                node.input[index] = self._as(name, wanted)
        self.nodes.append(node)
        if wanted == _HALF:
            _retype(node.attribute)
        for index, name in enumerate(node.output):
            if wanted == _FLOAT or self.types.get(name) != _FLOAT:
                continue
            if name in {value.name for value in self.graph.output}:
                node.output[index] = self._name_other(name, _HALF)
                self.nodes.append(_cast(node.output[index], name, _FLOAT))
            else:
                self.types[name] = _HALF

    def _as(self, name: str, wanted: int) -> str:
        """Return the name of a tensor in the wanted type, cast once however many read it."""
        if self.types[name] == wanted:
            return name
        if (name, wanted) not in self.other:
            self.nodes.append(_cast(name, self._name_other(name, wanted), wanted))
        return self.other[name, wanted]

    def _name_other(self, name: str, kind: int) -> str:
        """Name a tensor in another type, and note its shape as exporters do."""
        other = f"{name}.{'half' if kind == _HALF else 'float'}"
        self.other[name, kind], self.types[other] = other, kind
        if name in self.values:
            value = self.graph.value_info.add()
            value.CopyFrom(self.values[name])
            value.name = other
        return other


def _retype(attributes: Sequence[AttributeProto]) -> None:
    """Let a node whose attribute says float32 put out half precision: Cast, and ConstantOfShape."""
    for attribute in attributes:
        if attribute.name == "to" and attribute.i == _FLOAT:
            attribute.i = _HALF
        elif attribute.name == "value" and attribute.t.data_type == _FLOAT:
            attribute.t.CopyFrom(_halved(attribute.t, attribute.t.name))


def _cast(name: str, other: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [name], [other], f"{other}.cast", to=kind)


def _halved(tensor: TensorProto, name: str) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)
