"""Gates on heads and neurons: what they do, how they learn, and that folding them changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy_ccts import toy_slim_cct
from toy_swins import toy_swin
from toy_training import SHORT, SUPERVISED, checkpoint_in, open_toy, stop_at
from toy_vits import noise_images, toy_arch, toy_model, toy_plan

from edgevit.errors import ImagesError, TrainingError, WeightsError
from edgevit.images import Images
from edgevit.models.layers import SlimViT
from edgevit.plan import BlockPlan, Counts, Kept, Plan
from edgevit.progress import silent
from edgevit.slim.select import slim_by_selection
from edgevit.tune.gates import GatedModel, GateSearch, fold_gates, search_gates
from edgevit.tune.soft_labels import SoftLabels
from edgevit.tune.supervised import Supervision, cross_entropy


def seeded_gates(model: SlimViT) -> dict[str, Tensor]:
    """Return gates of either sign, one of them 0."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    for index, block in enumerate(model.blocks):
        found[f"blocks.{index}.heads"] = torch.randn(block.attn.heads, generator=generator)
        found[f"blocks.{index}.hidden"] = torch.randn(block.mlp.fc2.in_features, generator=generator)
    found["blocks.1.heads"][0] = 0.0
    found["blocks.1.hidden"][3] = 0.0
    return found


@contextmanager
def gated_activations(model: SlimViT, gates: dict[str, Tensor]) -> Iterator[None]:
    """Multiply activations by gates, as the method is published: q, k, v by head, neurons behind fc1."""
    with ExitStack() as stack:
        for index, block in enumerate(model.blocks):
            heads, hidden = gates[f"blocks.{index}.heads"], gates[f"blocks.{index}.hidden"]
            for layer in (block.attn.q, block.attn.k, block.attn.v):
                rows = heads.repeat_interleave(layer.out_features // len(heads))
                hook = layer.register_forward_hook(lambda _m, _i, out, rows=rows: out * rows)
                stack.callback(hook.remove)

            def gate(_module: nn.Module, inputs: tuple[Tensor], hidden: Tensor = hidden) -> tuple[Tensor]:
                return (inputs[0] * hidden,)

            stack.callback(block.mlp.fc2.register_forward_pre_hook(gate).remove)
        yield


@pytest.mark.parametrize(
    "model",
    [toy_model(), toy_model(toy_arch("class+distillation", 2)), toy_swin(), toy_slim_cct()],
    ids=["vit", "distilled", "swin", "cct"],
)
def test_fold_gates_gives_what_gated_activations_give(model: SlimViT) -> None:
    gates, images = seeded_gates(model), noise_images(4, model.arch)
    with torch.no_grad():
        folded = fold_gates(model, gates)(images)
        dense = model(images)
        with gated_activations(model, gates):
            gated = model(images)
    assert torch.allclose(folded, gated, atol=1e-5)
    assert not torch.allclose(folded, dense, atol=1e-2)


def test_fold_gates_of_zero_is_the_model_without_those_parts() -> None:
    model = toy_model()
    gates = {name: torch.ones_like(gate) for name, gate in seeded_gates(model).items()}
    gates["blocks.1.heads"][0] = 0.0
    gates["blocks.1.hidden"][3] = 0.0
    plan = toy_plan(model, Counts())
    kept = Kept(heads=(1, 2), hidden=tuple(j for j in range(40) if j != 3))
    blocks = list(plan.blocks)
    blocks[1] = BlockPlan(2, 8, 8, 39, blocks[1].tokens, kept)
    images = noise_images(4)
    with torch.no_grad():
        cut = slim_by_selection(model, Plan(tuple(blocks)))(images)
        assert torch.allclose(fold_gates(model, gates)(images), cut, atol=1e-5)


def test_gated_model_starts_as_the_model_with_l1_of_all_gates() -> None:
    model = toy_model()
    options = GateSearch(SUPERVISED, heads_weight=0.1, hidden_weight=0.001)
    images, targets = noise_images(4), torch.eye(5)[[0, 1, 2, 0]]
    with torch.no_grad():
        found = GatedModel(model, options)(images, targets)
        expected = cross_entropy(model(images), targets).mean()
    assert float(found) == pytest.approx(float(expected) + 0.1 * 9 + 0.001 * 120, rel=1e-5)


def test_gated_model_gates_have_their_own_rate_and_no_decay() -> None:
    objective = GatedModel(toy_model().requires_grad_(True), GateSearch(SUPERVISED, gate_lr=5e-2))
    gates, *rest = objective.groups()
    assert (gates.rate, gates.decayed) == (pytest.approx(50.0), False)
    assert set(gates.names) == {f"{kind}.{index}" for kind in ("heads", "hidden") for index in range(3)}
    assert all(name.startswith("student.") for group in rest for name in group.names)


@pytest.mark.parametrize(("heads", "hidden"), [(True, False), (False, True)])
def test_gated_model_has_gates_of_what_is_decided_alone(heads: bool, hidden: bool) -> None:
    objective = GatedModel(toy_model(), GateSearch(SUPERVISED, heads=heads, hidden=hidden))
    kinds = {name.rsplit(".", 1)[1] for name in objective.gates()}
    assert kinds == ({"heads"} if heads else {"hidden"})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return open_toy(tmp_path_factory.mktemp("images"))


def test_search_gates_frees_gates_that_nothing_holds(images: Images) -> None:
    """Neurons whose output nothing reads are held by no gradient, so L1 alone moves their gates."""
    model = toy_model()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight[:, :10] = 0
    found = search_gates(model, images, GateSearch(SUPERVISED, freeze=True), None, silent)
    idle, used = found.scores["blocks.1.hidden"][:10], found.scores["blocks.1.hidden"][10:]
    assert (idle < 1).all()
    assert idle.std() < 1e-5
    assert used.std() > 1e-4


def test_search_gates_alone_leaves_the_weights_and_folds_the_gates(images: Images) -> None:
    model = toy_model()
    found = search_gates(model, images, GateSearch(SUPERVISED, freeze=True), None, silent)
    expected = fold_gates(model, found.scores).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.model.state_dict().items())
    assert torch.equal(found.model.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    assert found.scores.keys() == {f"blocks.{i}.{kind}" for i in range(3) for kind in ("heads", "hidden")}


def test_search_gates_trains_weights_too_and_leaves_its_argument(images: Images) -> None:
    model = toy_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = search_gates(model, images, GateSearch(SUPERVISED), None, silent)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(found.model.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    assert not any(parameter.requires_grad for parameter in found.model.parameters())


def test_search_gates_interrupted_ends_with_the_same_bits(images: Images, tmp_path: Path) -> None:
    options = GateSearch(
        Supervision(SHORT, drop_path=0.3, augment="standard"),
    )
    whole = search_gates(toy_model(), images, options, None, silent)

    with pytest.raises(KeyboardInterrupt):
        search_gates(toy_model(), images, options, checkpoint_in(tmp_path), stop_at(5))
    found = search_gates(toy_model(), images, options, checkpoint_in(tmp_path), silent)
    assert all(torch.equal(gate, whole.scores[name]) for name, gate in found.scores.items())
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.model.state_dict().items())
    with pytest.raises(WeightsError, match="of another training"):
        search_gates(
            toy_model(), images, GateSearch(SUPERVISED, gate_lr=0.5), checkpoint_in(tmp_path), silent
        )


def test_search_gates_without_labels_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="learns from labels, and the set has none"):
        search_gates(toy_model(), open_toy(tmp_path, ""), GateSearch(SUPERVISED), None, silent)


def test_search_gates_rate_beyond_reason_says_where_it_broke(images: Images) -> None:
    options = GateSearch(SUPERVISED, gate_lr=1e38)
    with pytest.raises(TrainingError, match=r"is (nan|inf) in step \d of 6 \(epoch 1 of 2\)\. No checkpoint"):
        search_gates(toy_model(), images, options, None, silent)


def test_target_smooths_labels_over_all_classes() -> None:
    import numpy as np

    found = SoftLabels(np.array([1, 0]), 4, smoothing=0.2).of(np.array([0]))
    assert torch.allclose(found, torch.tensor([[0.05, 0.85, 0.05, 0.05]]))
