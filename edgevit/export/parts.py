"""Rows of blocks cut out of an exported ONNX file, as graphs of their own: what a latency table times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from edgevit.errors import ExportError

_BLOCK = re.compile(r"(?:^|[^A-Za-z])blocks\.(\d+)(?!\d)")


def cut_parts(path: Path, parts: Mapping[str, range], folder: Path) -> dict[str, Path]:
    """Write rows of blocks of an exported file, each as `<name>.onnx`: tokens in, tokens out.

    A row that begins with block 0 has the image as its input, and one that ends with the last block puts out
    logits. What else comes from earlier blocks (the sizes of merged tokens) becomes a constant between 1 and
    2: it has its shape, which is all that time depends on.

    Args:
        path: a file that edgevit exported, in any precision.
        parts: which blocks, by name.
        folder: where to write.

    Raises:
        ExportError: the file lacks a block.
    """
    model = onnx.load(path)
    graph = _Graph(model.graph, path)
    files = {}
    for name, blocks in parts.items():
        part = onnx.helper.make_model(
            graph.cut(blocks), opset_imports=model.opset_import, ir_version=model.ir_version
        )
        files[name] = folder / f"{name}.onnx"
        files[name].write_bytes(part.SerializeToString(deterministic=True))
    return files


class _Graph:
    """An exported graph, with what its parts are found by."""

    def __init__(self, graph: onnx.GraphProto, path: Path) -> None:
        self._graph, self._path = graph, path
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._values = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
        self._made: dict[str, onnx.NodeProto] = {name: node for node in graph.node for name in node.output}

    def cut(self, blocks: range) -> onnx.GraphProto:
        end = self._end(blocks[-1])
        start = f"blocks.{blocks[0] - 1}" if blocks[0] else self._graph.input[0].name
        if start not in self._values:
            raise ExportError(f"{self._path}: expected the tokens that leave {start}, found no such value.")
        inside, given = self._behind(end, start, blocks[0])
        nodes = [node for node in self._graph.node if inside & set(node.output)]
        read = {name for node in nodes for name in node.input}
        weights = [tensor for name, tensor in self._weights.items() if name in read]
        return onnx.helper.make_graph(
            nodes,
            "edgevit",
            [self._values[start]],
            [self._values[end]],
            [*weights, *map(self._constant, sorted(given - {start}))],
            value_info=[self._values[name] for name in sorted(inside - {end}) if name in self._values],
        )

    def _end(self, last: int) -> str:
        name = f"blocks.{last}"
        is_last = not any(f"blocks.{last + 1}." in node.name for node in self._graph.node)
        return self._graph.output[0].name if is_last else name

    def _behind(self, end: str, start: str, first: int) -> tuple[set[str], set[str]]:
        """Return the values that a part makes, and those that earlier blocks give it."""
        inside, given, waiting = set[str](), set[str](), [end]
        while waiting:
            name = waiting.pop()
            if name in inside or name in given or name in self._weights or not name:
                continue
            if name == start or _block_of(self._node(name, end)) < first:
                given.add(name)
                continue
            inside.add(name)
            waiting += self._node(name, end).input
        return inside, given

    def _node(self, name: str, end: str) -> onnx.NodeProto:
        if name not in self._made:
            raise ExportError(f"{self._path}: expected a node that makes {name}, which {end} follows from.")
        return self._made[name]

    def _constant(self, name: str) -> onnx.TensorProto:
        dims = [size.dim_value or 1 for size in self._values[name].type.tensor_type.shape.dim]
        numbers = np.random.default_rng(0).uniform(1.0, 2.0, dims).astype(np.float32)
        return onnx.numpy_helper.from_array(numbers, name)


def _block_of(node: onnx.NodeProto) -> float:
    """Return the block that a node is of; constants, of which many blocks read the same, are of any."""
    found = _BLOCK.search(node.name)
    return int(found[1]) if found else np.inf
