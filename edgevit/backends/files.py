"""Which files an artefact is made of, for whoever copies it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from edgevit.errors import BackendError

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
    if artefact.suffix != ".onnx":
        return (name,)
    try:
        return (name, *external_files(artefact))
    except BackendError:
        raise
    except Exception as exc:  # protobuf's classes share only Exception
        raise BackendError(
            f"{artefact}: expected an ONNX file, got {artefact.stat().st_size} bytes that are none"
            f" ({' '.join(str(exc).split())}). Build it again."
        ) from exc


def external_files(onnx: Path) -> list[PurePosixPath]:
    """Return the files, relative to the model's folder, that hold weights outside the ONNX file, sorted.

    Raises:
        BackendError: one of them is not beside the file. What cannot be parsed raises protobuf's own errors.
    """
    from onnx import TensorProto, load

    graph = load(onnx, load_external_data=False).graph
    locations = {
        PurePosixPath(entry.value)
        for tensor in graph.initializer
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
