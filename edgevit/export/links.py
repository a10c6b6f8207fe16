"""The links of the chain of custody that run here: the torch model, and an ONNX file in ONNX Runtime."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edgevit.errors import ExportError
from edgevit.export.parity import Batch, Link, Runner
from edgevit.models.layers import SlimViT

if TYPE_CHECKING:
    import onnxruntime as ort


def torch_link(model: SlimViT) -> Link:
    """Return the link that runs a torch model, in float32, block outputs included."""

    def run(images: Batch) -> Batch:
        with torch.inference_mode():
            logits: Batch = model(torch.from_numpy(images)).numpy()
        return logits

    return Link("the torch model", run, lambda block: _torch_block(model, block))


def _torch_block(model: SlimViT, block: str) -> Runner:
    def run(images: Batch) -> Batch:
        seen: list[Tensor] = []

        def keep(module: nn.Module, given: object, put_out: Tensor | tuple[Tensor, ...]) -> None:
            seen.append(put_out[0] if isinstance(put_out, tuple) else put_out)

        hook = model.get_submodule(block).register_forward_hook(keep)
        try:
            with torch.inference_mode():
                model(torch.from_numpy(images))
        finally:
            hook.remove()
        tokens: Batch = seen[0].numpy()
        return tokens

    return run


def onnx_link(path: Path, threads: int = 0) -> Link:
    """Return the link that runs an ONNX file in ONNX Runtime on the CPU, block outputs included.

    Args:
        path: a file that edgevit exported.
        threads: of ONNX Runtime; 0 for all cores.
    """
    session = open_graph(onnx.load(path, load_external_data=False), path, threads)

    @cache
    def with_blocks() -> ort.InferenceSession:
        proto = onnx.load(path, load_external_data=False)
        proto.graph.output.extend(value for value in proto.graph.value_info if _is_block(value.name))
        return open_graph(proto, path, threads)

    def block_runner(block: str) -> Runner:
        return lambda images: _run(with_blocks(), block, images)

    return Link(path.name, lambda images: _run(session, session.get_outputs()[0].name, images), block_runner)


def cut_after(path: Path, block: str, out: Path) -> None:
    """Write a diagnostic copy of an exported ONNX file whose one output is what leaves `block` (`blocks.3`).

    Any backend can build and run it, which shows what an artefact computes in the middle.

    Raises:
        ExportError: the file has no such block.
    """
    proto = onnx.load(path, load_external_data=False)
    found = [value for value in proto.graph.value_info if value.name == block]
    if not found:
        blocks = sum(_is_block(value.name) for value in proto.graph.value_info)
        raise ExportError(f"{path}: expected a block blocks.0..blocks.{blocks - 1}, got {block!r}.")
    del proto.graph.output[:]
    proto.graph.output.append(_in_float(proto.graph, found[0]))
    data = path.with_name(f"{path.name}.data")
    if data.is_file() and out.parent.resolve() != path.parent.resolve():
        shutil.copyfile(data, out.with_name(data.name))
    out.write_bytes(proto.SerializeToString(deterministic=True))


def _in_float(graph: onnx.GraphProto, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Return a value in fp32, which is what every runtime's session gives back: cast in an fp16 graph."""
    if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
        return value
    shown = onnx.ValueInfoProto()
    shown.CopyFrom(value)
    shown.name, shown.type.tensor_type.elem_type = f"{value.name}.shown", onnx.TensorProto.FLOAT
    graph.node.append(onnx.helper.make_node("Cast", [value.name], [shown.name], to=onnx.TensorProto.FLOAT))
    return shown


def _is_block(name: str) -> bool:
    head, _, index = name.rpartition(".")
    return head == "blocks" and index.isdigit()


def open_graph(
    proto: onnx.ModelProto, path: Path, threads: int, *, integer: bool = True
) -> ort.InferenceSession:
    """Load a graph into ONNX Runtime on the CPU.

    Args:
        proto: the graph.
        path: a file beside which its external weights lie.
        threads: of ONNX Runtime; 0 for all cores.
        integer: compute between quantisers in integers where there are kernels; else in float, as written.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
    )
    if not integer:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(session: Any, output: str, images: Batch) -> Batch:
    name = session.get_inputs()[0].name
    (found,) = session.run([output], {name: images})
    return np.asarray(found, np.float32)


def first_not_finite(path: Path, image: Batch) -> str:
    """Return the name of the first node that makes NaN or infinity of an image, [1, C, H, W].

    Raises:
        ValueError: all that the graph computes of it is finite.
    """
    proto = onnx.load(path, load_external_data=False)
    floats = {
        name: node.name
        for node in proto.graph.node
        for name in node.output
        if node.op_type not in ("Constant", "ConstantOfShape", "Shape")
    }
    shown = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in floats if name not in shown)
    session = open_graph(proto, path, 0)
    found = session.run(list(floats), {session.get_inputs()[0].name: image})
    for name, value in zip(floats.values(), found, strict=True):
        if not np.isfinite(value).all():
            return str(name)
    raise ValueError(f"{path}: every value is finite")
