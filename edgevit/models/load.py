"""Loading a model by timm name or from a directory that edgevit saved, and saving a slim one."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import nn

from edgevit.errors import RecipeError, WeightsError
from edgevit.models.arch import Arch, arch_from_json, arch_to_json
from edgevit.models.layers import SlimViT
from edgevit.models.weights import check_weights, read_weights
from edgevit.preprocess import Preprocess, preprocess_from_json, preprocess_to_json
from edgevit.schema import OptionValue, nearest

WEIGHTS_FILE = "model.safetensors"
ARCH_FILE = "arch.json"

_MODULES = ["vision_transformer", "deit", "eva", "swin_transformer", "cct"]
"""Where timm defines the models that edgevit reads; others are not worth suggesting."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a timm name or a directory that edgevit saved, and its weights."""

    name: str
    weights: Path | None = None
    pretrained: bool = False
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    directory: Path | None = None
    """What edgevit saved, weights and dims; timm is not asked then."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be slimmed, with the preprocessing and the labels that it was trained with."""

    model: SlimViT
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    random_weights: bool


def load_model(source: ModelSource) -> LoadedModel:
    """Load a model as a dense `SlimViT`.

    Raises:
        RecipeError: an unknown name, or options that timm does not take.
        UnsupportedModelError: a model of no family or form that edgevit knows.
        WeightsError: weights that cannot be read or are of another model.
    """
    return _load_timm(source) if source.directory is None else load_saved(source.directory)


def save_model(loaded: LoadedModel, directory: Path) -> None:
    """Write `model.safetensors` and `arch.json`: enough to load the model without timm, pickle or recipe."""
    state = {key: value.contiguous() for key, value in loaded.model.state_dict().items()}
    (directory / WEIGHTS_FILE).write_bytes(save(state))
    data = arch_to_json(loaded.model.arch) | {
        "preprocess": preprocess_to_json(loaded.preprocess),
        "labels": list(loaded.labels) if loaded.labels else None,
        "random_weights": loaded.random_weights,
    }
    (directory / ARCH_FILE).write_text(json.dumps(data, indent=1) + "\n")


def load_saved(directory: Path) -> LoadedModel:
    """Load what `save_model` wrote.

    Raises:
        WeightsError: a file is missing, damaged or of another schema.
    """
    arch_file, weights_file = directory / ARCH_FILE, directory / WEIGHTS_FILE
    try:
        found: object = json.loads(arch_file.read_text())
        weights = load_file(weights_file)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(f"model {directory}: cannot be read ({error}). Build it again.") from error
    read = _read_arch_file(found, arch_file)
    model = SlimViT(read.arch).eval()
    check_weights(weights, model.state_dict(), str(weights_file), str(arch_file))
    model.load_state_dict(weights)
    return LoadedModel(model, read.preprocess, read.labels, read.random_weights)


@dataclass(frozen=True)
class _ArchFile:
    arch: Arch
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    random_weights: bool


def _read_arch_file(found: object, where: Path) -> _ArchFile:
    try:
        if not isinstance(found, dict):
            raise TypeError(f"expected a JSON object, got {type(found).__name__}")
        data: dict[str, Any] = dict(found)
        preprocess = preprocess_from_json(data.pop("preprocess"))
        labels, random_weights = data.pop("labels"), bool(data.pop("random_weights"))
        return _ArchFile(
            arch_from_json(data, str(where)), preprocess, tuple(labels) if labels else None, random_weights
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{where}: incomplete or damaged ({error!r}). Build the model again.") from error


def _load_timm(source: ModelSource) -> LoadedModel:
    from edgevit.models.families import from_timm

    model = _create(source)
    if source.weights is not None:
        _load_weights(model, source.name, source.weights)
    slim = from_timm(model.eval(), source.name)
    random_weights = source.weights is None and not source.pretrained
    return LoadedModel(slim, _preprocess(model, slim), _labels(model), random_weights)


def _create(source: ModelSource) -> nn.Module:
    import timm

    import edgevit.models.cct  # registers its models  # noqa: F401

    if not timm.is_model(source.name):
        close = nearest(source.name.split("/")[-1], timm.list_models(module=_MODULES))
        hint = (
            f" Did you mean {', '.join(close)}?" if close else " `timm.list_models('*vit*')` lists the names."
        )
        raise RecipeError(
            f"model.name: timm knows no model {source.name!r}, and edgevit saved no such directory.{hint}"
        )
    options = dict(source.options)
    torch.manual_seed(0)  # random weights, where the recipe asks for them, are the same in every build
    try:
        model: nn.Module = timm.create_model(source.name, pretrained=source.pretrained, **options)
    except (OSError, RuntimeError, TypeError, AssertionError, ValueError, ArithmeticError) as error:
        if source.pretrained and isinstance(error, OSError | RuntimeError):
            raise WeightsError(
                f"model.pretrained: timm could not fetch the weights of {source.name} ({error}). "
                'Without a network, download them elsewhere and give model.weights = "FILE.safetensors".'
            ) from error
        given = ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
        raise RecipeError(
            f"model.options: timm cannot make {source.name} with {given or 'its own dims'}:"
            f" {str(error) or type(error).__name__}. Options are arguments of this model in timm: correct"
            " what it refuses, or take it out."
        ) from error
    return model


def _load_weights(model: nn.Module, name: str, path: Path) -> None:
    """Load a weights file strictly, after timm's own renaming of published checkpoints."""
    from edgevit.models.families import published_renaming

    found = read_weights(path)
    expected = model.state_dict()
    _check_patch(found, expected, name, path)
    if found.keys() != expected.keys() or _shapes_differ(found.get("pos_embed"), expected.get("pos_embed")):
        # A layout that timm does not rename stays as it is: the comparison below says what differs.
        with contextlib.suppress(KeyError, RuntimeError, AttributeError, IndexError):
            found = published_renaming(model)(dict(found), model)
    check_weights(found, expected, str(path), name)
    model.load_state_dict(found)


def _check_patch(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], name: str, path: Path
) -> None:
    """Refuse weights of another patch size, which timm would resample without a word."""
    key = "patch_embed.proj.weight"
    theirs, ours = found.get(key), expected.get(key)
    if theirs is None or ours is None or theirs.dim() != ours.dim() or theirs.shape[2:] == ours.shape[2:]:
        return
    raise WeightsError(
        f"weights {path} are of patch size {theirs.shape[-1]}, {name} has {ours.shape[-1]}."
        f" Name the model with patch size {theirs.shape[-1]}, or take weights that were trained for this one."
    )


def _shapes_differ(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.shape != b.shape


def _preprocess(model: nn.Module, slim: SlimViT) -> Preprocess:
    """Turn timm's data config into a preprocessing for this model's image size."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    channels, height, width = slim.arch.image
    edge = math.floor(min(height, width) / config["crop_pct"])
    square = height == width and config.get("crop_mode", "center") == "center"
    scaled = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if channels == 1 and len(mean) == 3:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    return Preprocess(
        resize=edge if square else scaled,
        crop=(height, width),
        interpolation=config["interpolation"],
        mean=mean,
        std=std,
        channels=channels,
    )


def _labels(model: nn.Module) -> tuple[str, ...] | None:
    """Return the ImageNet-1k label names for a model whose classifier is the pretrained one."""
    from timm.data import ImageNetInfo

    config = getattr(model, "pretrained_cfg", {})
    classes = getattr(model, "num_classes", 0)
    if classes != 1000 or config.get("num_classes") != 1000 or config.get("label_names"):
        return tuple(config["label_names"]) if config.get("label_names") else None
    return tuple(ImageNetInfo().label_descriptions())
