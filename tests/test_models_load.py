from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from toy_choosers import chooser
from toy_vits import PREPROCESS, fill, noise_images, toy_arch, toy_model, toy_plan

from edgevit.errors import RecipeError, UnsupportedModelError, WeightsError
from edgevit.models.load import (
    ARCH_FILE,
    WEIGHTS_FILE,
    LoadedModel,
    ModelSource,
    OptionValue,
    load_model,
    load_saved,
    save_model,
)
from edgevit.plan import Counts
from edgevit.preprocess import Preprocess
from edgevit.slim.select import slim_by_selection

NAME = "vit_tiny_patch16_224"
OPTIONS: dict[str, OptionValue] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}


def _timm(**changes: OptionValue) -> nn.Module:
    return fill(timm.create_model(NAME, **(OPTIONS | changes)))


def _source(weights: Path, **changes: OptionValue) -> ModelSource:
    return ModelSource(NAME, weights, options=OPTIONS | changes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a directory with a saved slim model."""
    dense = toy_model()
    slim = slim_by_selection(dense, toy_plan(dense, Counts(heads=2, qk_dim=5, vo_dim=3, hidden=7, tokens=12)))
    save_model(LoadedModel(slim, PREPROCESS, ("a", "b", "c", "d", "é"), False), tmp_path)
    return tmp_path


def test_saved_model_gives_equal_outputs(tmp_path: Path) -> None:
    dense = toy_model(dataclasses.replace(toy_arch("class+distillation", 2), qk_norm=True, pre_norm=True))
    slim = slim_by_selection(dense, toy_plan(dense, Counts(vo_dim=3, hidden=[7, 40, 1], tokens=12)))
    save_model(LoadedModel(slim, PREPROCESS, None, True), tmp_path)
    loaded = load_model(ModelSource("saved", directory=tmp_path))
    image = noise_images(3, slim.arch)
    assert torch.equal(loaded.model(image), slim(image))
    assert loaded.model.arch == slim.arch
    assert not loaded.model.training


def test_saved_model_keeps_labels_and_preprocessing(saved: Path) -> None:
    loaded = load_saved(saved)
    assert loaded.preprocess == PREPROCESS
    assert loaded.labels == ("a", "b", "c", "d", "é")
    assert not loaded.random_weights


def test_saved_model_whose_images_choose_gives_equal_outputs(tmp_path: Path) -> None:
    model = chooser()
    save_model(LoadedModel(model, PREPROCESS, None, True), tmp_path)
    loaded = load_saved(tmp_path).model
    assert loaded.arch == model.arch
    images = noise_images(3)
    assert torch.equal(loaded(images), model(images))


def test_saved_model_is_two_files_without_pickle(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [ARCH_FILE, WEIGHTS_FILE]
    json.loads((saved / ARCH_FILE).read_text())
    header = int.from_bytes((saved / WEIGHTS_FILE).read_bytes()[:8], "little")
    json.loads((saved / WEIGHTS_FILE).read_bytes()[8 : 8 + header])


@pytest.mark.parametrize("file", [ARCH_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("keep", [None, 0, 50])
def test_saved_model_with_a_damaged_file_is_refused(saved: Path, file: str, keep: int | None) -> None:
    path = saved / file
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model .*: cannot be read .* Build it again"):
        load_saved(saved)


def _change(saved: Path, **changes: object) -> None:
    data = json.loads((saved / ARCH_FILE).read_text())
    (saved / ARCH_FILE).write_text(json.dumps(data | changes))


def test_saved_model_of_another_schema_is_refused(saved: Path) -> None:
    _change(saved, schema=99)
    with pytest.raises(WeightsError, match="expected an edgevit arch of schema 2, got 99"):
        load_saved(saved)


def test_saved_model_with_other_weights_names_the_tensors(saved: Path) -> None:
    _change(saved, classes=9)
    with pytest.raises(WeightsError, match=r"head.bias: .* wants \[9\], the file has \[5\]"):
        load_saved(saved)


@pytest.mark.parametrize("key", ["preprocess", "labels", "random_weights"])
def test_saved_model_without_a_key_is_refused(saved: Path, key: str) -> None:
    data = json.loads((saved / ARCH_FILE).read_text())
    del data[key]
    (saved / ARCH_FILE).write_text(json.dumps(data))
    with pytest.raises(WeightsError, match=f"arch.json: incomplete or damaged .*{key}"):
        load_saved(saved)


def test_saved_model_whose_arch_is_no_text_is_refused(saved: Path) -> None:
    (saved / ARCH_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_saved(saved)


@pytest.mark.parametrize("text", ["[]", "3", '{"schema": 2, "preprocess": 7}'])
def test_saved_model_whose_arch_is_no_table_is_refused(saved: Path, text: str) -> None:
    (saved / ARCH_FILE).write_text(text)
    with pytest.raises(WeightsError, match=r"arch.json: incomplete or damaged"):
        load_saved(saved)


def test_timm_model_with_weights_gives_their_outputs(tmp_path: Path) -> None:
    model = _timm()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(_source(tmp_path / "w.safetensors"))
    image = noise_images(2, loaded.model.arch)
    torch.testing.assert_close(loaded.model(image), model(image), rtol=1e-5, atol=1e-5)
    assert not loaded.random_weights


def test_swin_weights_as_published_give_their_outputs(tmp_path: Path) -> None:
    """The published files have buffers among the weights, and patch merging at the end of a stage."""
    options: dict[str, OptionValue] = {
        "img_size": 32,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "num_classes": 5,
    }
    name = "swin_tiny_patch4_window7_224"
    model = fill(timm.create_model(name, **options))
    state = {
        key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): value
        for key, value in model.state_dict().items()
    }
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    torch.save({"model": state}, tmp_path / "w.pth")
    loaded = load_model(ModelSource(name, tmp_path / "w.pth", options=options)).model
    image = noise_images(2, loaded.arch)
    torch.testing.assert_close(loaded(image), model(image), rtol=1e-5, atol=1e-5)


def test_timm_model_without_weights_is_random_and_the_same_every_time() -> None:
    first, second = (load_model(ModelSource(NAME, options=OPTIONS)) for _ in range(2))
    assert first.random_weights
    assert torch.equal(first.model.head.weight, second.model.head.weight)
    assert first.model.head.weight.abs().max() > 0


def test_weights_of_another_patch_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(_timm(patch_size=16).state_dict(), path)
    with pytest.raises(WeightsError, match=rf"are of patch size 16, {NAME} has 8"):
        load_model(_source(path))


def test_positions_of_another_image_size_are_resampled(tmp_path: Path) -> None:
    model = _timm(img_size=48)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(_source(tmp_path / "w.safetensors")).model
    assert loaded.position.shape == (1, 16, 24)
    model.set_input_size(img_size=32)
    image = noise_images(2, loaded.arch)
    torch.testing.assert_close(loaded(image), model(image), rtol=1e-4, atol=1e-4)


def test_weights_of_another_width_name_tensors_and_shapes(tmp_path: Path) -> None:
    save_file(_timm(embed_dim=48).state_dict(), tmp_path / "w.safetensors")
    message = rf"(?s)w.safetensors are not of model {NAME}:.*blocks.0.*wants \[24\], the file has \[48\]"
    with pytest.raises(WeightsError, match=message):
        load_model(_source(tmp_path / "w.safetensors"))


def test_weights_of_another_width_and_image_are_refused(tmp_path: Path) -> None:
    save_file(_timm(embed_dim=48, img_size=48).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"are not of model .*(?s:.)*\[24\], the file has \[48\]"):
        load_model(_source(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("shape", [(), (24,), (1, 10, 24), (1, 1, 24), (2, 17, 24, 1)])
def test_weights_with_impossible_positions_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    state = _timm().state_dict() | {"pos_embed": torch.ones(shape)}
    save_file(state, tmp_path / "w.safetensors")
    if shape == (1, 10, 24):  # a class token and 3 x 3 patches: an image of 24 pixels
        load_model(_source(tmp_path / "w.safetensors"))
        return
    with pytest.raises(WeightsError, match=r"pos_embed: .* wants \[1, 17, 24\], the file has"):
        load_model(_source(tmp_path / "w.safetensors"))


def test_weights_of_a_convolutional_network_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.ones(3, 3), "fc.bias": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"(?s)missing \(\d+\): .*unknown \(2\): conv1.weight; fc.bias"):
        load_model(_source(tmp_path / "w.safetensors"))


def test_name_that_timm_does_not_know_gives_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"knows no model 'vit_tiny_patch16_225'.*vit_tiny_patch16_224"):
        load_model(ModelSource("vit_tiny_patch16_225"))


def test_misspelt_name_is_answered_with_models_that_can_be_slimmed_or_none() -> None:
    with pytest.raises(RecipeError, match="knows no model 'vit_tinyy'") as refused:
        load_model(ModelSource("vit_tinyy"))
    assert "davit" not in str(refused.value)


def test_name_of_no_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="edgevit saved no such directory"):
        load_model(ModelSource(str(tmp_path / "gone")))


@pytest.mark.parametrize("options", [{"colour": "red"}, {"num_heads": 7}, {"embed_dim": "wide"}])
def test_options_that_timm_does_not_take_are_refused(options: dict[str, OptionValue]) -> None:
    with pytest.raises(RecipeError, match=rf"model.options: timm cannot make {NAME} with"):
        load_model(ModelSource(NAME, options=options))


def test_convolutional_network_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="model resnet18: expected a Vision Transformer"):
        load_model(ModelSource("resnet18"))


def test_preprocessing_is_that_of_the_model() -> None:
    preprocess = load_model(ModelSource(NAME, options=OPTIONS)).preprocess
    assert preprocess == Preprocess(
        resize=35, crop=(32, 32), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )


def test_preprocessing_of_one_channel_is_grey() -> None:
    preprocess = load_model(ModelSource(NAME, options=OPTIONS | {"in_chans": 1})).preprocess
    assert (preprocess.channels, preprocess.mean, preprocess.std) == (1, (0.5,), (0.5,))


def test_preprocessing_of_a_wide_image_has_both_edges() -> None:
    loaded = load_model(ModelSource(NAME, options=OPTIONS | {"img_size": (32, 48)}))
    assert loaded.model.arch.image == (3, 32, 48)
    assert loaded.preprocess.crop == (32, 48)
    assert loaded.preprocess.resize == (35, 53)


@pytest.mark.parametrize(("classes", "first"), [(1000, "tench, Tinca tinca"), (5, None)])
def test_labels_come_with_the_pretrained_classifier(classes: int, first: str | None) -> None:
    loaded = load_model(ModelSource(NAME, options=OPTIONS | {"num_classes": classes}))
    assert (None if loaded.labels is None else loaded.labels[0].split(":")[0]) == first
