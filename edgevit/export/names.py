"""Names that a person can read, for every node and value, from the module that each node comes from.

A node takes the path of its module (`blocks.3.attn.q`), or the path and what it does
(`blocks.3.attn.softmax`). A value has the name of the node that made it, and the value that leaves a block
has the block's name (`blocks.3`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from edgevit.export.rewrite import constant_of

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Torch writes it: module paths from the root, then the call's own name."""
_LAYOUT = {"Reshape", "Transpose"}
_SHOWN_ELEMENTS = 8


def name_graph(graph: ir.Graph) -> None:
    """Name nodes and values in place; initialisers keep their names, input and output too.

    Reads the module paths that torch left in the nodes' metadata, so it comes before that is stripped.
    """
    nodes = [node for node in graph if node.op_type != "Constant"]
    scopes = {node: _scope(node) for node in nodes}
    layers = {scopes[node] for node in nodes if _own_weight(node, scopes[node])}
    places = {node: _place(node, scopes, layers) for node in nodes}
    calls = _split_calls(nodes, scopes, layers)
    ends = _last_of_modules(nodes, scopes, layers)
    taken = {value.name for value in (*graph.inputs, *graph.outputs)} | set(graph.initializers)
    for node in graph:
        if node.op_type == "Constant":
            wanted = _constant_name(node)
        else:
            wanted = ends.get(node) or _node_name(node, places[node], calls.get(node))
        node.name = _unique(wanted, taken)
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}.{index}"


def _scope(node: ir.Node) -> str:
    """Return the path of the module in whose forward a node was called; empty for the model itself."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES_KEY, "['', '']"))
    # Sizes that torch reads off the input get a scope that is no module's.
    return str(scopes[-2]) if len(scopes) > 1 and not str(scopes[0]) else ""


def _own_weight(node: ir.Node, scope: str) -> bool:
    """Say whether a node is the one that a module with a weight is there for."""
    return any(
        value is not None and value.is_initializer() and value.name == f"{scope}.weight"
        for value in node.inputs
    )


def _place(node: ir.Node, scopes: dict[ir.Node, str], layers: set[str]) -> str:
    """Return the path under which a node is named.

    Modules whose parts are called one by one (attention is) leave no path of their own in the trace. So a
    node that lies straight in a module goes to the deepest module that holds both what feeds it and what it
    feeds, and a change of layout goes to the layer that it follows.
    """
    scope = scopes[node]
    if scope in layers:
        return scope
    before = _layer_before(node, scopes, layers)
    if before is not None and before.startswith(_inside(scope)):
        return before
    if not scope:
        return scope
    around = {*_edge(node, scopes, forward=False), *_edge(node, scopes, forward=True)}
    within = [path for path in around if path != scope and path.startswith(_inside(scope))]
    return _common_path(within, scope, layers)


def _layer_before(node: ir.Node, scopes: dict[ir.Node, str], layers: set[str]) -> str | None:
    """Return the layer whose output a node only lays out anew, if it does."""
    current: ir.Node | None = node
    while current is not None and current.op_type in _LAYOUT and scopes[current] not in layers:
        current = current.inputs[0].producer() if current.inputs[0] is not None else None
    return (
        scopes[current] if current in scopes and current is not node and scopes[current] in layers else None
    )


def _inside(scope: str) -> str:
    return f"{scope}." if scope else ""


def _edge(node: ir.Node, scopes: dict[ir.Node, str], *, forward: bool) -> set[str]:
    """Return the modules around a node, going through nodes of its own module, in one direction."""
    found, seen, waiting = set(), {node}, [node]
    while waiting:
        current = waiting.pop()
        near: Iterable[ir.Node] = current.successors() if forward else current.predecessors()
        for neighbour in near:
            if neighbour in seen or neighbour not in scopes:
                continue
            seen.add(neighbour)
            if scopes[neighbour] == scopes[node]:
                waiting.append(neighbour)
            else:
                found.add(scopes[neighbour])
    return found


def _common_path(paths: list[str], scope: str, layers: set[str]) -> str:
    """Return the longest path that all share and that is no layer; `scope` where they share none."""
    if not paths:
        return scope
    parts = [path.split(".") for path in sorted(paths)]
    first, last = parts[0], parts[-1]
    length = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )
    path = ".".join(first[:length])
    while path in layers:
        path = path.rpartition(".")[0]
    return path if path.startswith(_inside(scope)) and path else scope


def _last_of_modules(
    nodes: list[ir.Node], scopes: dict[ir.Node, str], layers: set[str]
) -> dict[ir.Node, str]:
    """Return, for each module that is no layer, its last node that feeds another module."""
    last: dict[str, ir.Node] = {}
    for node in nodes:
        scope = scopes[node]
        if scope and scope not in layers and any(_leaves(user, scope, scopes) for user in node.successors()):
            last[scope] = node
    return {node: scope for scope, node in last.items()}


def _leaves(user: ir.Node, scope: str, scopes: dict[ir.Node, str]) -> bool:
    path = scopes.get(user, "")
    return path != scope and not path.startswith(f"{scope}.")


def _split_calls(nodes: list[ir.Node], scopes: dict[ir.Node, str], layers: set[str]) -> dict[ir.Node, str]:
    """Name the nodes that one torch call (gelu) became: `gelu` the last, `gelu.erf` another."""
    groups: dict[str, list[ir.Node]] = {}
    for node in nodes:
        if scopes[node] not in layers:
            groups.setdefault(_call(node), []).append(node)
    names: dict[ir.Node, str] = {}
    for call, group in groups.items():
        if len(group) > 1 and all(set(node.successors()) <= set(group) for node in group[:-1]):
            word = re.sub(r"_\d+$", "", call).strip("_")
            names |= {node: f"{word}.{_snake(node.op_type)}" for node in group[:-1]} | {group[-1]: word}
    return names


def _call(node: ir.Node) -> str:
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES_KEY, "['']"))
    return str(scopes[-1]) or node.name or ""


def _node_name(node: ir.Node, place: str, call: str | None) -> str:
    if _own_weight(node, place):
        return place
    parameter = next((v.name for v in node.inputs if v is not None and v.is_initializer() and v.name), None)
    if parameter is not None and not place:
        place = parameter  # `position.add`: what it is done with says more than the model's root
    deed = call or _deed(node)
    return f"{place}.{deed}" if place else deed


def _deed(node: ir.Node) -> str:
    """Say what a node does, in a word."""
    if node.op_type == "MatMul":
        if any(user.op_type == "Softmax" for user in _behind(node)):
            return "logits"
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        if producer is not None and producer.op_type == "Softmax":
            return "mix"
    if node.op_type == "Mul" and any(
        array is not None and array.size == 1 for array in map(constant_of, node.inputs)
    ):
        return "scale"
    return _snake(node.op_type)


def _snake(op_type: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", op_type).lower()


def _behind(node: ir.Node) -> Iterator[ir.Node]:
    """Yield what reads a node's output, also through sums (with biases, sizes, masks) and their layouts."""
    for user in node.successors():
        yield user
        if user.op_type in ("Add", "Reshape"):
            yield from _behind(user)


def _constant_name(node: ir.Node) -> str:
    array = constant_of(node.outputs[0])
    assert array is not None
    kind = "float" if array.dtype.kind == "f" else array.dtype.name.rstrip("0123456789")
    if array.size > _SHOWN_ELEMENTS or (array.size > 1 and kind == "float"):
        numbers = array.ravel().tolist()
        shown = (
            f"{_number(numbers[0])}_to_{_number(numbers[-1])}"
            if numbers[0] != numbers[-1]
            else _number(numbers[0])
        )
        return f"constant.{kind}s_{shown}_of_" + "x".join(map(str, array.shape))
    shown = "_".join(_number(number) for number in array.ravel().tolist())
    return f"constant.{kind}_{shown}" if array.ndim == 0 else f"constant.{kind}s_{shown}"


def _number(number: float | int | bool) -> str:
    if isinstance(number, float):
        return (
            np.format_float_positional(np.float32(number), trim="0")
            if 1e-4 <= abs(number) < 1e6
            else f"{number:.6g}"
        )
    return "end" if number == np.iinfo(np.int64).max else str(number)


def _unique(wanted: str, taken: set[str | None]) -> str:
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name
