"""Write a model as an ONNX file: traced by torch, cleaned, named for people, the same bytes every time.

Shapes: B batch, C channels, H and W height and width of the image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass, ShapeInferencePass
from torch.export import Dim

from edgevit.errors import ExportError
from edgevit.export.names import name_graph
from edgevit.export.opset import OLDEST, to_older_opset
from edgevit.export.read import LARGEST_FILE_BYTES
from edgevit.export.rewrite import clean_graph, constants_as_nodes
from edgevit.export.silence import silence
from edgevit.models.layers import SlimViT
from edgevit.version import __version__

INPUT_NAME = "image"
OUTPUT_NAME = "logits"
BATCH_NAME = "batch"

OPSETS = range(OLDEST, 24)
_TORCH_OLDEST = 18  # torch's exporter writes nothing older


@dataclass(frozen=True)
class ExportOptions:
    """The form of an ONNX file."""

    opset: int = 18
    """13..23."""
    batch: int | None = 1
    """Images per run, or None for any number."""
    simplify: bool = False
    """Run onnxsim over the graph, between two parity checks."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Written to the file's metadata: preprocessing, labels, hashes, versions."""


def export_onnx(model: SlimViT, out: Path, options: ExportOptions) -> None:
    """Write `model` to `out`: input `image` [B, C, H, W] float32, output `logits` [B, classes].

    Weights above 1.5 GB go to one file beside it, `<name>.onnx.data`. The same model, options and versions
    give the same bytes in every process and folder. Peak memory is the model's plus three times its
    weights (a tenth, with the file beside it) and 0.3 GB.

    Raises:
        ValueError: options that no ONNX file can have.
        ExportError: the graph cannot be written with this opset, or not simplified.
        ParityError: `options.simplify`, and onnxsim's graph gives other outputs.
    """
    if options.opset not in OPSETS:
        raise ValueError(f"opset: expected {OPSETS.start}..{OPSETS.stop - 1}, got {options.opset}")
    if options.batch is not None and options.batch < 1:
        raise ValueError(f"batch: expected 1 or more, or None for any, got {options.batch}")
    with silence():
        graph_model = _trace(model, options)
        # Constants of the model's forms (windows, their masks) come among the weights.
        constants_as_nodes(graph_model, {name for name, _ in model.named_parameters()})
        _finish(graph_model, options)
    if options.simplify:
        from edgevit.export.simplify import simplify_checked

        graph_model = simplify_checked(model, graph_model, options.batch or 1)
        _describe(graph_model, options)
    _save(graph_model, out)


def _trace(model: SlimViT, options: ExportOptions) -> ir.Model:
    """Let torch trace and translate the model."""
    # torch takes a batch of 1 for a constant, so a dynamic one is traced with 2.
    image = torch.zeros(options.batch or 2, *model.arch.image)
    dynamic = ({0: Dim.DYNAMIC},) if options.batch is None else None
    with torch.no_grad():
        traced = torch.export.export(model, (image,), dynamic_shapes=dynamic)
        program = torch.onnx.export(
            traced,
            (image,),
            dynamo=True,
            opset_version=max(options.opset, _TORCH_OLDEST),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            optimize=False,  # its passes merge equal weights of different blocks under one name
            verbose=False,
        )
    assert program is not None
    return program.model


def _finish(model: ir.Model, options: ExportOptions) -> None:
    """Clean, name and describe a traced graph, in place."""
    graph = model.graph
    _name_batch(graph)
    clean_graph(model)
    name_graph(graph)
    if options.opset < _TORCH_OLDEST:
        to_older_opset(graph, options.opset)
        RemoveUnusedNodesPass()(model)
    _strip(model)
    if dict(graph.opset_imports) != {"": options.opset}:
        raise ExportError(
            f"opset: expected {options.opset}, torch {torch.__version__} wrote {dict(graph.opset_imports)}."
            " Set export.opset to one that it writes."
        )
    ShapeInferencePass()(model)
    _describe(model, options)


def _strip(model: ir.Model) -> None:
    """Take out what torch noted about itself and about the source: stack traces, paths, its own names."""
    ClearMetadataAndDocStringPass()(model)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()  # the pass sees nodes and what they put out
        value.doc_string = None
        if value.const_value is not None:
            value.const_value.metadata_props.clear()


def _name_batch(graph: ir.Graph) -> None:
    """Give the one symbolic size, and its multiples, a name; torch numbers its symbols for each trace."""
    symbols = {str(size) for size in graph.inputs[0].shape or () if not isinstance(size, int)}
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        shape = value.shape
        for axis, size in enumerate(shape if shape is not None else ()):
            named = str(size)
            for symbol in symbols:
                named = re.sub(rf"\b{symbol}\b", BATCH_NAME, named)
            if shape is not None and named != str(size):
                shape[axis] = named


def _describe(model: ir.Model, options: ExportOptions) -> None:
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", options.opset)])
    model.producer_name, model.producer_version = "edgevit", __version__
    model.graph.name = "edgevit"
    model.metadata_props.clear()
    model.metadata_props.update(sorted(options.metadata.items()))


def _save(model: ir.Model, out: Path) -> None:
    weights = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    data = out.with_name(f"{out.name}.data")
    data.unlink(missing_ok=True)  # of an earlier export under this name
    ir.save(model, out, external_data=data.name if weights > LARGEST_FILE_BYTES else None)
