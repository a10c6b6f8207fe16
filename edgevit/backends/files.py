"""Which files an artefact is made of, for whoever copies it, and ONNX files read with errors in words."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edgevit.errors import BackendError

if TYPE_CHECKING:
    from onnx import ModelProto

MODEL_SUFFIXES = (".xml", ".onnx", ".engine")
"""How the files that runtimes load end, by which one is found in a folder."""


def artefact_files(artefact: Path) -> tuple[PurePosixPath, ...]:
    """Return the files that are loaded with `artefact`, itself first, relative to its folder.

    Raises:
        BackendError: an ONNX file cannot be read, or has its weights elsewhere.
    """
    name = PurePosixPath(artefact.name)
    if artefact.suffix == ".xml":
        return (name, name.with_suffix(".bin"))
    return (name, *external_files(artefact)) if artefact.suffix == ".onnx" else (name,)


def external_files(onnx: Path) -> list[PurePosixPath]:
    """Return the files, relative to the model's folder, that hold weights outside the ONNX file, sorted.

    Raises:
        BackendError: the file cannot be read, or one of them is not beside it.
    """
    from onnx import TensorProto

    locations = {
        PurePosixPath(entry.value)
        for tensor in read_model(onnx).graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in locations:
        if location.is_absolute() or ".." in location.parts:
            raise BackendError(
                f"{onnx}: expected external data beside the file, got {location}. Export it again."
            )
    return sorted(locations)


def read_model(onnx: Path, *, weights: bool = False) -> ModelProto:
    """Read an ONNX file; weights that lie in files beside it only where they are asked for.

    Raises:
        BackendError: the file is missing, truncated, or no ONNX file.
    """
    from onnx import load

    try:
        return load(onnx, load_external_data=weights)
    except OSError as exc:
        raise BackendError(f"{onnx}: cannot be read ({exc.strerror}). Export or build it again.") from exc
    except Exception as exc:  # protobuf's classes share only Exception
        raise BackendError(
            f"{onnx}: cannot be read as ONNX ({' '.join(str(exc).split())}). The file"
            f" ({onnx.stat().st_size} bytes) is truncated or no ONNX file: export or build it again."
        ) from exc
