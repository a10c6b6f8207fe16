"""The stage that trains the slim model, which goes on where it was interrupted."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from edgevit.images import Images
from edgevit.models.load import LoadedModel, save_model
from edgevit.pipeline.keys import code_sha256, images_key, library_versions
from edgevit.pipeline.models import Saved, open_saved
from edgevit.pipeline.stages import Stages
from edgevit.recipe import TuneSection
from edgevit.report.model import TuneFacts
from edgevit.store import JSON, canonical_json
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.distil import Distil, distil
from edgevit.tune.loop import Trained
from edgevit.tune.precision import resolve_precision

FACTS_FILE = "tune.json"
_CHECKPOINT = "training.safetensors"


class Tuned(NamedTuple):
    """The slim model after training, and what the training did."""

    model: Saved
    facts: TuneFacts


def distil_options(section: TuneSection) -> Distil:
    """Return what a recipe's [tune] asks for, with its precision decided for this machine."""
    training = section.training(resolve_precision(section.precision))
    return Distil(
        replace(training, ema=section.ema),
        temperature=section.temperature,
        hidden_states=section.hidden_states,
        logits=section.logits,
        labels=section.labels,
        smoothing=section.smoothing,
        drop_path=section.drop_path,
        augment=section.augment,
        validation=section.validation,
    )


def tune_slim(stages: Stages, dense: Saved, slim: Saved, options: Distil, images: Images) -> Tuned:
    """Train the slim model to imitate the dense one, or to know the labels."""
    key: dict[str, JSON] = {
        "dense": dense.sha256,
        "slim": slim.sha256,
        "options": _options_key(options),
        "images": images_key(images),
        "versions": library_versions(("accelerate", "torch", "numpy", "safetensors", "timm")),
        "code": code_sha256("tune", "training", "models", "preprocess", "report/model", "pipeline/tune"),
    }

    def make(folder: Path) -> None:
        belongs_to = hashlib.sha256(canonical_json(key).encode()).hexdigest()
        checkpoint = CheckpointFile(stages.store.work_path("tune", key) / _CHECKPOINT, belongs_to)
        start = slim.loaded
        model, trained = distil(dense.loaded.model, start.model, images, options, checkpoint, stages.progress)
        save_model(LoadedModel(model, start.preprocess, start.labels, start.random_weights), folder)
        facts = _facts(options, trained, len(images))
        (folder / FACTS_FILE).write_text(facts.model_dump_json(indent=1) + "\n")

    folder = stages.run("tune", key, make)
    return Tuned(open_saved(folder), TuneFacts.model_validate_json((folder / FACTS_FILE).read_bytes()))


def _options_key(options: Distil) -> JSON:
    """Return the options that decide the result."""
    found: dict[str, JSON] = asdict(options)
    training: dict[str, JSON] = asdict(options.training)
    del training["checkpoint_steps"]
    return found | {"training": training}


def _facts(options: Distil, trained: Trained, images: int) -> TuneFacts:
    training = options.training
    return TuneFacts(
        epochs=training.epochs,
        seconds=round(trained.seconds, 3),
        loss_first=trained.epoch_losses[0],
        loss_last=trained.epoch_losses[-1],
        precision=training.precision,
        seed=training.seed,
        images=images,
        labelled=options.labels > 0,
        validation=trained.scores,
        best_epoch=trained.best_epoch,
        processes=trained.processes,
    )
