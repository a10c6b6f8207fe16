"""Reading weights files without running code that they may hold."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from edgevit.errors import WeightsError

# Keys that training scripts wrap weights in, the better weights first.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_SHOWN = 6


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors`, `.pth`, `.pt` or `.bin` file, as float32.

    Raises:
        WeightsError: the file is missing, truncated, or a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"weights {path}: no such file. Paths in a recipe are relative to the recipe file."
        )
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"weights {path} ({path.stat().st_size:,} bytes): not a whole safetensors file ({error}). "
            "It is truncated or damaged; copy or download it again."
        ) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n", 1)[0]
        raise WeightsError(
            f"weights {path}: the pickle holds more than tensors ({reason}). edgevit never runs code from a "
            "weights file: load it where you trust it and save model.state_dict(), best as safetensors."
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError) as error:
        raise WeightsError(
            f"weights {path} ({path.stat().st_size:,} bytes): not a whole PyTorch file ({error}). "
            "It is truncated or damaged; copy or download it again."
        ) from error
    state = _unwrap(loaded)
    if state is None:
        raise WeightsError(
            f"weights {path}: expected a state dict (names to tensors), got {type(loaded).__name__}. "
            "Save model.state_dict()."
        )
    return state


def _unwrap(loaded: object) -> dict[str, Tensor] | None:
    if not isinstance(loaded, Mapping):
        return None
    for key in _WRAPPERS:
        if isinstance(loaded.get(key), Mapping):
            return _unwrap(loaded[key])
    if not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        return None
    return {key.removeprefix("module."): value for key, value in loaded.items()}


def check_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str, model: str
) -> None:
    """Compare names and shapes of a state dict with those that a model wants.

    Raises:
        WeightsError: names the missing, unknown and differently shaped tensors.
    """
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys())
    shapes = [
        f"{key}: {model} wants {_shape(expected[key])}, the file has {_shape(found[key])}"
        for key in sorted(expected.keys() & found.keys())
        if expected[key].shape != found[key].shape
    ]
    if not (missing or unknown or shapes):
        return
    parts = [f"weights {where} are not of model {model}:"]
    for title, names in (("other shape", shapes), ("missing", missing), ("unknown", unknown)):
        if names:
            parts.append(
                f"  {title} ({len(names)}): "
                + "; ".join(names[:_SHOWN])
                + (" ..." if len(names) > _SHOWN else "")
            )
    parts.append(
        "Name the model that these weights were trained with, or set model.options "
        "(img_size, num_classes, ...)."
    )
    raise WeightsError("\n".join(parts))


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"
