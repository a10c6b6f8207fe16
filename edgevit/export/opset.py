"""Write a graph of opset 18 as one of opset 17, which older runtimes on boards read.

torch exports opset 18 and above. Between 17 and 18 few operators changed; those that matter are turned back
here, and any other is refused by name rather than passed on to fail on the device.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from edgevit.errors import ExportError
from edgevit.export.rewrite import constant_of

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


def to_opset_17(graph: ir.Graph) -> None:
    """Turn operators of opset 18 back to their forms of opset 17, in place.

    Raises:
        ExportError: an operator that opset 17 cannot express; says which, and at which node.
    """
    for node in graph:
        if node.op_type in _AXES_WERE_ATTRIBUTE:
            _axes_to_attribute(node)
        elif node.op_type == "Split":
            _equal_split(node)
        elif _changed_in_18(node.op_type):
            raise _refusal(node, f"{node.op_type} took another form in opset 18")
    graph.opset_imports[""] = 17


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
