"""Write a Q/DQ graph in the form that ONNX Runtime's integer kernels take; the numbers stay the same.

As NNCF writes it, DeiT-T ran three times slower than fp32 on an AMD Zen 4: ONNX Runtime found integer kernels
for 12 of its 96 matrix products, because it

- takes uint8 factors on the left on x86, and turns int8 ones into them only where nobody else reads them;
- merges each product with the sum of its bias into a float Gemm before it looks for integer kernels.

So activations become uint8 with a zero point of 128, which are the same numbers shifted, and biases get the
shape [1, 1, n], which ONNX Runtime does not merge.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgevit.backends.files import read_model

if TYPE_CHECKING:
    from onnx import GraphProto

_MIDDLE = 128


def write_integer_form(onnx_file: Path, out: Path) -> None:
    """Write the graph `onnx_file` to `out` with uint8 activations and biases that stay apart.

    Raises:
        BackendError: the file cannot be read.
    """
    from onnx import TensorProto

    model = read_model(onnx_file, weights=True)
    _shift_activations_(model.graph)
    _set_biases_apart_(model.graph)
    # Types and shapes that were noted for the tensors would contradict the new ones; blocks keep theirs.
    noted = [
        value for value in model.graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    constants = {tensor.name for tensor in model.graph.initializer}
    del model.graph.value_info[:]
    model.graph.value_info.extend(value for value in noted if value.name not in constants)
    out.write_bytes(model.SerializeToString(deterministic=True))


def _shift_activations_(graph: GraphProto) -> None:
    """Make every int8 activation uint8: zero points of Q nodes, which their DQ nodes share, become 128."""
    from onnx import TensorProto, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        zero = constants.get(node.input[2]) if node.op_type == "QuantizeLinear" else None
        if zero is not None and zero.data_type == TensorProto.INT8:
            shifted = (numpy_helper.to_array(zero).astype(np.int16) + _MIDDLE).astype(np.uint8)
            zero.CopyFrom(numpy_helper.from_array(shifted, zero.name))


def _set_biases_apart_(graph: GraphProto) -> None:
    """Give biases that are added to products of rank 3 and more two leading dims of 1."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    rank = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    products = {node.output[0] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type != "Add" or not any(rank.get(name, 0) > 2 for name in products & set(node.input)):
            continue
        for name in node.input:
            bias = constants.get(name)
            if bias is not None and len(bias.dims) == 1 and uses[name] == 1:
                bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias)[None, None], bias.name))
