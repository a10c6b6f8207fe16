"""How far the values of a graph's tensors go on images, found by running it; what is not finite is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from edgevit.errors import ExportError
from edgevit.export.links import first_not_finite, open_graph
from edgevit.export.parity import Batch
from edgevit.export.read import read_onnx

_LARGEST, _SUM = "largest of ", "sum of "


def read_ranges(path: Path, images: Sequence[Batch]) -> dict[str, float]:
    """Return the largest absolute value of every float32 tensor that a node of a graph puts out.

    The runtime reduces each tensor where it is computed, so that no run holds all of them.

    Args:
        path: a graph whose tensors have their types written down, as edgevit exports them.
        images: [1, C, H, W] each; put together, and the last ones repeated, where the graph takes several.

    Raises:
        ExportError: a tensor is not finite; the first node that puts one out is named.
    """
    proto = read_onnx(path)
    made = [name for node in proto.graph.node for name in node.output]
    types = {value.name: value for value in (*proto.graph.value_info, *proto.graph.output)}
    watched = [name for name in made if name in types and _is_float(types[name])]
    for name in watched:
        nodes, outputs = _reduced(name)
        proto.graph.node.extend(nodes)
        proto.graph.output.extend(outputs)
    session = open_graph(proto, path, 0)
    wanted = [mark + name for mark in (_LARGEST, _SUM) for name in watched]
    ranges = np.zeros(len(watched))
    for batch in _batches(images, session.get_inputs()[0].shape[0]):
        found = np.asarray(session.run(wanted, {session.get_inputs()[0].name: batch}), np.float64)
        largest, sums = np.split(found, 2)
        if not np.isfinite(sums).all():
            raise ExportError(
                f"{path}: {first_not_finite(path, batch)}: expected finite values on the calibration images,"
                " got NaN or infinity, here first. Look at the weights, and at the preprocessing."
            )
        ranges = np.maximum(ranges, largest)
    return dict(zip(watched, ranges.tolist(), strict=True))


def _is_float(value: ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT)


def _reduced(name: str) -> tuple[list[NodeProto], list[ValueInfoProto]]:
    """Return nodes that put out a tensor's largest absolute value, and the sum, which NaN passes through."""
    absolute, largest, total = f"absolute of {name}", _LARGEST + name, _SUM + name
    nodes = [
        helper.make_node("Abs", [name], [absolute]),
        helper.make_node("ReduceMax", [absolute], [largest], keepdims=0),
        helper.make_node("ReduceL1", [name], [total], keepdims=0),
    ]
    return nodes, [helper.make_tensor_value_info(one, TensorProto.FLOAT, []) for one in (largest, total)]


def _batches(images: Sequence[Batch], size: object) -> Iterator[Batch]:
    """Put single images together to what the graph takes; one by one where it leaves that open."""
    count = size if isinstance(size, int) else 1
    for start in range(0, len(images), count):
        part = np.concatenate(images[start : start + count])
        yield np.resize(part, (count, *part.shape[1:]))
