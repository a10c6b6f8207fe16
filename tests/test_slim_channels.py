from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toy_choosers import chooser, choosing_arch
from toy_streams import MODELS, narrow_toy, some_channels, with_zero_channels
from toy_vits import few_cause_images, fewer_tokens, noise_images, toy_model, toy_plan

from edgevit.cost import model_cost
from edgevit.errors import PlanError
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.verify import check_dims
from edgevit.models.anatomy import slim_arch
from edgevit.models.arch import arch_from_json, arch_to_json
from edgevit.models.layers import SlimViT
from edgevit.plan import Choice, Counts, plan_from_json, plan_to_json
from edgevit.progress import silent
from edgevit.slim import SlimOptions, slim_model
from edgevit.slim.channels import cut_channels


def assert_equal_outputs(narrow: SlimViT, masked: SlimViT) -> None:
    image = noise_images(3, masked.arch)
    torch.testing.assert_close(narrow(image), masked(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_cut_channels_is_exact_against_zeros_in_all_that_is_added(name: str) -> None:
    dense = MODELS[name]()
    kept = some_channels(dense)
    narrow, masked = cut_channels(dense, kept), with_zero_channels(dense, kept)
    assert [block.embed for block in narrow.arch.blocks] == [
        sum(c % 3 != 1 for c in range(block.embed)) for block in dense.arch.blocks
    ]
    assert_equal_outputs(narrow, masked)
    image = noise_images(3, dense.arch)
    assert (narrow(image) - dense(image)).abs().max() > 0.01


def test_norm_that_divides_by_the_channels_left_is_not_exact() -> None:
    dense = toy_model()
    kept = some_channels(dense)
    narrow, masked = cut_channels(dense, kept), with_zero_channels(dense, kept)
    for module in narrow.modules():
        if hasattr(module, "full"):
            module.full = 16
    image = noise_images(3)
    assert (narrow(image) - masked(image)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["plain", "Swin", "CCT"])
def test_cut_channels_twice_is_exact(name: str) -> None:
    dense = MODELS[name]()
    once = some_channels(dense)
    narrow = cut_channels(dense, once)
    twice = some_channels(narrow)
    both = tuple(tuple(first[c] for c in second) for first, second in zip(once, twice, strict=True))
    assert_equal_outputs(cut_channels(narrow, twice), with_zero_channels(dense, both))


@pytest.mark.parametrize("choice", [None, Choice("drop"), Choice("clusters", "knn")])
@pytest.mark.parametrize("place", [None, 1])
def test_cut_channels_of_a_model_with_fewer_tokens_is_exact(place: int | None, choice: Choice | None) -> None:
    dense = toy_model()
    plan = fewer_tokens(toy_plan(dense, Counts()), place, 11, choice)
    slim = slim_model(dense, plan, SlimOptions("none"), None, silent)
    kept = some_channels(slim)
    assert_equal_outputs(cut_channels(slim, kept), with_zero_channels(slim, kept))


@pytest.mark.parametrize("name", MODELS)
def test_cost_of_narrow_dims_is_what_runs_and_what_is_stored(name: str) -> None:
    model = narrow_toy(name)
    with FlopCounterMode(display=False) as counter:
        model(noise_images(1, model.arch))
    total = model_cost(model.arch).total
    assert 2 * total.macs == counter.get_total_flops()
    assert total.params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["plain", "Swin", "CCT", "qk-norm"])
def test_export_of_narrow_model_has_its_dims_and_outputs(name: str, tmp_path: Path) -> None:
    model = narrow_toy(name)
    export_onnx(model, tmp_path / "model.onnx", ExportOptions(opset=18, batch=2))
    check_dims(tmp_path / "model.onnx", model.arch)
    image = noise_images(2, model.arch)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    np.testing.assert_allclose(found, model(image).numpy(), rtol=1e-4, atol=1e-4)


def test_narrow_arch_round_trips_through_json() -> None:
    arch = narrow_toy("Swin").arch
    assert arch.blocks[2].downsampled_full == 16
    assert arch_from_json(arch_to_json(arch), "arch.json") == arch


def test_slim_model_cuts_dims_and_channels_of_one_plan() -> None:
    dense = toy_model()
    plan = toy_plan(dense, Counts(hidden=20, qk_dim=4))
    plan = dataclasses.replace(plan, channels=some_channels(dense))
    assert plan_from_json(plan_to_json(plan)) == plan
    slim = slim_model(dense, plan, SlimOptions("none"), None, silent)
    assert slim.arch == slim_arch(dense.arch, plan)
    wide = slim_model(dense, dataclasses.replace(plan, channels=None), SlimOptions("none"), None, silent)
    assert_equal_outputs(slim, with_zero_channels(wide, some_channels(dense)))


def test_narrow_model_is_slimmed_by_selection_with_the_bias_of_its_keys() -> None:
    narrow = narrow_toy("plain")
    for block in narrow.blocks:
        block.mlp.fc2.weight[:, ::2] = 0
    slim = slim_model(narrow, toy_plan(narrow, Counts(hidden=20)), SlimOptions("none"), None, silent)
    assert slim.arch.blocks[0].full == 24
    assert torch.equal(slim.blocks[0].attn.k.bias, narrow.blocks[0].attn.k.bias)
    assert_equal_outputs(slim, narrow)


def test_closed_form_of_a_narrow_model_is_refused() -> None:
    narrow = narrow_toy("plain")
    with pytest.raises(PlanError, match=r'slim\.recover: expected "none" for a model that lacks channels'):
        slim_model(narrow, toy_plan(narrow, Counts(hidden=20)), SlimOptions("closed-form"), None, silent)


def test_narrow_norm_is_steady_for_streams_far_from_zero() -> None:
    dense = toy_model()
    dense.patch_embed.bias += 300  # type: ignore[union-attr,operator]
    kept = (tuple(range(24)),)
    image = few_cause_images(3)
    torch.testing.assert_close(cut_channels(dense, kept)(image), dense(image), rtol=1e-3, atol=1e-3)


def test_cut_channels_under_neurons_that_images_choose_is_exact() -> None:
    dense = chooser(choosing_arch())
    kept = some_channels(dense)
    assert_equal_outputs(cut_channels(dense, kept), with_zero_channels(dense, kept))


def test_channels_under_an_mlp_that_reads_some_only_are_refused() -> None:
    dense = chooser(choosing_arch(inputs=9))
    plan = dataclasses.replace(toy_plan(dense, Counts()), channels=some_channels(dense))
    with pytest.raises(PlanError, match=r"plan\.channels: blocks\.1: its MLP reads 9 channels of the stream"):
        slim_model(dense, plan, SlimOptions("none"), None, silent)
