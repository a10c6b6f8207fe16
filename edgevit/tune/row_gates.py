"""Row gates (IHP-style): sparse training that drives rows of q, k, v and fc1 to exactly zero.

Each row of these layers, its bias included, is scaled by a gate that starts at 1. After each step of the
optimiser the gates take a proximal step of L1: every one comes nearer to 0 by the same amount and stays
there, unless the loss pulls it back. At the end the gates are folded into the weights.
H heads, K/V dims of a head, F hidden neurons, B batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from edgevit.images import Images
from edgevit.models.group_scores import group_scores
from edgevit.models.layers import SlimViT
from edgevit.progress import Progress
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.objective import Objective, ParameterGroup, gated_groups
from edgevit.tune.scores import SearchResult
from edgevit.tune.supervised import Supervision, cross_entropy, train_supervised_

_LAYERS = ("attn.q", "attn.k", "attn.v", "mlp.fc1")


@dataclass(frozen=True)
class RowSearch:
    """How row gates are learnt."""

    supervision: Supervision = field(default_factory=Supervision)
    gate_lr: float = 1e-2
    """The gates' own highest learning rate."""
    l1: float = 0.3
    """Strength of L1: a gate that the loss does not hold falls by this times its learning rate in a step."""


def search_rows(
    model: SlimViT, images: Images, options: RowSearch, checkpoint: CheckpointFile | None, progress: Progress
) -> SearchResult:
    """Train a model with row gates on labelled images; `model` stays as it is.

    Returns:
        `group_scores` of the trained model, and that model with its gates folded into its weights.

    Raises:
        ImagesError: images without labels, or with labels that the model's head cannot give.
        TrainingError: the loss is not finite.
        WeightsError: the checkpoint is damaged or of another training.
    """
    student = copy.deepcopy(model).requires_grad_(True)
    objective = GatedRows(student, options)
    trained = train_supervised_(objective, student, images, options.supervision, checkpoint, progress)
    folded = fold_rows(student.requires_grad_(False), objective.gates())
    return SearchResult(group_scores(folded), folded, trained)


class GatedRows(Objective):
    """A model with gated rows; its loss is the cross-entropy, L1 is in what follows each step.

    Reference: Zhang et al. 2025, Neural Networks 190, 107656: a trainable parameter for each row takes part
        in the forward pass and is regularised until rows are zero. Proximal steps: Parikh and Boyd 2014,
        Proximal Algorithms, section 6.5.2 (soft thresholding).
    Differs: rebuilt from the abstract. L1 in the loss would only make gates jitter around 0 under Adam. q, k
        and v have gates of their own. The value's bias is in the projection's here and stays.
    """

    def __init__(self, student: SlimViT, options: RowSearch) -> None:
        super().__init__()
        self.student, self.options = student, options
        self._rate = options.gate_lr / options.supervision.training.lr
        self.rows = nn.ParameterList(
            nn.Parameter(torch.ones(layer.out_features)) for _, layer in _gated_layers(student)
        )

    def gates(self) -> dict[str, Tensor]:
        """Return the gates by the name of their layer."""
        names = (name for name, _ in _gated_layers(self.student))
        return dict(zip(names, self.rows, strict=True))

    def groups(self) -> tuple[ParameterGroup, ...]:
        """Return the gates, without weight decay and with their own rate, and the model's own groups."""
        return gated_groups(self, self._rate)

    def after_step(self, lr: float) -> None:
        """Take the proximal step of L1: sign(r) max(|r| - lr l1, 0), with the gates' learning rate."""
        for gates in self.rows:
            gates.copy_(functional.softshrink(gates, lr * self._rate * self.options.l1))

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch: images [B, C, H, W] and wanted probabilities [B, classes] -> []."""
        logits = functional_call(self.student, _gated_weights(self.student, self.gates()), (images,))
        return cross_entropy(logits, targets).mean()


def _gated_layers(model: SlimViT) -> Iterator[tuple[str, nn.Linear]]:
    for index, block in enumerate(model.blocks):
        for name in _LAYERS:
            layer = block.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            yield f"blocks.{index}.{name}", layer


def _gated_weights(model: SlimViT, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights and biases that the gates scale, by their names in the model's state dict."""
    changed = {}
    for name, layer in _gated_layers(model):
        changed[f"{name}.weight"] = layer.weight * gates[name].unsqueeze(1)
        if layer.bias is not None:
            changed[f"{name}.bias"] = layer.bias * gates[name]
    return changed


@torch.no_grad()
def fold_rows(model: SlimViT, gates: Mapping[str, Tensor]) -> SlimViT:
    """Return a model without gates that gives what `model` gives with them; `model` stays as it is.

    Args:
        model: the model.
        gates: one for each row of q, k, v and fc1, by the layer's name.
    """
    folded = copy.deepcopy(model)
    folded.load_state_dict(_gated_weights(model, gates), strict=False)
    return folded
