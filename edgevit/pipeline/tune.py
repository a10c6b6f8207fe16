"""The stage that trains the slim model, which goes on where it was interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from edgevit.images import Images
from edgevit.models.load import save_model
from edgevit.pipeline.models import Saved, open_saved
from edgevit.pipeline.stages import Stages
from edgevit.pipeline.trainings import run_training, training_facts, training_key
from edgevit.plan import Plan
from edgevit.recipe import TuneSection
from edgevit.report.model import TuneFacts
from edgevit.store import JSON
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.distil import Distil, distil
from edgevit.tune.precision import resolve_precision

FACTS_FILE = "tune.json"


class Tuned(NamedTuple):
    """The slim model after training, and what the training did."""

    model: Saved
    facts: TuneFacts


def distil_options(section: TuneSection, plan: Plan) -> Distil:
    """Return what a recipe's [tune] asks for, with its precision decided for this machine.

    Args:
        section: [tune].
        plan: what remained, so that the channels of both models' streams can be compared.
    """
    training = section.training(resolve_precision(section.precision))
    return Distil(
        replace(training, ema=section.ema),
        temperature=section.temperature,
        hidden_states=section.hidden_states,
        logits=section.logits,
        labels=section.labels,
        smoothing=section.smoothing,
        drop_path=section.drop_path,
        least_area=section.least_area,
        augment=section.augment,
        validation=section.validation,
        channels=plan.channels,
    )


def tune_slim(stages: Stages, dense: Saved, slim: Saved, options: Distil, images: Images) -> Tuned:
    """Train the slim model to imitate the dense one, or to know the labels.

    Args:
        stages: runs it.
        dense: what is imitated.
        slim: where the training starts.
        options: what is learnt, and how.
        images: labelled where labels count.

    Raises:
        ImagesError: labels that are missing or do not fit, or an image that cannot be read.
        TrainingError: a loss is not finite; the last checkpoint is kept.
        WeightsError: the checkpoint, or what the training left, is damaged.
        OutputError: the build directory cannot be written.
        DiskFullError: no space left.
    """
    key: dict[str, JSON] = {
        "dense": dense.sha256,
        "slim": slim.sha256,
        **training_key(options, images, "pipeline/tune"),
    }

    def train(folder: Path, checkpoint: CheckpointFile) -> None:
        models = dense.loaded.model, slim.loaded.model
        model, trained = distil(*models, images, options, checkpoint, stages.progress)
        save_model(replace(slim.loaded, model=model), folder)
        facts = TuneFacts(
            labelled=options.labels > 0,
            validation=trained.scores,
            best_epoch=trained.best_epoch,
            **dict(training_facts(options.training, trained, images)),
        )
        (folder / FACTS_FILE).write_text(facts.model_dump_json(indent=1) + "\n")

    folder = run_training(stages, "tune", key, train)
    return Tuned(open_saved(folder), TuneFacts.model_validate_json((folder / FACTS_FILE).read_bytes()))
