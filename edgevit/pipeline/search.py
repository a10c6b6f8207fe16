"""The stages of the methods that learn: each goes on where it was interrupted, and leaves scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgevit.disk import sha256_file
from edgevit.images import Images
from edgevit.methods import learning_methods
from edgevit.models.group_scores import Scores
from edgevit.models.load import save_model
from edgevit.pipeline.inputs import Inputs
from edgevit.pipeline.models import Saved, open_saved
from edgevit.pipeline.stages import Stages
from edgevit.pipeline.trainings import run_training, training_facts, training_key
from edgevit.report.model import SearchFacts
from edgevit.store import JSON
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.scores import load_scores, save_scores
from edgevit.tune.search import Search, run_search, search_of

_FACTS_FILE = "search.json"
_SCORES_FILE = "scores.safetensors"


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
        ImagesError: labels that the model's head cannot give, or an image that cannot be read.
        TrainingError: a loss is not finite; the last checkpoint is kept.
        WeightsError: a checkpoint, or what a search left, is damaged.
        OutputError: the build directory cannot be written.
        DiskFullError: no space left.
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
        **training_key(search, images, "pipeline/search"),
    }

    def train(folder: Path, checkpoint: CheckpointFile) -> None:
        found = run_search(start.loaded.model, images, search, checkpoint, stages.progress)
        save_model(replace(start.loaded, model=found.model), folder)
        save_scores(found.scores, folder / _SCORES_FILE)
        facts = training_facts(search.supervision.training, found.trained, images)
        named = SearchFacts(method=of, **dict(facts))
        (folder / _FACTS_FILE).write_text(named.model_dump_json(indent=1) + "\n")

    return run_training(stages, "search", key, train, of=of)
