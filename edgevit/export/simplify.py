"""Run onnxsim over an exported graph, between two parity checks."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass, ShapeInferencePass

from edgevit.errors import ExportError
from edgevit.export.links import onnx_link, torch_link
from edgevit.export.parity import TORCH_TO_ONNX, check_parity, limits_for
from edgevit.export.read import LARGEST_FILE_BYTES
from edgevit.export.rewrite import constants_as_nodes
from edgevit.export.silence import silence
from edgevit.models.layers import SlimViT

_PROBES = 4
# They turn MatMul + Add into Reshape + Gemm + Reshape without names: more nodes, and no module to tell from.
_NAMELESS = ["fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched"]


def simplify_checked(model: SlimViT, exported: ir.Model, batch: int) -> ir.Model:
    """Return onnxsim's version of an exported graph, proved equal to `model` before and after.

    Args:
        model: what was exported.
        exported: its graph, cleaned and named.
        batch: images per run that the graph takes.

    Raises:
        ExportError: onnxsim is not installed, gives up, or the model is above 1.5 GB.
        ParityError: the graph differs from the model, before or after onnxsim.
    """
    parameters = set(exported.graph.initializers)
    _check(model, exported, "the exported graph, before onnxsim", batch)
    simplified = ir.from_proto(_run_onnxsim(exported))
    # onnxsim lifts constants among the initialisers; only the model's parameters stay there.
    constants_as_nodes(simplified, parameters)
    RemoveUnusedNodesPass()(simplified)
    ShapeInferencePass()(simplified)
    ClearMetadataAndDocStringPass()(simplified)
    _check(model, simplified, "onnxsim's graph", batch)
    return simplified


def _run_onnxsim(exported: ir.Model) -> onnx.ModelProto:
    try:
        import onnxsim
    except ImportError as error:
        raise ExportError(
            f"export.simplify: onnxsim is not installed here ({error}). Get it with: pip install "
            "'edgevit[simplify]', or set export.simplify = false: edgevit's own graph leaves it little to do."
        ) from error
    weights = sum(
        value.const_value.nbytes for value in exported.graph.initializers.values() if value.const_value
    )
    if weights > LARGEST_FILE_BYTES:  # onnxsim takes one message
        raise ExportError(
            f"export.simplify: onnxsim takes models up to 1.5 GB, this one has {weights / 1e9:.1f} GB of "
            "weights. Set export.simplify = false."
        )
    try:
        with silence():
            simplified, _ = onnxsim.simplify(
                ir.to_proto(exported),
                skipped_optimizers=_NAMELESS,
                initializers_as_constants=False,  # the file's weights are to be the model's, one for one
            )
    except Exception as error:  # its passes raise what they like
        words = " ".join(str(error).split())
        raise ExportError(
            f"export.simplify: onnxsim gave up ({type(error).__name__}: {words}). Set export.simplify ="
            " false: edgevit's own graph leaves it little to do."
        ) from error
    result: onnx.ModelProto = simplified
    return result


def _check(model: SlimViT, graph: ir.Model, name: str, batch: int) -> None:
    """Run seeded noise through both; images would do no better, as every operator sees every input."""
    generator = np.random.default_rng(0)
    runs = max(1, _PROBES // batch)
    batches = [generator.standard_normal((batch, *model.arch.image), np.float32) for _ in range(runs)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        ir.save(graph, path)
        candidate = dataclasses.replace(onnx_link(path), name=name)
        check_parity(torch_link(model), candidate, batches, limits_for(model.arch, TORCH_TO_ONNX), model.arch)
