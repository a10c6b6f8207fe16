"""Take out of a traced graph what no runtime needs: size arithmetic, copies, products by one.

Every rule keeps the outputs bit for bit, and none knows what a Vision Transformer is. Initialisers that come
in are the model's parameters and stay so: nothing is folded into them, so that the file's weights can be
counted and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    RemoveUnusedNodesPass,
    TopologicalSortPass,
)
from onnxscript.optimizer import fold_constants

_BROADCASTS = {"Add", "Sub", "Mul", "Div"}
_LARGEST_CONSTANT = 65_536  # elements; constants come from sizes and token positions, which are far fewer


def clean_graph(model: ir.Model) -> None:
    """Rewrite a graph in place until no rule applies.

    The exporter's shapes on the values are trusted: where a size is known, the graph need not compute it.
    """
    parameters = set(model.graph.initializers)
    _take_transposes_into_weights(model.graph)
    _settle_sizes(model.graph)
    _replace_values(model.graph, _without_copy)
    _fold(model, parameters)
    _replace_values(model.graph, _without_copy)
    _replace_values(model.graph, _without_product_by_one)
    _replace_uniform_values(model.graph)
    _drop_needless_expands(model.graph)
    _merge_transposes(model.graph)
    _merge_reshapes(model.graph)
    _replace_values(model.graph, _without_copy)
    _halve_gelu_last(model.graph)
    RemoveUnusedNodesPass()(model)
    _fold(model, parameters)
    _share_constants(model.graph)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)


def constants_as_nodes(model: ir.Model, parameters: set[str]) -> None:
    """Turn initialisers that are no parameters into Constant nodes at the head of the graph."""
    graph = model.graph
    first = graph[0]
    for name in sorted(set(graph.initializers) - parameters):
        value = graph.initializers.pop(name)
        assert value.const_value is not None
        node = _constant(value.const_value.numpy())
        value.replace_all_uses_with(node.outputs[0])
        graph.insert_before(first, node)


def _share_constants(graph: ir.Graph) -> None:
    """Keep one Constant node for each content, all at the head of the graph."""
    first: dict[tuple[str, tuple[int, ...], bytes], ir.Node] = {}
    for node in list(graph):
        array = constant_of(node.outputs[0]) if node.op_type == "Constant" else None
        if array is None:
            continue
        key = (array.dtype.name, array.shape, array.tobytes())
        if key in first:
            node.outputs[0].replace_all_uses_with(first[key].outputs[0])
        else:
            first[key] = _constant(array)
            graph.insert_before(graph[len(first) - 1], first[key])
            node.outputs[0].replace_all_uses_with(first[key].outputs[0])
        graph.remove(node, safe=True)


def _constant(array: NDArray[np.generic]) -> ir.Node:
    node = ir.node("Constant", [], {"value": ir.tensor(array)})
    node.outputs[0].shape = ir.Shape(array.shape)
    node.outputs[0].dtype = ir.DataType.from_numpy(array.dtype)
    return node


def constant_of(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return what a value holds when that is written in the graph outside the parameters, else None."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "Constant":
        return None
    tensor = ir.convenience.get_const_tensor(producer.outputs[0])
    return None if tensor is None else tensor.numpy()


def _take_transposes_into_weights(graph: ir.Graph) -> None:
    """Store weights as the matrix product reads them, [in, out]; transposed when written, one at a time."""
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if (
            weight is None
            or weight.const_value is None
            or not weight.is_initializer()
            or len(weight.uses()) > 1
        ):
            continue
        permutation = _permutation(node)
        node.outputs[0].replace_all_uses_with(weight)
        graph.remove(node, safe=True)
        weight.const_value = _transposed(weight.const_value, permutation)
        weight.shape = ir.Shape(weight.const_value.shape)


def _transposed(tensor: ir.TensorProtocol, permutation: tuple[int, ...]) -> ir.LazyTensor:
    def make() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy().transpose(permutation)), name=tensor.name)

    sizes = tensor.numpy().shape
    shape = ir.Shape([sizes[axis] for axis in permutation])
    return ir.LazyTensor(make, tensor.dtype, shape, name=tensor.name)


def _settle_sizes(graph: ir.Graph) -> None:
    """Give Reshape and Expand constant sizes; the one symbolic size becomes -1, or 1 to broadcast."""
    for node in list(graph):
        sizes = _settled(node)
        if sizes is None:
            continue
        constant = _constant(np.array(sizes, np.int64))
        graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])
        node.attributes.pop("allowzero", None)


def _settled(node: ir.Node) -> list[int] | None:
    shape = node.outputs[0].shape
    if node.op_type not in ("Reshape", "Expand") or shape is None or len(shape) == 0:
        return None
    if node.op_type == "Reshape":
        return [size if isinstance(size, int) else -1 for size in shape] if _symbols(shape) <= 1 else None
    source = node.inputs[0].shape if node.inputs[0] is not None else None
    if source is None:
        return None
    padded: list[object] = [1] * (len(shape) - len(source)) + list(source)
    if any(not isinstance(size, int) and size != padded[axis] for axis, size in enumerate(shape)):
        return None
    return [size if isinstance(size, int) else 1 for size in shape]


def _symbols(shape: ir.Shape) -> int:
    return sum(not isinstance(size, int) for size in shape)


def _fold(model: ir.Model, parameters: set[str]) -> None:
    """Compute whatever depends on nothing but constants."""

    def constant_only(node: ir.Node) -> bool | None:
        return False if any(value is not None and value.name in parameters for value in node.inputs) else None

    # A library pass; its Constant nodes leave as initialisers, which `constants_as_nodes` turns back.
    fold_constants(
        model,
        input_size_limit=_LARGEST_CONSTANT,
        output_size_limit=_LARGEST_CONSTANT,
        should_fold=constant_only,
    )
    constants_as_nodes(model, parameters)
    RemoveUnusedNodesPass()(model)


def _replace_values(graph: ir.Graph, rule: Callable[[ir.Node], ir.Value | None]) -> None:
    """Replace the output of each node by what `rule` names, where it names something."""
    for node in list(graph):
        value = rule(node)
        if value is not None and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(value)
            graph.remove(node, safe=True)


def _without_copy(node: ir.Node) -> ir.Value | None:
    """Return the input of a node that hands it on as it is."""
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return None
    same_shape = _same_shape(source, node.outputs[0])
    match node.op_type:
        case "Identity":
            return source
        case "Cast":
            return source if source.dtype is not None and source.dtype == node.outputs[0].dtype else None
        case "Reshape" | "Expand":
            return source if same_shape else _size_as_it_was(node)
        case "Slice":  # a full one; only a negative step could reorder
            steps = constant_of(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
            forward = steps is not None and bool(np.all(steps > np.zeros_like(steps)))
            return source if same_shape and forward else None
        case "Transpose":
            return source if _permutation(node) == tuple(range(len(_permutation(node)))) else None
    return None


def _size_as_it_was(node: ir.Node) -> ir.Value | None:
    """Return the one size that a Reshape makes a list of again, after a Squeeze took it out of the list."""
    squeeze, sizes = _producer(node.inputs[0], "Squeeze"), constant_of(node.inputs[1])
    shape = _producer(squeeze.inputs[0], "Shape") if squeeze is not None else None
    if shape is None or sizes is None or sizes.tolist() not in ([-1], [1]) or "end" not in shape.attributes:
        return None
    single = shape.attributes.get_int("end", 0) - shape.attributes.get_int("start", 0) == 1
    return shape.outputs[0] if single else None


def _without_product_by_one(node: ir.Node) -> ir.Value | None:
    """Return the other factor of a product by ones, or the dividend of a quotient by ones."""
    if node.op_type not in ("Mul", "Div"):
        return None
    factors = [(1, 0), (0, 1)] if node.op_type == "Mul" else [(1, 0)]
    for one, other in factors:
        kept = node.inputs[other]
        if kept is not None and _uniform(node.inputs[one]) == 1 and _same_shape(kept, node.outputs[0]):
            return kept
    return None


def _replace_uniform_values(graph: ir.Graph) -> None:
    """Write values that are one number everywhere as constants: gathering from ones needs no indices."""
    for node in list(graph):
        value = node.outputs[0]
        if node.op_type == "Constant" or value.shape is None or _symbols(value.shape) or value.dtype is None:
            continue
        number = _uniform(value)
        if number is not None and not value.is_graph_output():
            array = np.full(
                [size for size in value.shape if isinstance(size, int)], number, value.dtype.numpy()
            )
            constant = _constant(array)
            graph.insert_before(node, constant)
            value.replace_all_uses_with(constant.outputs[0])


def _uniform(value: ir.Value | None) -> float | None:
    """Return the number that every element of a value has, where that can be seen."""
    array = constant_of(value)
    if array is not None:
        uniform = array.size > 0 and array.dtype.kind == "f" and bool((array == array.flat[0]).all())
        return float(array.flat[0]) if uniform else None
    producer = value.producer() if value is not None else None
    if producer is None:
        return None
    match producer.op_type:
        case "Expand" | "Slice" | "Gather" | "GatherElements" | "Reshape" | "Transpose" | "Unsqueeze":
            return _uniform(producer.inputs[0])
        case "Concat":
            numbers = {_uniform(part) for part in producer.inputs}
            return numbers.pop() if len(numbers) == 1 else None
    return None


def _drop_needless_expands(graph: ir.Graph) -> None:
    """Feed an elementwise node directly, where it broadcasts by itself what an Expand made larger."""
    for node in list(graph):
        if node.op_type not in _BROADCASTS:
            continue
        for index, other in ((0, 1), (1, 0)):
            expand, partner = _producer(node.inputs[index], "Expand"), node.inputs[other]
            if expand is not None and partner is not None and _same_shape(partner, node.outputs[0]):
                node.replace_input_with(index, expand.inputs[0])


def _merge_transposes(graph: ir.Graph) -> None:
    for node in list(graph):
        before = _producer(node.inputs[0], "Transpose") if node.op_type == "Transpose" else None
        if before is not None:
            first, second = _permutation(before), _permutation(node)
            node.replace_input_with(0, before.inputs[0])
            node.attributes.add(ir.AttrInt64s("perm", [first[axis] for axis in second]))


def _merge_reshapes(graph: ir.Graph) -> None:
    """Feed a Reshape to known sizes with what the Reshape before it got."""
    for node in list(graph):
        before = _producer(node.inputs[0], "Reshape") if node.op_type == "Reshape" else None
        if before is not None and constant_of(node.inputs[1]) is not None:
            node.replace_input_with(0, before.inputs[0])


def _halve_gelu_last(graph: ir.Graph) -> None:
    """Turn x * (0.5 * (1 + erf)) into (x * (1 + erf)) * 0.5, which ONNX Runtime fuses; halving is exact."""
    for node in list(graph):
        for index, other in ((0, 1), (1, 0)) if node.op_type == "Mul" else ():
            halved, x = _producer(node.inputs[index], "Mul"), node.inputs[other]
            if halved is None or len(halved.outputs[0].uses()) > 1 or _scalar(halved.inputs[0]) != 0.5:
                continue
            total = _producer(halved.inputs[1], "Add")
            if total is not None and _producer(total.inputs[0], "Erf") is not None:
                half = halved.inputs[0]
                halved.replace_input_with(0, x)
                node.replace_input_with(0, halved.outputs[0])
                node.replace_input_with(1, half)
                halved.outputs[0].shape, halved.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
                break


def _scalar(value: ir.Value | None) -> float | None:
    array = constant_of(value)
    return float(array.item()) if array is not None and array.ndim == 0 else None


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _permutation(node: ir.Node) -> tuple[int, ...]:
    attribute = node.attributes.get("perm")
    if attribute is not None:
        return tuple(attribute.as_ints())
    shape = node.outputs[0].shape
    return tuple(reversed(range(len(shape) if shape is not None else 0)))


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    return a.shape is not None and b.shape is not None and list(_sizes(a.shape)) == list(_sizes(b.shape))


def _sizes(shape: ir.Shape) -> Iterator[object]:
    """Yield sizes so that equal ones compare equal; an unknown one equals nothing."""
    for size in shape:
        yield size if isinstance(size, int) else size.value if size.value is not None else object()
