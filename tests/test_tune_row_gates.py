"""Gates on rows: what they do, how proximal steps make zeros, and that folding them changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_ccts import toy_slim_cct
from toy_swins import toy_swin
from toy_training import SHORT, SUPERVISED, checkpoint_in, open_toy, stop_at
from toy_vits import ARCH, noise_images, toy_model, toy_plan

from edgevit.images import Images
from edgevit.methods import IntraHead
from edgevit.models.group_scores import group_scores
from edgevit.models.layers import SlimViT
from edgevit.plan import Counts
from edgevit.progress import silent
from edgevit.prune.intra_head import intra_head
from edgevit.slim.select import slim_by_selection
from edgevit.tune.row_gates import GatedRows, RowSearch, fold_rows, search_rows
from edgevit.tune.supervised import cross_entropy

TARGETS = torch.eye(5)[[0, 1, 2, 0]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return open_toy(tmp_path_factory.mktemp("images"))


def seeded_gates(objective: GatedRows) -> dict[str, Tensor]:
    """Give the gates of a model seeded values of either sign, some of them 0, and return them."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for gates in objective.rows:
            gates.copy_(torch.randn(gates.shape, generator=generator))
            gates[::5] = 0
    return objective.gates()


def test_gates_of_one_change_nothing() -> None:
    model, images = toy_model(), noise_images(4)
    with torch.no_grad():
        found = GatedRows(model, RowSearch(SUPERVISED))(images, TARGETS)
        assert torch.equal(found, cross_entropy(model(images), TARGETS).mean())


@pytest.mark.parametrize("model", [toy_model(), toy_swin(), toy_slim_cct()], ids=["ViT", "Swin", "CCT"])
def test_fold_rows_gives_what_gated_rows_give(model: SlimViT) -> None:
    objective, images = GatedRows(model, RowSearch(SUPERVISED)), noise_images(4, model.arch)
    gates = seeded_gates(objective)
    with torch.no_grad():
        gated = objective(images, TARGETS)
        folded = fold_rows(model, gates)
        assert torch.equal(cross_entropy(folded(images), TARGETS).mean(), gated)
        assert not torch.allclose(folded(images), model(images), atol=1e-2)


def test_gate_of_zero_makes_a_row_and_its_bias_zero() -> None:
    model = toy_model()
    folded = fold_rows(model, seeded_gates(GatedRows(model, RowSearch(SUPERVISED))))
    for layer in (folded.blocks[1].attn.q, folded.blocks[1].mlp.fc1):
        assert not layer.weight[::5].any()
        assert not layer.bias[::5].any()
    zeros = group_scores(folded)["blocks.1.hidden"] == 0
    assert zeros.nonzero().flatten().tolist() == list(range(0, 40, 5))


def test_zeros_that_gates_make_are_cut_without_a_change_of_the_outputs() -> None:
    model = toy_model()
    folded = fold_rows(model, seeded_gates(GatedRows(model, RowSearch(SUPERVISED))))
    options = IntraHead(method="intra-head", zeros=True, align=1)
    plan = intra_head(folded, toy_plan(folded, Counts()), options, group_scores(folded))
    assert {(block.qk_dim, block.vo_dim, block.hidden) for block in plan.blocks} == {(7, 7, 32)}
    images = noise_images(3)
    torch.testing.assert_close(slim_by_selection(folded, plan)(images), folded(images), rtol=1e-5, atol=1e-5)


def test_gates_have_their_own_rate_and_no_decay() -> None:
    objective = GatedRows(toy_model().requires_grad_(True), RowSearch(SUPERVISED, gate_lr=5e-2))
    gates, *rest = objective.groups()
    assert (gates.rate, gates.decayed, len(gates.names)) == (pytest.approx(50.0), False, 12)
    assert all(name.startswith("student.") for group in rest for name in group.names)


def test_proximal_step_brings_gates_nearer_to_zero_and_stops_there() -> None:
    objective = GatedRows(toy_model(), RowSearch(SUPERVISED, gate_lr=0.1, l1=0.5))
    with torch.no_grad():
        objective.rows[0][:3] = torch.tensor([1.0, -0.5, 0.02])
        objective.after_step(SHORT.lr)  # at the highest rate the gates' own is gate_lr
    expected = torch.tensor([0.95, -0.45, 0.0])
    torch.testing.assert_close(objective.rows[0].detach()[:3], expected)


def test_search_makes_rows_that_nothing_reads_exactly_zero(images: Images) -> None:
    model = toy_model()
    model.blocks[1].mlp.fc2.weight[:, :10] = 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = search_rows(model, images, RowSearch(SUPERVISED, gate_lr=0.2, l1=2.0), None, silent)
    assert not found.model.blocks[1].mlp.fc1.weight[:10].any()
    assert found.model.blocks[1].mlp.fc1.weight[10:].any()
    assert (found.scores["blocks.1.hidden"][:10] == 0).all()
    assert found.scores["blocks.0.qk"].shape == (3, 8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_search_of_a_gated_mlp_gates_its_values(images: Images) -> None:
    from dataclasses import replace

    model = toy_model(replace(ARCH, gated=True, activation="silu"))
    found = search_rows(model, images, RowSearch(SUPERVISED), None, silent)
    assert not torch.equal(found.model.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)


def test_search_interrupted_ends_with_the_same_bits(images: Images, tmp_path: Path) -> None:
    options = RowSearch(SUPERVISED, gate_lr=0.1)
    whole = search_rows(toy_model(), images, options, None, silent)

    with pytest.raises(KeyboardInterrupt):
        search_rows(toy_model(), images, options, checkpoint_in(tmp_path), stop_at(5))
    found = search_rows(toy_model(), images, options, checkpoint_in(tmp_path), silent)
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.model.state_dict().items())
