"""Make the int8 graph from the fp32 one: explicit Q/DQ around what integers compute, by NNCF.

Every zero point is 0, which is all that TensorRT takes, so one graph serves every runtime. Weights are int8
with a scale for each output channel, activations int8 with one scale; layer norms, softmax, GELU and the sums
of the residual stream stay in float.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx

from edgevit.errors import ExportError, ImagesError
from edgevit.export.parity import Batch
from edgevit.export.read import LARGEST_FILE_BYTES
from edgevit.export.silence import silence

_UNNAMED_PRODUCT = re.compile(r"(^|\.)mat_mul(_\d+)?$")  # `names.py` names all products of layers otherwise
_OFF = -1  # NNCF's word for "no SmoothQuant"


def quantise(fp32: Path, images: Sequence[Batch], out: Path, *, smooth: bool) -> None:
    """Write the int8 graph of an fp32 graph; the same inputs give the same bytes.

    Args:
        fp32: a graph for one image, or for any number of them.
        images: calibration images, [1, C, H, W] each: NNCF's statistics of transformers are wrong for more.
        out: the file to write.
        smooth: move scale from activations into weights first (SmoothQuant, Xiao et al. 2023, section 4).

    Raises:
        ExportError: NNCF is not installed or gives up, or the graph is too large or for several images.
        ImagesError: no images, or constant ones, which show no range.
    """
    _require_images(images)
    model = _read(fp32)
    nncf = _import_nncf()
    with silence():
        try:
            quantised = _run(nncf, model, images, smooth=smooth)
        except Exception as error:  # NNCF's errors share no class
            words = " ".join(str(error).split())
            raise ExportError(
                f"{fp32}: NNCF {nncf.__version__} could not quantise it ({type(error).__name__}: {words})."
                " Take int8 out of `precisions`, and report this with the recipe."
            ) from error
    _require_symmetric(quantised, fp32)
    _require_scales(quantised, fp32)
    out.write_bytes(quantised.SerializeToString(deterministic=True))


def require_nncf() -> None:
    """Make sure that NNCF is installed, before any long work.

    Raises:
        ExportError: it is not; the message has the command that installs it.
    """
    if find_spec("nncf") is None:
        raise _missing("no module named nncf")


def _missing(words: str) -> ExportError:
    return ExportError(
        f"int8: NNCF is not installed here ({words}). Get it with: pip install 'edgevit[int8]', or take int8"
        " out of `precisions`."
    )


def _run(
    nncf: ModuleType, model: onnx.ModelProto, images: Sequence[Batch], *, smooth: bool
) -> onnx.ModelProto:
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
    )

    name = model.graph.input[0].name
    advanced = AdvancedQuantizationParameters()
    if not smooth:
        off = AdvancedSmoothQuantParameters(convolution=_OFF, matmul=_OFF)
        advanced = AdvancedQuantizationParameters(smooth_quant_alphas=off)
    quantised: onnx.ModelProto = nncf.quantize(
        model,
        nncf.Dataset(images, lambda image: {name: image}),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric, which a transformer's default is not
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(names=_products_of_reductions(model)),
        advanced_parameters=advanced,
    )
    return quantised


def _products_of_reductions(model: onnx.ModelProto) -> list[str]:
    """Return the products that merge or choose tokens: sizes and means in 127 steps would not be those."""
    return [node.name for node in model.graph.node if _UNNAMED_PRODUCT.search(node.name)]


def _constants_as_weights_(graph: onnx.GraphProto) -> None:
    """Turn float constants of several numbers into initialisers, in place.

    What is added to a product (the sizes of tokens) NNCF takes for a bias, and looks for it among those.
    """
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > 1:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = node.output[0]
            graph.node.remove(node)


def _require_images(images: Sequence[Batch]) -> None:
    if not images:
        raise ImagesError(
            "int8 needs calibration images, got none. Add [calibration], which needs no labels."
        )
    if all(float(np.ptp(image)) == 0.0 for image in images):
        raise ImagesError(
            f"int8 needs calibration images that show the ranges of activations; all {len(images)} are of one"
            " colour. Choose images as the device will see them."
        )


def _read(fp32: Path) -> onnx.ModelProto:
    external = fp32.with_name(f"{fp32.name}.data")
    size = fp32.stat().st_size + (external.stat().st_size if external.is_file() else 0)
    if size > LARGEST_FILE_BYTES:  # NNCF hands the graph on as one message
        raise ExportError(
            f"{fp32}: NNCF takes graphs up to 1.5 GB, this one has {size / 1e9:.1f} GB. Take int8 out of"
            " `precisions`."
        )
    model = onnx.load(fp32)
    for tensor in model.graph.initializer:
        if not np.isfinite(onnx.numpy_helper.to_array(tensor)).all():
            raise ExportError(
                f"{fp32}: {tensor.name} holds NaN or infinity, so that int8 has no range. Use other weights."
            )
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if batch.HasField("dim_value") and batch.dim_value != 1:
        raise ExportError(
            f"{fp32}: int8 is calibrated one image at a time, and this graph takes {batch.dim_value} at once."
            ' Set export.batch = 1 or "dynamic", or take int8 out of `precisions`.'
        )
    _constants_as_weights_(model.graph)
    return model


def _require_symmetric(quantised: onnx.ModelProto, fp32: Path) -> None:
    """Make sure that the graph quantises at all, and with zero points of 0: TensorRT takes no others."""
    constants = {tensor.name: tensor for tensor in quantised.graph.initializer}
    nodes = [node for node in quantised.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    shifted = [n.name for n in nodes if np.any(onnx.numpy_helper.to_array(constants[n.input[2]]))]
    if not nodes or shifted:
        found = f"{shifted[0]} has another one" if shifted else "nothing is quantised"
        raise ExportError(
            f"{fp32}: expected NNCF to quantise it with zero points of 0, but {found}. This version of NNCF"
            " does it otherwise: install the one that edgevit[int8] names."
        )


def _require_scales(quantised: onnx.ModelProto, fp32: Path) -> None:
    """Make sure that every quantiser found a range: infinity has none."""
    constants = {tensor.name: tensor for tensor in quantised.graph.initializer}
    for node in quantised.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        scale = onnx.numpy_helper.to_array(constants[node.input[1]])
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ExportError(
                f"{fp32}: {node.input[0]} has no range on the calibration images (scale {scale.max():g}):"
                " it holds NaN or infinity there. Look at the weights and at the preprocessing."
            )


def _import_nncf() -> ModuleType:
    # NNCF reports each use to Google Analytics unless told that it runs in its makers' tests; read at import.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        with silence():
            import nncf
    except ImportError as error:
        raise _missing(str(error)) from error
    found: ModuleType = nncf
    return found
