"""The stages of the methods that learn: each goes on where it was interrupted, and leaves scores."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgevit.disk import sha256_file
from edgevit.images import Images
from edgevit.methods import learning_methods
from edgevit.models.load import LoadedModel, save_model
from edgevit.pipeline.inputs import Inputs
from edgevit.pipeline.keys import code_sha256, images_key, library_versions
from edgevit.pipeline.models import Saved, open_saved
from edgevit.pipeline.stages import Stages
from edgevit.report.model import SearchFacts
from edgevit.store import JSON, canonical_json
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.loop import Trained
from edgevit.tune.scores import Scores, load_scores, save_scores
from edgevit.tune.search import Search, run_search, search_of

_FACTS_FILE = "search.json"
_SCORES_FILE = "scores.safetensors"
_CHECKPOINT = "search.safetensors"


@dataclass(frozen=True)
class Searched:
    """What the methods have learnt, and the model that slimming starts from."""

    start: Saved
    """The dense model; or what a search left of it, where a method wants the searched weights."""
    scores: Mapping[int, Scores] = field(default_factory=dict)
    """By the place of the method among the recipe's."""
    sha256: Mapping[int, str] = field(default_factory=dict)
    """Of the files with the scores, likewise."""
    facts: tuple[SearchFacts, ...] = ()
    """Of the trainings, in their order."""


def run_searches(stages: Stages, inputs: Inputs, dense: Saved, images: Mapping[int, Images]) -> Searched:
    """Let every method that learns do so, one after the other.

    Args:
        stages: runs them.
        inputs: the recipe.
        dense: what the first starts from; those behind a method with weights = "searched" start from its.
        images: labelled, by the place of the method.

    Raises:
        ImagesError: labels that the model's head cannot give.
        TrainingError: a loss is not finite; the last checkpoint is kept.
    """
    start, scores, sha256, facts = dense, {}, {}, []
    for place, method in learning_methods(inputs.recipe.recipe.methods):
        folder = _search(stages, start, search_of(method), images[place], method.method)
        scores[place] = load_scores(folder / _SCORES_FILE)
        sha256[place] = sha256_file(folder / _SCORES_FILE)
        facts.append(SearchFacts.model_validate_json((folder / _FACTS_FILE).read_bytes()))
        if method.weights == "searched":
            start = open_saved(folder)
    return Searched(start, scores, sha256, tuple(facts))


def _search(stages: Stages, start: Saved, search: Search, images: Images, of: str) -> Path:
    key: dict[str, JSON] = {
        "model": start.sha256,
        "search": _search_key(search),
        "images": images_key(images),
        "versions": library_versions(("accelerate", "torch", "numpy", "safetensors", "timm")),
        "code": code_sha256("tune", "training", "models", "preprocess", "report/model", "pipeline/search"),
    }

    def make(folder: Path) -> None:
        belongs_to = hashlib.sha256(canonical_json(key).encode()).hexdigest()
        checkpoint = CheckpointFile(stages.store.work_path("search", key) / _CHECKPOINT, belongs_to)
        source = start.loaded
        found = run_search(source.model, images, search, checkpoint, stages.progress)
        save_model(LoadedModel(found.model, source.preprocess, source.labels, source.random_weights), folder)
        save_scores(found.scores, folder / _SCORES_FILE)
        facts = _facts(of, search, found.trained, len(images))
        (folder / _FACTS_FILE).write_text(facts.model_dump_json(indent=1) + "\n")

    return stages.run("search", key, make, of=of)


def _facts(method: str, search: Search, trained: Trained, images: int) -> SearchFacts:
    training = search.supervision.training
    return SearchFacts(
        method=method,
        epochs=training.epochs,
        seconds=round(trained.seconds, 3),
        loss_first=trained.epoch_losses[0],
        loss_last=trained.epoch_losses[-1],
        precision=training.precision,
        seed=training.seed,
        images=images,
    )


def _search_key(search: Search) -> JSON:
    """Return the options that decide the result, and which kind of search they are of."""
    found: dict[str, JSON] = asdict(search)
    supervision: dict[str, JSON] = asdict(search.supervision)
    training: dict[str, JSON] = asdict(search.supervision.training)
    del training["checkpoint_steps"]
    return found | {"supervision": supervision | {"training": training}, "kind": type(search).__name__}
