"""Static token-channel selection."""

from __future__ import annotations

import pytest
import torch
from toy_vits import few_cause_images, noise_images, toy_arch, toy_model, toy_plan

from edgevit.errors import PlanError
from edgevit.methods import TokenChannels
from edgevit.models.layers import SlimViT
from edgevit.models.observe import live_neurons, mean_of_neurons
from edgevit.plan import Counts, Plan
from edgevit.prune.token_channels import image_magnitudes, token_channels
from edgevit.slim.select import slim_by_selection

DENSE = toy_model()
ALL = toy_plan(DENSE, Counts())
HALF = TokenChannels(method="token-channels", hidden_drop=0.5)
IMAGES = few_cause_images(16)


def ignore(seen: int) -> None:
    assert seen > 0


def decide(
    options: TokenChannels = HALF, images: torch.Tensor = IMAGES, batch: int = 8, model: SlimViT = DENSE
) -> Plan:
    return token_channels(model, ALL, options, images.split(batch), ignore)


def test_plan_has_counts_and_indices() -> None:
    plan = decide()
    assert [(b.qk_dim, b.hidden) for b in plan.blocks] == [(8, 40), (8, 20), (8, 20)]
    assert plan.blocks[0] == ALL.blocks[0]
    for block in plan.blocks[1:]:
        assert block.kept.hidden is not None
        assert len(set(block.kept.hidden)) == 20
        assert block.kept.hidden == tuple(sorted(block.kept.hidden))


def test_plan_that_cuts_nothing_reads_no_images() -> None:
    def unread() -> None:
        raise AssertionError

    options = TokenChannels(method="token-channels", hidden_drop=0.0)
    assert token_channels(DENSE, ALL, options, (unread() or x for x in IMAGES.split(8)), ignore) == ALL


def test_selection_does_not_depend_on_batches_or_their_order() -> None:
    whole = decide(batch=16)
    assert decide(batch=1) == whole
    assert decide(batch=5) == whole
    assert decide(images=IMAGES[torch.randperm(16, generator=torch.Generator().manual_seed(3))]) == whole


def test_slim_model_treats_each_image_alone() -> None:
    slim = slim_by_selection(DENSE, decide())
    together = slim(IMAGES[:8])
    torch.testing.assert_close(torch.cat([slim(one) for one in IMAGES[:8].split(1)]), together)
    others = noise_images(7)
    torch.testing.assert_close(slim(torch.cat([others, IMAGES[:1]]))[-1], together[0])


def test_selection_by_hand() -> None:
    sums = torch.zeros(40, dtype=torch.float64)
    for image in IMAGES.split(1):
        sums += list(live_neurons(DENSE, image))[1][0].abs().double().mean(dim=0)
    by_magnitude = sums.topk(20).indices.sort().values
    by_contribution = (
        (sums * DENSE.blocks[1].mlp.fc2.weight.double().norm(dim=0)).topk(20).indices.sort().values
    )
    magnitude = decide(HALF.model_copy(update={"score": "magnitude"}))
    assert magnitude.blocks[1].kept.hidden == tuple(by_magnitude.tolist())
    assert decide().blocks[1].kept.hidden == tuple(by_contribution.tolist())
    assert magnitude != decide()


def test_image_magnitudes_weigh_the_class_token() -> None:
    neurons = torch.tensor([[[3.0, -1.0], [0.0, 4.0], [-6.0, 0.0]]])
    assert image_magnitudes(neurons, None).tolist() == [[3.0, pytest.approx(5 / 3)]]
    assert image_magnitudes(neurons, 2.0).tolist() == [[3.0, pytest.approx(4 / 3)]]
    assert image_magnitudes(neurons[:, :1], 2.0).tolist() == [[3.0, 1.0]]


def test_neurons_that_never_fire_go_and_the_output_stays() -> None:
    dense = toy_model()
    for block in dense.blocks:
        block.mlp.fc1.weight[::2] = 0
        block.mlp.fc1.bias[::2] = 0
    plan = decide(model=dense, options=TokenChannels(method="token-channels", hidden=20, keep_first=False))
    assert plan.blocks[1].kept.hidden == tuple(range(1, 40, 2))
    torch.testing.assert_close(slim_by_selection(dense, plan)(IMAGES), dense(IMAGES))


def test_folded_means_keep_the_mean_of_what_a_block_adds() -> None:
    plan = decide(TokenChannels(method="token-channels", hidden=(10, 40, 40)))
    means = mean_of_neurons(DENSE, [IMAGES], lambda neurons: neurons.double().mean(dim=1), ignore)
    full, plain, folded = (
        model.blocks[0]
        .mlp(DENSE.blocks[0].norm2(DENSE.blocks[0].attend(DENSE.embed(IMAGES), None)[0]))
        .mean((0, 1))
        for model in (DENSE, slim_by_selection(DENSE, plan), slim_by_selection(DENSE, plan, means))
    )
    torch.testing.assert_close(folded, full, rtol=1e-4, atol=1e-5)
    assert (plain - full).abs().max() > 0.1


def test_last_block_counts_only_tokens_that_the_head_reads() -> None:
    tokens = [neurons.shape[1] for neurons in live_neurons(DENSE, IMAGES[:2])]
    assert tokens == [17, 17, 1]
    mean = toy_model(toy_arch("mean"))
    assert [neurons.shape[1] for neurons in live_neurons(mean, IMAGES[:2])] == [17, 17, 17]


def test_class_weight_without_class_token_is_refused() -> None:
    mean = toy_model(toy_arch("mean", prefix=0))
    options = HALF.model_copy(update={"class_weight": 2.0})
    with pytest.raises(PlanError, match=r"^class_weight: this model has no class token"):
        decide(options, model=mean)
