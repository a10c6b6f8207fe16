"""Write a graph of opset 18 as one of an older opset, 13 to 17, which the runtimes on boards read.

torch exports opset 18 and above. Between the opsets few operators changed; those that matter are turned back
here, and any other is refused by name rather than passed on to fail on the device. Below 17 a layer norm is
written out: TensorRT 8.5 reads opset 17, but no LayerNormalization (operators.md of onnx-tensorrt 8.5); 8.2
reads 13.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from edgevit.errors import ExportError
from edgevit.export.rewrite import constant_of

OLDEST = 13
_AXES_WERE_ATTRIBUTE = {
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
}


_SHAPE_HAS_ENDS = 15
# Their forms since opset 13 take more types, or attributes that are looked at one by one.
_ONLY_WIDENED = {
    "Add", "Sub", "Mul", "Div", "Pow", "Relu", "Identity", "Where", "Reshape", "Shape",
    "GreaterOrEqual", "LessOrEqual", "ScatterElements", "ScatterND",
}  # fmt: skip


def to_older_opset(graph: ir.Graph, opset: int) -> None:
    """Turn operators of opset 18 back to their forms of `opset`, 13..17, in place.

    Raises:
        ExportError: an operator that `opset` cannot express; says which, and at which node.
    """
    _to_opset_17(graph)
    if opset < 17:
        for node in list(graph):
            if node.op_type == "LayerNormalization":
                _write_out_norm(graph, node)
            elif node.op_type == "Shape" and opset < _SHAPE_HAS_ENDS:
                _slice_shape(graph, node)
            else:
                _require_expressible(node, opset)
    graph.opset_imports[""] = opset


def _to_opset_17(graph: ir.Graph) -> None:
    for node in graph:
        if node.op_type in _AXES_WERE_ATTRIBUTE:
            _axes_to_attribute(node)
        elif node.op_type == "Split":
            _equal_split(node)
        elif _changed_in_18(node.op_type):
            raise _refusal(node, f"{node.op_type} took another form in opset 18")


def _write_out_norm(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a layer norm over the last axis by what it computes, its output under the old name."""
    x, axis = node.inputs[0], node.attributes.get_int("axis", -1)
    rank = len(x.shape) if x is not None and x.shape is not None else None
    if x is None or (axis != -1 and axis + 1 != rank):
        raise _refusal(node, f"a layer norm over more than the last axis (axis {axis})")
    made: list[ir.Node] = []

    def add(kind: str, word: str, *inputs: ir.Value | None, **attributes: list[int] | int) -> ir.Value:
        made.append(ir.node(kind, inputs, attributes, name=f"{node.name}.{word}"))
        made[-1].outputs[0].name = made[-1].name
        return made[-1].outputs[0]

    constant = ir.tensor(np.array(node.attributes.get_float("epsilon", 1e-5), np.float32))
    made.append(ir.node("Constant", [], {"value": constant}, name=f"{node.name}.epsilon"))
    made[0].outputs[0].name = made[0].name
    mean = add("ReduceMean", "mean", x, axes=[-1], keepdims=1)
    centred = add("Sub", "centred", x, mean)
    variance = add("ReduceMean", "variance", add("Mul", "square", centred, centred), axes=[-1], keepdims=1)
    deviation = add("Sqrt", "deviation", add("Add", "variance.add", variance, made[0].outputs[0]))
    normal = add("Div", "div", centred, deviation)
    scaled = add("Mul", "scale", normal, node.inputs[1])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        add("Add", "shift", scaled, node.inputs[2])
    last, old = made[-1], node.outputs[0]
    last.outputs[0].shape, last.outputs[0].type = old.shape, old.type
    graph.insert_before(node, made)
    old.replace_all_uses_with(last.outputs[0], replace_graph_outputs=True)
    name, value = node.name, old.name
    graph.remove(node, safe=True)
    last.name, last.outputs[0].name = name, value


def _slice_shape(graph: ir.Graph, node: ir.Node) -> None:
    """Take some of a value's sizes in two steps, where `Shape` gives all of them."""
    start, end = node.attributes.pop("start", None), node.attributes.pop("end", None)
    if start is None and end is None:
        return
    bounds = (start.as_int() if start else 0, end.as_int() if end else np.iinfo(np.int64).max)
    made = [ir.node("Constant", [], {"value": ir.tensor(np.array([bound]))}) for bound in bounds]
    old = node.outputs[0]
    made.append(ir.node("Slice", [old, *(one.outputs[0] for one in made)]))
    graph.insert_after(node, made)
    old.replace_all_uses_with(made[-1].outputs[0], replace_graph_outputs=True)
    made[-1].replace_input_with(0, old)
    made[-1].outputs[0].shape, made[-1].outputs[0].type = old.shape, old.type
    old.shape = None
    for word, one in zip(("start", "end", "slice"), made, strict=True):
        one.name = one.outputs[0].name = f"{node.name}.{word}"


def _require_expressible(node: ir.Node, opset: int) -> None:
    """Refuse an operator whose older form says something else, or lacks an attribute that is used."""
    if onnx.defs.get_schema(node.op_type, 17).since_version <= opset:
        return
    older = onnx.defs.get_schema(node.op_type, opset).attributes if node.op_type in _ONLY_WIDENED else None
    newer = onnx.defs.get_schema(node.op_type, 17).attributes
    if older is None:
        raise _refusal(node, f"{node.op_type} took another form since opset {opset}")
    for name in [name for name in node.attributes if name not in older]:
        if node.attributes[name].value != onnx.helper.get_attribute_value(newer[name].default_value):
            raise _refusal(node, f"{node.op_type} has {name}, which opset {opset} lacks")
        node.attributes.pop(name)


def _axes_to_attribute(node: ir.Node) -> None:
    node.attributes.pop("noop_with_empty_axes", None)
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return
    axes = constant_of(node.inputs[1])
    if axes is None:
        raise _refusal(node, f"{node.op_type} computes its axes, opset 17 wants them written down")
    node.resize_inputs(1)
    node.attributes.add(ir.AttrInt64s("axes", [int(axis) for axis in axes.ravel()]))


def _equal_split(node: ir.Node) -> None:
    """Drop `num_outputs`: opset 17 takes the number from the outputs, and only equal parts without sizes."""
    attribute = node.attributes.pop("num_outputs", None)
    if attribute is None:
        return
    sizes = {tuple(value.shape) if value.shape is not None else None for value in node.outputs}
    if len(sizes) > 1:
        raise _refusal(node, "Split into unequal parts without sizes")


def _changed_in_18(op_type: str) -> bool:
    return int(onnx.defs.get_schema(op_type, 18).since_version) == 18


def _refusal(node: ir.Node, reason: str) -> ExportError:
    return ExportError(
        f"node {node.name}: {reason}. Export with opset 18 or above (export.opset, or the target's)."
    )
