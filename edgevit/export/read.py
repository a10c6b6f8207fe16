"""How large an ONNX file may be, and how it is read for a look at its graph: external weights stay unread."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgevit.errors import ExportError

LARGEST_FILE_BYTES = 1_500_000_000
"""Of one ONNX file, with the weights in it: protobuf refuses messages above 2 GB, and runtimes hold a whole
message in memory beside their own copy."""


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
