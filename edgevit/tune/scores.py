"""What a search has learnt: scores by name, in a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import safetensors
from safetensors.torch import load_file, save

from edgevit.errors import WeightsError
from edgevit.models.group_scores import Scores
from edgevit.models.layers import SlimViT
from edgevit.tune.loop import Trained


class SearchResult(NamedTuple):
    """What a search returns."""

    scores: Scores
    model: SlimViT
    """The model that was trained beside the scores, with them folded into its weights."""
    trained: Trained


def save_scores(scores: Scores, path: Path) -> None:
    """Write scores to a safetensors file."""
    path.write_bytes(save({name: score.contiguous() for name, score in scores.items()}))


def load_scores(path: Path) -> Scores:
    """Read what `save_scores` wrote.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(f"scores {path}: cannot be read ({error}). Build again.") from error
