from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_training import Regression

from edgevit.tune.objective import Objective, ParameterGroup, check_groups, trained_parameters


class Grouped(Regression):
    """Names the groups that it is given."""

    def __init__(self, *groups: ParameterGroup) -> None:
        super().__init__()
        self.named = groups

    def groups(self) -> tuple[ParameterGroup, ...]:
        return self.named


def test_groups_by_default_decay_matrices_alone() -> None:
    matrices, rest = Regression().groups()
    assert (matrices.names, matrices.decayed, matrices.rate) == (("trained.weight",), True, 1.0)
    assert (rest.names, rest.decayed) == (("trained.bias",), False)


def test_trained_parameters_leave_out_frozen_and_empty_ones() -> None:
    objective = Objective()
    objective.empty = nn.Parameter(torch.zeros(1, 0, 4))
    objective.full = nn.Parameter(torch.zeros(2))
    objective.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    assert list(trained_parameters(objective)) == ["full"]


def test_check_groups_drops_groups_without_members() -> None:
    groups = ParameterGroup(("trained.weight", "trained.bias")), ParameterGroup(())
    assert check_groups(Grouped(*groups)) == groups[:1]


@pytest.mark.parametrize(
    ("groups", "wrong"),
    [
        ((("trained.weight",),), "trained.bias"),
        ((("trained.weight", "trained.bias"), ("trained.bias",)), "trained.bias"),
        ((("trained.weight", "trained.bias", "frozen.weight"),), "frozen.weight"),
    ],
)
def test_check_groups_parameter_not_in_one_group_is_a_value_error(
    groups: tuple[tuple[str, ...], ...], wrong: str
) -> None:
    with pytest.raises(ValueError, match=f"groups of Grouped: expected every .* wrong for {wrong}$"):
        check_groups(Grouped(*map(ParameterGroup, groups)))
