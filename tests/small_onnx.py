"""A classifier of one layer norm and one linear layer, as an ONNX file and as NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

CLASSES = 5
_WEIGHT = np.random.default_rng(0).standard_normal((12, CLASSES)).astype(np.float32)
_SCALE = np.linspace(0.5, 1.5, 12, dtype=np.float32)


def write_classifier(path: Path, *, batch: int | str = 1, external: bool = False) -> Path:
    """Write the classifier for images [batch, 3, 2, 2]; a batch that is text is dynamic.

    Its nodes have no names, as a file from another exporter may have none.
    """
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("LayerNormalization", ["flat", "scale"], ["normed"], axis=-1, epsilon=1e-6),
        helper.make_node("MatMul", ["normed", "weight"], ["product"]),
        helper.make_node("Tanh", ["product"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [batch, 3, 2, 2])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(_WEIGHT, "weight"), numpy_helper.from_array(_SCALE, "scale")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = {"save_as_external_data": True, "location": "weights.data", "size_threshold": 0}
    onnx.save(model, path, **(options if external else {}))
    return path


def classify(images: np.ndarray) -> np.ndarray:
    """Compute in float64 what the classifier computes."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    centred = flat - flat.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
    return np.tanh(normed * _SCALE @ _WEIGHT)


def draw_images(count: int) -> np.ndarray:
    """Draw seeded images [count, 3, 2, 2]."""
    return np.random.default_rng(1).standard_normal((count, 3, 2, 2)).astype(np.float32)
