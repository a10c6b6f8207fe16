"""What the MLPs read and do on images."""

from __future__ import annotations

import pytest
import torch
from toy_ccts import CCT_ARCH
from toy_swins import SWIN
from toy_vits import few_cause_images, toy_arch, toy_model

from edgevit.models.layers import SlimViT, activate
from edgevit.models.observe import live_mlps, mean_of_mlps

DENSE = toy_model()
IMAGES = few_cause_images(6)


def by_hook(model: SlimViT, images: torch.Tensor) -> list[torch.Tensor]:
    """Return what each fc2 is given when the model runs."""
    seen: list[torch.Tensor] = []
    hooks = [
        block.mlp.fc2.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        for block in model.blocks
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


FAMILIES = {"ViT": toy_model(toy_arch("mean")), "Swin": toy_model(SWIN), "CCT": toy_model(CCT_ARCH)}


@pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)
def test_live_neurons_are_what_fc2_multiplies(model: SlimViT) -> None:
    images = few_cause_images(6, model.arch)
    for found, expected in zip(live_mlps(model, images), by_hook(model, images), strict=True):
        torch.testing.assert_close(found.neurons, expected)


def test_live_neurons_of_the_last_block_are_those_the_head_reads() -> None:
    *early, last = live_mlps(DENSE, IMAGES)
    assert [tuple(live.neurons.shape) for live in early] == [(6, 17, 40)] * 2
    assert [tuple(live.inputs.shape) for live in early] == [(6, 17, 24)] * 2
    assert [live.block for live in (*early, last)] == [0, 1, 2]
    torch.testing.assert_close(last.neurons, by_hook(DENSE, IMAGES)[-1][:, :1])
    assert last.inputs.shape == (6, 1, 24)


def test_live_inputs_are_what_fc1_multiplies() -> None:
    for live in live_mlps(DENSE, IMAGES):
        mlp = DENSE.blocks[live.block].mlp
        torch.testing.assert_close(activate(mlp.fc1(live.inputs), "gelu"), live.neurons)


def test_mean_of_mlps_counts_every_image_once_and_tells_how_far_it_is() -> None:
    told: list[int] = []
    means = mean_of_mlps(DENSE, IMAGES.split(4), lambda live: live.neurons.mean(dim=1), told.append)
    assert told == [4, 6]
    for mean, live in zip(means, live_mlps(DENSE, IMAGES), strict=True):
        assert mean.dtype == torch.float64
        torch.testing.assert_close(mean, live.neurons.double().mean(dim=(0, 1)), rtol=1e-5, atol=1e-6)
