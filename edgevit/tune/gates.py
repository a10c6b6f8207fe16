"""Gates on heads and hidden neurons, learnt from labels under L1: what the model needs keeps its gate.

A gate of 1 changes nothing, one of 0 removes its head or neuron. A head's gate scales its queries, keys and
values; a neuron's gate scales what its activation gives. Both are the same as scaling rows of q, k and v and
columns of fc2, so that is how they act, and folding them into the weights changes no output.
H heads, K dims of a head, F hidden neurons, B batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgevit.images import Images
from edgevit.models.group_scores import Scores
from edgevit.models.layers import SlimBlock, SlimViT
from edgevit.progress import Progress
from edgevit.tune.checkpoint import CheckpointFile
from edgevit.tune.objective import Objective, ParameterGroup, gated_groups
from edgevit.tune.scores import SearchResult
from edgevit.tune.supervised import Supervision, cross_entropy, train_supervised_


@dataclass(frozen=True)
class GateSearch:
    """How gates are learnt."""

    supervision: Supervision = field(default_factory=Supervision)
    heads: bool = True
    """Whether heads have gates."""
    hidden: bool = True
    """Whether hidden neurons have gates."""
    freeze: bool = False
    """Train the gates alone; the weights stay as they are."""
    gate_lr: float = 1e-2
    """The gates' own highest learning rate."""
    heads_weight: float = 1e-2
    """Of the sum of all heads' gates in the loss."""
    hidden_weight: float = 1e-4
    """Of the sum of all neurons' gates in the loss."""


def search_gates(
    model: SlimViT, images: Images, options: GateSearch, checkpoint: CheckpointFile | None, progress: Progress
) -> SearchResult:
    """Learn gates for a model on labelled images; `model` stays as it is.

    Returns:
        The gates, by "blocks.N.heads" [H] and "blocks.N.hidden" [F], and the model that was trained beside
        them with the gates folded into its weights.

    Raises:
        ImagesError: images without labels, or with labels that the model's head cannot give.
        TrainingError: the loss is not finite.
        WeightsError: the checkpoint is damaged or of another training.
    """
    student = copy.deepcopy(model).requires_grad_(not options.freeze)
    objective = GatedModel(student, options)
    trained = train_supervised_(objective, student, images, options.supervision, checkpoint, progress)
    gates = {name: gate.detach().clone() for name, gate in objective.gates().items()}
    return SearchResult(gates, fold_gates(student.requires_grad_(False), gates), trained)


class GatedModel(Objective):
    """A model with gates; its loss is the cross-entropy plus L1 of the gates.

    Reference: Huang et al. 2025, EffiSelecViT, CVIU 254:104326, and its code: gates start at 1, and L1 is a
        sum over all layers, with a weight for heads and one for neurons.
    Differs: gates have a learning rate of their own and no weight decay. A value's bias, which `SlimViT` has
        in the output projection, is not gated: it adds a constant, which may stay when the head goes. Where
        queries and keys are normalised (qk-norm), the norm takes their gates away, and the value's remains.
    """

    def __init__(self, student: SlimViT, options: GateSearch) -> None:
        super().__init__()
        self.student, self.options = student, options
        self.heads = _ones([block.attn.heads for block in student.blocks] if options.heads else [])
        self.hidden = _ones([block.mlp.fc2.in_features for block in student.blocks] if options.hidden else [])

    def gates(self) -> Scores:
        """Return the gates by name, with their gradients' history."""
        kinds = {"heads": self.heads, "hidden": self.hidden}
        return {
            f"blocks.{index}.{kind}": gate
            for kind, gates in kinds.items()
            for index, gate in enumerate(gates)
        }

    def groups(self) -> tuple[ParameterGroup, ...]:
        """Return the gates, with their own rate and no weight decay, and what is trained of the model."""
        return gated_groups(self, self.options.gate_lr / self.options.supervision.training.lr)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch: images [B, C, H, W] and wanted probabilities [B, classes] -> []."""
        logits = functional_call(self.student, gated_weights(self.student, self.gates()), (images,))
        loss = cross_entropy(logits, targets).mean()
        for gates, weight in (
            (self.heads, self.options.heads_weight),
            (self.hidden, self.options.hidden_weight),
        ):
            loss = loss + weight * sum((gate.abs().sum() for gate in gates), torch.zeros(()).to(loss))
        return loss


def _ones(counts: list[int]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.ones(count)) for count in counts)


def gated_weights(model: SlimViT, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that gates change, by their names in the model's state dict.

    Args:
        model: whose weights are gated; stays as it is.
        gates: "blocks.N.heads" [H] and "blocks.N.hidden" [F]; blocks without stay as they are.
    """
    changed: dict[str, Tensor] = {}
    for index, block in enumerate(model.blocks):
        heads, hidden = gates.get(f"blocks.{index}.heads"), gates.get(f"blocks.{index}.hidden")
        own: dict[str, Tensor] = {}
        if heads is not None:
            own |= _gated_heads(block, heads)
        if hidden is not None:
            own["mlp.fc2.weight"] = block.mlp.fc2.weight * hidden
        changed |= {f"blocks.{index}.{name}": weight for name, weight in own.items()}
    return changed


def _gated_heads(block: SlimBlock, gates: Tensor) -> dict[str, Tensor]:
    changed = {}
    for name, layer in (("q", block.attn.q), ("k", block.attn.k), ("v", block.attn.v)):
        rows = gates.repeat_interleave(layer.out_features // block.attn.heads)  # [H*K]
        changed[f"attn.{name}.weight"] = layer.weight * rows.unsqueeze(1)
        if layer.bias is not None:
            changed[f"attn.{name}.bias"] = layer.bias * rows
    return changed


def fold_gates(model: SlimViT, gates: Mapping[str, Tensor]) -> SlimViT:
    """Return a model without gates that gives what `model` gives with them; `model` stays as it is."""
    folded = copy.deepcopy(model)
    with torch.no_grad():
        changed = gated_weights(model, gates)
        for name, parameter in folded.named_parameters():
            if name in changed:
                parameter.copy_(changed[name])
    return folded
