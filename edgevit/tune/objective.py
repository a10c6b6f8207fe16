"""What a training minimises, which parameters it changes, and what follows each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike."""

    names: tuple[str, ...]
    """As `named_parameters` has them."""
    rate: float = 1.0
    """Their learning rate as a multiple of the training's."""
    decayed: bool = True
    """Whether they have the training's weight decay."""


class Objective(nn.Module):
    """A module whose `forward(*batch)` returns the mean loss of the batch's samples.

    Those of its parameters that require gradients are trained.
    """

    def groups(self) -> tuple[ParameterGroup, ...]:
        """Return every trained parameter in one group: matrices with weight decay, the rest without."""
        return _by_decay(trained_parameters(self))

    def judge(self, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return how good the model is for each sample of a batch, higher is better, [B]; here: not known.

        Raises:
            TypeError: this objective cannot tell, so no epoch can be chosen by it.
        """
        raise TypeError(f"{type(self).__name__} has no score by which an epoch could be chosen")

    def after_step(self, lr: float) -> None:
        """Change parameters in place after each step of the optimiser, as a proximal step does; here: not.

        It runs without gradients and in every process alike, so it may depend on parameters and `lr` alone.

        Args:
            lr: the training's learning rate in this step; a group's own is `rate` times as high.
        """


def _by_decay(trained: Mapping[str, nn.Parameter]) -> tuple[ParameterGroup, ParameterGroup]:
    matrices = tuple(name for name, value in trained.items() if value.dim() >= 2)
    rest = tuple(name for name, value in trained.items() if value.dim() < 2)
    return ParameterGroup(matrices), ParameterGroup(rest, decayed=False)


def gated_groups(objective: nn.Module, rate: float) -> tuple[ParameterGroup, ...]:
    """Return the groups of an objective that learns gates beside the model that it has as `student`.

    Args:
        objective: whose trained parameters outside `student` are gates, which have no weight decay.
        rate: the gates' learning rate as a multiple of the training's.
    """
    trained = trained_parameters(objective)
    weights = {name: value for name, value in trained.items() if name.startswith("student.")}
    gates = tuple(name for name in trained if name not in weights)
    return ParameterGroup(gates, rate, decayed=False), *_by_decay(weights)


def trained_parameters(objective: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a training changes, by name.

    Those without elements (the prefix tokens of a model that has none) never get a gradient and are left out.
    """
    return {n: value for n, value in objective.named_parameters() if value.requires_grad and value.numel()}


def check_groups(objective: Objective) -> tuple[ParameterGroup, ...]:
    """Return the groups that have members.

    Raises:
        ValueError: a trained parameter in no group or in several, or a name that is no trained parameter.
    """
    groups = tuple(group for group in objective.groups() if group.names)
    named = sorted(name for group in groups for name in group.names)
    trained = sorted(trained_parameters(objective))
    if named != trained:
        wrong = set(named) ^ set(trained) or {name for name in named if named.count(name) > 1}
        raise ValueError(
            f"groups of {type(objective).__name__}: expected every trained parameter in one group; wrong for"
            f" {', '.join(sorted(wrong)[:5])}"
        )
    return groups
