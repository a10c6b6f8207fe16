"""Static token-channel selection."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from toy_vits import few_cause_images, noise_images, toy_arch, toy_model, toy_plan

from edgevit.errors import PlanError
from edgevit.methods import TokenChannels
from edgevit.models.layers import SlimViT
from edgevit.models.observe import LiveMlp, live_mlps, mean_of_mlps
from edgevit.plan import Counts, PerImage, Plan
from edgevit.prune.token_channels import token_channels
from edgevit.slim.select import MlpMeans, slim_by_selection

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


def mlp_means(model: SlimViT) -> list[MlpMeans]:
    """Return the means of what a model's MLPs read and do on `IMAGES`."""

    def over_tokens(live: LiveMlp) -> torch.Tensor:
        return torch.cat([live.neurons.double().mean(dim=1), live.inputs.double().mean(dim=1)], dim=1)

    return [MlpMeans(*mean.split([40, 24])) for mean in mean_of_mlps(model, [IMAGES], over_tokens, ignore)]


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
        sums += list(live_mlps(DENSE, image))[1].neurons[0].abs().double().mean(dim=0)
    by_magnitude = sums.topk(20).indices.sort().values
    by_contribution = (
        (sums * DENSE.blocks[1].mlp.fc2.weight.double().norm(dim=0)).topk(20).indices.sort().values
    )
    magnitude = decide(HALF.model_copy(update={"score": "magnitude"}))
    assert magnitude.blocks[1].kept.hidden == tuple(by_magnitude.tolist())
    assert decide().blocks[1].kept.hidden == tuple(by_contribution.tolist())
    assert magnitude != decide()


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
    means = mlp_means(DENSE)
    full, plain, folded = (
        model.blocks[0]
        .mlp(DENSE.blocks[0].norm2(DENSE.blocks[0].attend(DENSE.embed(IMAGES), None)[0]))
        .mean((0, 1))
        for model in (DENSE, slim_by_selection(DENSE, plan), slim_by_selection(DENSE, plan, means))
    )
    torch.testing.assert_close(folded, full, rtol=1e-4, atol=1e-5)
    assert (plain - full).abs().max() > 0.1


def test_last_block_counts_only_tokens_that_the_head_reads() -> None:
    tokens = [live.neurons.shape[1] for live in live_mlps(DENSE, IMAGES[:2])]
    assert tokens == [17, 17, 1]
    mean = toy_model(toy_arch("mean"))
    assert [live.inputs.shape[1] for live in live_mlps(mean, IMAGES[:2])] == [17, 17, 17]


def test_class_weight_without_class_token_is_refused() -> None:
    mean = toy_model(toy_arch("mean", prefix=0))
    options = HALF.model_copy(update={"class_weight": 2.0})
    with pytest.raises(PlanError, match=r"^class_weight: this model has no class token"):
        decide(options, model=mean)


PER_IMAGE = TokenChannels(method="token-channels", hidden_drop=0.5, selection="per-image")


def test_per_image_keeps_all_neurons_and_reads_no_images() -> None:
    plan = token_channels(DENSE, ALL, PER_IMAGE, iter(()), ignore)
    assert [block.hidden for block in plan.blocks] == [40, 40, 40]
    assert [block.per_image for block in plan.blocks] == [None, PerImage(20), PerImage(20)]
    assert plan.blocks[0] == ALL.blocks[0]
    magnitude = PER_IMAGE.model_copy(update={"score": "magnitude", "class_weight": 2.0, "hidden_drop": 0.75})
    plan = token_channels(DENSE, ALL, magnitude, iter(()), ignore)
    assert plan.blocks[1].per_image == PerImage(10, "magnitude", 2.0)


def test_per_image_choice_of_a_model_that_chooses_already_is_refused() -> None:
    chosen = slim_by_selection(DENSE, token_channels(DENSE, ALL, PER_IMAGE, iter(()), ignore))
    with pytest.raises(PlanError, match=r'^selection: expected "static" for a model whose images already'):
        token_channels(chosen, toy_plan(chosen, Counts()), PER_IMAGE, iter(()), ignore)


def test_inputs_by_hand() -> None:
    options = TokenChannels(method="token-channels", inputs_drop=(0.0, 0.5, 0.25))
    plan = decide(options)
    assert [block.mlp_inputs for block in plan.blocks] == [None, 12, 18]
    assert [block.hidden for block in plan.blocks] == [40, 40, 40]
    sums = torch.zeros(24, dtype=torch.float64)
    for image in IMAGES.split(1):
        sums += list(live_mlps(DENSE, image))[1].inputs[0].abs().double().mean(dim=0)
    sums *= DENSE.blocks[1].mlp.fc1.weight.double().norm(dim=0)
    assert plan.blocks[1].kept.inputs == tuple(sums.topk(12).indices.sort().values.tolist())


def test_inputs_of_a_gated_mlp_count_what_both_layers_read() -> None:
    dense = toy_model(dataclasses.replace(toy_arch(), gated=True))
    for block in dense.blocks:
        block.mlp.fc1.weight[:, 1::2] = 0
        block.mlp.gate.weight[:, 1::2] = 0
    options = TokenChannels(method="token-channels", inputs_drop=0.5, keep_first=False)
    plan = token_channels(dense, toy_plan(dense, Counts()), options, [IMAGES], ignore)
    assert plan.blocks[0].kept.inputs == tuple(range(0, 24, 2))
    torch.testing.assert_close(slim_by_selection(dense, plan)(IMAGES), dense(IMAGES))


def test_inputs_and_neurons_are_cut_together() -> None:
    plan = decide(HALF.model_copy(update={"inputs_drop": 0.25}))
    assert [(block.hidden, block.mlp_inputs) for block in plan.blocks] == [(40, None), (20, 18), (20, 18)]
    assert plan.blocks[1].kept.hidden == decide().blocks[1].kept.hidden


def test_inputs_of_a_stream_that_loses_channels_are_refused() -> None:
    plan = dataclasses.replace(toy_plan(toy_model(), Counts()), channels=(tuple(range(12)),))
    options = TokenChannels(method="token-channels", inputs_drop=0.5)
    with pytest.raises(PlanError, match=r"inputs_drop: the plan so far cuts channels of the stream"):
        token_channels(toy_model(), plan, options, [], lambda seen: None)


def test_inputs_with_a_schedule_of_another_length_are_refused() -> None:
    with pytest.raises(PlanError, match=r"^inputs_drop: expected one number or 3 \(one per block\), got 2"):
        decide(TokenChannels(method="token-channels", inputs_drop=(0.5, 0.5)))


def test_folded_means_of_cut_inputs_keep_the_mean_of_what_fc1_gives() -> None:
    plan = decide(TokenChannels(method="token-channels", inputs_drop=0.5, keep_first=False))
    means = mlp_means(DENSE)
    x = DENSE.blocks[0].norm2(DENSE.blocks[0].attend(DENSE.embed(IMAGES), None)[0])
    full, plain, folded = (
        model.blocks[0].mlp.fc1(model.blocks[0].mlp.read(x)).mean((0, 1))
        for model in (DENSE, slim_by_selection(DENSE, plan), slim_by_selection(DENSE, plan, means))
    )
    torch.testing.assert_close(folded, full, rtol=1e-4, atol=1e-5)
    assert (plain - full).abs().max() > 0.1
