"""The stages up to the slim model: each one's key (all that its output depends on) and how to make it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from edgevit.disk import sha256_file
from edgevit.errors import WeightsError
from edgevit.gpu import CPU, copied_to, on_gpu_or_cpu
from edgevit.images import Images
from edgevit.models.arch import Arch
from edgevit.models.layers import SlimViT
from edgevit.models.load import (
    ARCH_FILE,
    WEIGHTS_FILE,
    LoadedModel,
    ModelSource,
    load_model,
    load_saved,
    save_model,
)
from edgevit.pipeline.inputs import Inputs
from edgevit.pipeline.keys import code_sha256, images_key, library_versions
from edgevit.pipeline.stages import Stages
from edgevit.plan import Plan, plan_text
from edgevit.slim import SlimOptions, slim_model
from edgevit.store import JSON

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Saved:
    """A model in a stage's folder, loaded."""

    folder: Path
    loaded: LoadedModel
    sha256: str
    """Of its weights and dims."""


@dataclass(frozen=True)
class Archs:
    """Dims of both models."""

    dense: Arch
    slim: Arch


def load_dense(stages: Stages, inputs: Inputs) -> Saved:
    """Load the dense model and keep it as safetensors, so that later runs need neither timm nor a pickle."""
    source = inputs.source
    key: dict[str, JSON] = {
        # Where the hash names the model, its path does not matter.
        "model": None if source.weights is None and inputs.source_sha256 else source.name,
        "options": {name: _plain(value) for name, value in source.options.items()},
        "pretrained": source.pretrained,
        "source": inputs.source_sha256,
        "versions": library_versions(("timm", "torch", "safetensors")),
        "code": code_sha256("models", "preprocess"),
    }
    folder = stages.run("load", key, lambda folder: save_model(_load(source), folder))
    return open_saved(folder)


def _load(source: ModelSource) -> LoadedModel:
    """Load the model; an error of its weights file names the key of the recipe that names the file."""
    try:
        return load_model(source)
    except WeightsError as error:
        if source.weights is None:
            raise
        raise WeightsError(f"model.weights: {error}") from error


def _plain(value: object) -> JSON:
    data: JSON = json.loads(json.dumps(value))
    return data


def open_saved(folder: Path) -> Saved:
    """Load the model in a stage's folder."""
    sha256 = sha256_file(folder / WEIGHTS_FILE) + sha256_file(folder / ARCH_FILE)
    return Saved(folder, load_saved(folder), sha256)


def keep_plan(stages: Stages, plan: Plan) -> Path:
    """Keep the plan's canonical text."""
    text = plan_text(plan)
    folder = stages.run("plan", {"plan": text}, lambda folder: _write(folder / PLAN_FILE, text))
    return folder / PLAN_FILE


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def slim_dense(
    stages: Stages, dense: Saved, plan: Plan, options: SlimOptions, images: Images | None
) -> Saved:
    """Make the slim model that the plan describes."""
    key: dict[str, JSON] = {
        "dense": dense.sha256,
        "plan": plan_text(plan),
        "recover": options.recover,
        "fold_means": options.fold_means,
        "images": images_key(images),
        "versions": library_versions(("torch", "numpy", "safetensors")),
        "code": code_sha256("slim", "models", "plan", "preprocess"),
    }

    def make(folder: Path) -> None:
        source = dense.loaded

        def slimmed(device: torch.device) -> SlimViT:
            return slim_model(copied_to(source.model, device), plan, options, images, stages.progress).to(CPU)

        slim = on_gpu_or_cpu(slimmed, stages.progress)
        save_model(LoadedModel(slim, source.preprocess, source.labels, source.random_weights), folder)

    return open_saved(stages.run("slim", key, make))
