"""The searches of the methods that learn from labels what may go: from a method's options to scores."""

from __future__ import annotations

from typing import assert_never

from edgevit.images import Images
from edgevit.methods import EffiSelect, IntraHead, LearningMethod
from edgevit.models.layers import SlimViT
from edgevit.progress import Progress, silent
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.gates import GateSearch, search_gates
from edgevit.tune.row_gates import RowSearch, search_rows
from edgevit.tune.scores import SearchResult
from edgevit.tune.supervised import supervision

Search = GateSearch | RowSearch
"""The options of one search: those of a method that what is learnt depends on, and no others."""


def search_of(method: LearningMethod) -> Search:
    """Return what a method has to learn, with the precision decided for this machine.

    What the method decides with afterwards (ratios, a budget) is not part of it: it may change without a new
    search.
    """
    match method:
        case EffiSelect():
            return GateSearch(
                supervision=supervision(method.search),
                heads=method.heads_drop is not None or method.macs is not None,
                hidden=method.hidden_drop is not None or method.macs is not None,
                freeze=method.train == "gates",
                gate_lr=method.gate_lr,
                heads_weight=method.heads_weight,
                hidden_weight=method.hidden_weight,
            )
        case IntraHead():
            return RowSearch(supervision(method.search), method.gate_lr, method.l1)
        case _:
            assert_never(method)


def run_search(
    model: SlimViT,
    images: Images,
    search: Search,
    checkpoint: CheckpointFile | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Learn scores for a model on labelled images; `model` stays as it is.

    Raises:
        ImagesError: images without labels, or with labels that the model's head cannot give.
        TrainingError: the loss is not finite; the last checkpoint is kept.
        WeightsError: the checkpoint is damaged or of another training.
    """

    def searching(_: str, done: int, total: int) -> None:
        progress("searching", done, total)

    match search:
        case GateSearch():
            return search_gates(model, images, search, checkpoint, searching)
        case RowSearch():
            return search_rows(model, images, search, checkpoint, searching)
        case _:
            assert_never(search)
