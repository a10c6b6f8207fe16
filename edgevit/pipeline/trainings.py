"""What the stages that train have in common: their key, the checkpoint they go on from, and their facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from edgevit.images import Images
from edgevit.pipeline.keys import code_sha256, images_key, library_versions, value_sha256
from edgevit.pipeline.stages import Stages
from edgevit.report.model import TrainingFacts
from edgevit.store import JSON
from edgevit.training import Training
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.distil import Distil
from edgevit.tune.loop import Trained
from edgevit.tune.search import Search

_CHECKPOINT = "training.safetensors"
_LIBRARIES = ("accelerate", "torch", "numpy", "safetensors", "timm")
_ROOMS = ("tune", "training", "models", "preprocess", "report/model", "pipeline/trainings")


def training_key(options: Distil | Search, images: Images, room: str) -> dict[str, JSON]:
    """Return what any training depends on, beside the models.

    Args:
        options: of the training; what changes no result is left out.
        images: what is learnt from.
        room: the module of the stage, whose code counts, too.
    """
    return {
        "kind": type(options).__name__,
        "options": _deciding(asdict(options)),
        "images": images_key(images),
        "versions": library_versions(_LIBRARIES),
        "code": code_sha256(*_ROOMS, room),
    }


def _deciding(options: dict[str, JSON]) -> dict[str, JSON]:
    """Return the options without the one that changes no result, at any depth."""
    return {
        name: _deciding(value) if isinstance(value, dict) else value
        for name, value in options.items()
        if name != "checkpoint_steps"
    }


def run_training(
    stages: Stages,
    stage: str,
    key: Mapping[str, JSON],
    train: Callable[[Path, CheckpointFile], None],
    *,
    of: str = "",
) -> Path:
    """Run a stage that trains, and return its folder.

    Args:
        stages: runs it.
        stage: its name in the store.
        key: everything its output depends on.
        train: writes the output into a folder; it goes on from the checkpoint if it was interrupted.
        of: what it was run for, in the report.
    """
    belongs_to = value_sha256(key)

    def make(folder: Path) -> None:
        train(folder, CheckpointFile(stages.store.work_path(stage, key) / _CHECKPOINT, belongs_to))

    return stages.run(stage, key, make, of=of)


def training_facts(training: Training, trained: Trained, images: Images) -> TrainingFacts:
    """Return what a report says of any training."""
    return TrainingFacts(
        epochs=training.epochs,
        seconds=round(trained.seconds, 3),
        loss_first=trained.epoch_losses[0],
        loss_last=trained.epoch_losses[-1],
        precision=training.precision,
        seed=training.seed,
        images=len(images),
        processes=trained.processes,
    )
