"""What parts of a model are worth by their weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from toy_vits import ARCH, fill, toy_model

from edgevit.models.arch import Arch
from edgevit.models.group_scores import group_scores, head_norms, input_norms, neuron_norms
from edgevit.models.layers import SlimViT

GATED = dataclasses.replace(ARCH, gated=True, activation="silu")


def test_head_norms_are_products_of_norms() -> None:
    attention = toy_model().blocks[0].attn
    rows = [slice(8 * head, 8 * head + 8) for head in range(3)]
    expected = [attention.v.weight[part].norm() * attention.proj.weight[:, part].norm() for part in rows]
    torch.testing.assert_close(head_norms(attention), torch.stack(expected))


def test_group_scores_are_zero_where_one_side_is() -> None:
    model = toy_model()
    with torch.no_grad():
        model.blocks[1].attn.k.weight[8 + 3] = 0.0  # dim 3 of head 1
        model.blocks[1].attn.proj.weight[:, 16 + 2] = 0.0  # dim 2 of head 2
        model.blocks[1].mlp.fc2.weight[:, 7] = 0.0
    scores = group_scores(model)
    assert {name for name, score in scores.items() if not score.all()} == {
        "blocks.1.qk", "blocks.1.vo", "blocks.1.hidden"
    }  # fmt: skip
    assert (scores["blocks.1.qk"] == 0).nonzero().tolist() == [[1, 3]]
    assert (scores["blocks.1.vo"] == 0).nonzero().tolist() == [[2, 2]]
    assert (scores["blocks.1.hidden"] == 0).nonzero().tolist() == [[7]]


def test_neuron_norms_of_a_gated_mlp_are_zero_for_constants_alone() -> None:
    mlp = fill(SlimViT(GATED)).blocks[0].mlp
    assert mlp.gate is not None
    with torch.no_grad():
        mlp.fc1.weight[3] = 0.0  # its bias still multiplies what the gate reads
        mlp.fc1.weight[5], mlp.gate.weight[5] = 0.0, 0.0
    assert (neuron_norms(mlp) == 0).nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("arch", [ARCH, GATED], ids=["plain", "gated"])
def test_input_norms_are_those_of_all_rows_that_read(arch: Arch) -> None:
    mlp = fill(SlimViT(arch)).blocks[0].mlp
    rows = [layer.weight.double() for layer in (mlp.fc1, mlp.gate) if layer is not None]
    expected = sum(row.square() for weight in rows for row in weight)
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(input_norms(mlp), expected.sqrt())
