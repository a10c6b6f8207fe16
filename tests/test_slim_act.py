from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from toy_build import write_images
from toy_choosers import chooser
from toy_vits import fewer_tokens, toy_arch, toy_model, toy_plan

from edgevit.errors import ImagesError, PlanError
from edgevit.images import Images, load_image_set, open_images
from edgevit.methods import TokenChannels
from edgevit.models.observe import live_mlps
from edgevit.plan import Choice, Counts, PerImage
from edgevit.preprocess import Preprocess
from edgevit.progress import silent
from edgevit.prune.token_channels import token_channels
from edgevit.slim import SlimOptions, slim_model
from edgevit.slim.recover import slim_closed_form
from edgevit.slim.select import MlpMeans, slim_by_selection

NONE = SlimOptions("none")
CLOSED = SlimOptions("closed-form")
PREPROCESS = Preprocess(
    resize=16, crop=(16, 16), interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3)
)


def _images(folder: Path, count: int) -> Images:
    write_images(folder / "images", count)
    (folder / "set.toml").write_text('kind = "folder"\npath = "images"\n')
    return open_images(load_image_set("set.toml", folder), PREPROCESS, None, seed=0)


def test_slimming_without_recovery_is_selection() -> None:
    dense = toy_model()
    plan = toy_plan(dense, Counts(hidden=20, heads=2))
    slim, selected = slim_model(dense, plan, NONE, None, silent), slim_by_selection(dense, plan)
    assert all(torch.equal(slim.state_dict()[name], value) for name, value in selected.state_dict().items())


def test_slimming_in_closed_form_uses_the_images(tmp_path: Path) -> None:
    dense, images = toy_model(), _images(tmp_path, 40)
    plan = toy_plan(dense, Counts(hidden=20, heads=2))
    slim = slim_model(dense, plan, CLOSED, images, silent)
    batches = [torch.from_numpy(batch) for batch in images.batches(32)]
    expected = slim_closed_form(dense, plan, lambda: iter(batches), CLOSED.closed_form, silent)
    assert slim.arch == expected.arch
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(slim.state_dict()[name], value)
    selected = slim_by_selection(dense, plan).blocks[0].mlp.fc2.weight
    assert not torch.allclose(slim.blocks[0].mlp.fc2.weight, selected, atol=1e-2)


def test_closed_form_of_a_model_that_already_merges_is_refused(tmp_path: Path) -> None:
    dense = toy_model()
    merging = slim_by_selection(dense, toy_plan(dense, Counts(tokens=12)))
    plan = toy_plan(merging, Counts(hidden=20))
    with pytest.raises(PlanError, match=r'expected "none" for a model that already merges tokens'):
        slim_model(merging, plan, CLOSED, _images(tmp_path, 40), silent)
    assert slim_model(merging, plan, NONE, None, silent).arch.blocks[0].hidden == 20
    entering = slim_by_selection(dense, fewer_tokens(toy_plan(dense, Counts()), None, 12, Choice("drop")))
    with pytest.raises(PlanError, match=r'expected "none" for a model that already merges tokens'):
        slim_model(entering, toy_plan(entering, Counts(hidden=20)), CLOSED, _images(tmp_path, 40), silent)


def test_plain_cutting_folds_the_means_of_cut_neurons_when_asked(tmp_path: Path) -> None:
    dense, images = toy_model(), _images(tmp_path, 40)
    plan = toy_plan(dense, Counts(hidden=10))
    folds = SlimOptions("none", fold_means=True)
    (batch,) = (torch.from_numpy(batch) for batch in images.batches(40))
    mean = [
        MlpMeans(live.neurons.double().mean(dim=(0, 1)), live.inputs.double().mean(dim=(0, 1)))
        for live in live_mlps(dense, batch)
    ]
    slim, expected = slim_model(dense, plan, folds, images, silent), slim_by_selection(dense, plan, mean)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(slim.state_dict()[name], value)
    plain = slim_model(dense, plan, NONE, images, silent).state_dict()
    changed = {name for name, value in plain.items() if not torch.allclose(value, slim.state_dict()[name])}
    assert changed == {f"blocks.{index}.mlp.fc2.bias" for index in range(3)}


def test_folding_means_without_images_is_refused() -> None:
    dense = toy_model()
    with pytest.raises(PlanError, match=r"folding what cut neurons add needs \[calibration\] images"):
        slim_model(
            dense, toy_plan(dense, Counts(hidden=20)), SlimOptions("none", fold_means=True), None, silent
        )


def test_closed_form_without_images_is_refused() -> None:
    dense = toy_model()
    with pytest.raises(PlanError, match=r'"closed-form" needs \[calibration\] images'):
        slim_model(dense, toy_plan(dense, Counts(hidden=20)), CLOSED, None, silent)


def test_closed_form_that_cuts_nothing_needs_no_images() -> None:
    dense = toy_model()
    slim = slim_model(dense, toy_plan(dense, Counts()), CLOSED, None, silent)
    assert all(torch.equal(slim.state_dict()[name], value) for name, value in dense.state_dict().items())


def test_closed_form_of_dead_tokens_alone_needs_no_images() -> None:
    dense = toy_model()
    slim = slim_model(dense, toy_plan(dense, Counts(), dead_tokens=True), CLOSED, None, silent)
    assert slim.arch.blocks[-1].queries == 1


def test_closed_form_counts_the_tokens_that_merging_leaves(tmp_path: Path) -> None:
    dense, images = toy_model(), _images(tmp_path, 6)
    slim_model(dense, toy_plan(dense, Counts(hidden=20)), CLOSED, images, silent)
    message = r"at least 9 images .*\(40 dims .* blocks\.2, 9 tokens an image\), got 6\."
    with pytest.raises(ImagesError, match=message):
        slim_model(dense, toy_plan(dense, Counts(tokens=[17, 17, 9])), CLOSED, images, silent)


def test_too_few_images_are_refused_with_the_number_that_is_enough(tmp_path: Path) -> None:
    """40 neurons want 80 rows; 17 tokens an image give them from 5 images on."""
    dense = toy_model()
    plan = toy_plan(dense, Counts(hidden=20))
    message = r"calibration.images: .* at least 5 images .*\(40 dims .* 17 tokens an image\), got 4\."
    with pytest.raises(ImagesError, match=message):
        slim_model(dense, plan, CLOSED, _images(tmp_path / "four", 4), silent)
    slim = slim_model(dense, plan, CLOSED, _images(tmp_path / "five", 5), silent)
    assert all(parameter.isfinite().all() for parameter in slim.parameters())


def test_heads_wider_than_the_mlp_set_the_number_of_images(tmp_path: Path) -> None:
    arch = toy_arch()
    blocks = tuple(dataclasses.replace(block, vo_dim=30) for block in arch.blocks)
    dense = toy_model(dataclasses.replace(arch, blocks=blocks))
    with pytest.raises(ImagesError, match=r"at least 11 images .*\(90 dims"):
        slim_model(dense, toy_plan(dense, Counts(vo_dim=8)), CLOSED, _images(tmp_path, 10), silent)


def test_slimming_leaves_the_weights_of_the_dense_model(tmp_path: Path) -> None:
    dense = toy_model()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    plan = toy_plan(dense, Counts(hidden=20, vo_dim=4, tokens=[12, 12, 10]))
    slim_model(dense, plan, CLOSED, _images(tmp_path, 8), silent)
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


CHOICE = TokenChannels(method="token-channels", hidden_drop=0.75, selection="per-image", keep_first=False)


def test_neurons_that_are_cut_where_images_choose_are_refused() -> None:
    dense = toy_model()
    plan = toy_plan(dense, Counts(hidden=20))
    blocks = tuple(dataclasses.replace(block, per_image=PerImage(10)) for block in plan.blocks)
    with pytest.raises(PlanError, match=r"plan\.hidden: blocks\.0: expected all 40 neurons where each image"):
        slim_model(dense, dataclasses.replace(plan, blocks=blocks), NONE, None, silent)


def test_plain_cutting_folds_the_means_of_neurons_that_an_image_does_not_use(tmp_path: Path) -> None:
    dense, images = toy_model(), _images(tmp_path, 40)
    plan = token_channels(dense, toy_plan(dense, Counts()), CHOICE, iter(()), lambda seen: None)
    folded = slim_model(dense, plan, SlimOptions("none", fold_means=True), images, silent)
    plain = slim_model(dense, plan, NONE, None, silent)
    (batch,) = (torch.from_numpy(one) for one in images.batches(40))
    for live in live_mlps(dense, batch):
        full, cut, kept = (model.blocks[live.block].mlp for model in (dense, plain, folded))
        expected = full.out(live.neurons).mean(dim=(0, 1))
        torch.testing.assert_close(kept.out(live.neurons).mean(dim=(0, 1)), expected, rtol=1e-4, atol=1e-4)
        assert (cut.out(live.neurons).mean(dim=(0, 1)) - expected).abs().max() > 1e-2


def test_closed_form_takes_what_a_method_chose_per_image(tmp_path: Path) -> None:
    dense, images = toy_model(), _images(tmp_path, 40)
    plan = token_channels(dense, toy_plan(dense, Counts()), CHOICE, iter(()), lambda seen: None)
    slim = slim_model(dense, plan, CLOSED, images, silent)
    assert [block.per_image for block in slim.arch.blocks] == [PerImage(10)] * 3
    for full, cut in zip(dense.blocks, slim.blocks, strict=True):
        assert cut.mlp.choice is not None
        torch.testing.assert_close(cut.mlp.choice.worth, full.mlp.fc2.weight.norm(dim=0))
        assert not torch.allclose(cut.mlp.fc2.weight, full.mlp.fc2.weight, atol=1e-2)


def test_folding_means_of_a_model_whose_images_choose_already_adds_nothing(tmp_path: Path) -> None:
    dense, images = chooser(), _images(tmp_path, 40)
    plan = toy_plan(dense, Counts(qk_dim=4))
    folded = slim_model(dense, plan, SlimOptions("none", fold_means=True), images, silent).state_dict()
    plain = slim_model(dense, plan, NONE, None, silent).state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(folded[name], value)
