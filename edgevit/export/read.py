"""Read an ONNX file for a look at its graph: weights kept beside it stay unread."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgevit.errors import ExportError


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read the graph of an ONNX file, without external weights.

    Raises:
        ExportError: the file is missing, truncated, or no ONNX file.
    """
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise ExportError(
            f"{path}: cannot be read as ONNX ({error}). It is truncated or no ONNX file; export it again."
        ) from error
