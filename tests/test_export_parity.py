from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from toy_graphs import ARCH, MERGED, exported, noise, random_model

from edgevit.errors import ExportError, ParityError
from edgevit.export.links import cut_after, onnx_link, torch_link
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.parity import Batch, Limits, Link, check_parity, choosing_blocks, limits_for, parity
from edgevit.models.load import ModelSource, load_model
from edgevit.plan import Choice

LIMITS = Limits(1e-4)


def _bent(path: Path, weight: str) -> Path:
    """Change the first elements of one weight of an exported file."""
    proto = onnx.load(path)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == weight)
    bent = onnx.numpy_helper.to_array(tensor).copy()
    bent[0] += 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(bent, weight))
    onnx.save(proto, path)
    return path


def _jumping(link: Link, at_block: str) -> Link:
    """Return a link that is wrong on marked images, from `at_block` on."""

    def jump(images: Batch) -> Batch:
        return (images[:, 0, 0, 0] > 0).astype(np.float32)

    def at(block: str) -> Any:
        assert link.at is not None
        runner, wrong = link.at(block), int(block.split(".")[1]) >= int(at_block.split(".")[1])
        return lambda images: runner(images) + wrong * jump(images)[:, None, None]

    return Link("the jumping link", lambda images: link.run(images) + jump(images)[:, None], at)


def _batches(images: int, marked: int) -> list[Batch]:
    """Return one batch, whose first `marked` images have the mark that `_jumping` jumps at."""
    batch = noise(ARCH, images)
    batch[:, 0, 0, 0] = -1.0
    batch[:marked, 0, 0, 0] = 1.0
    return [batch]


def test_parity_of_a_model_with_itself_is_exact() -> None:
    link = torch_link(random_model(ARCH))
    found = parity(link.run, link.run, [noise(ARCH, 2), noise(ARCH, 1)], 1e-4)
    assert (found.images, found.max_abs, found.mean_abs) == (3, 0, 0)
    assert (found.top1_agreement, found.outliers) == (1, 0)


def test_parity_measures_by_logit_and_by_image() -> None:
    expected = np.array([[0, 1, 0], [5, 0, 0]], np.float32)
    got = np.array([[0, 1, 0], [5, 6, 0]], np.float32)
    found = parity(lambda images: expected, lambda images: got, [np.zeros((2, 1, 1, 1), np.float32)], 0.1)
    assert (found.images, found.max_abs, found.mean_abs) == (2, 6, 1)
    assert (found.top1_agreement, found.outliers) == (0.5, 1)


def test_parity_with_a_nan_is_beyond_every_tolerance() -> None:
    expected = np.zeros((1, 3), np.float32)
    found = parity(lambda images: expected, lambda images: expected * np.nan, [noise(ARCH)], 1e9)
    assert (found.max_abs, found.outliers) == (np.inf, 1)


def test_parity_of_outputs_of_other_shapes_is_refused() -> None:
    with pytest.raises(ParityError, match=r"outputs: expected the shape \[1, 3\], got \[1, 2\]"):
        parity(
            lambda x: np.zeros((1, 3), np.float32), lambda x: np.zeros((1, 2), np.float32), [noise(ARCH)], 1
        )


def test_parity_on_no_image_is_refused() -> None:
    link = torch_link(random_model(ARCH))
    with pytest.raises(ParityError, match="expected one image or more to compare on, got none"):
        parity(link.run, link.run, [], 1e-4)


@pytest.mark.parametrize(
    ("weight", "where"),
    [
        ("patch_embed.bias", r"blocks\.0"),
        ("blocks.0.attn.q.weight", r"blocks\.0"),
        ("blocks.1.mlp.fc1.bias", r"blocks\.1"),
        ("head.bias", "head"),
    ],
)
def test_check_parity_of_a_wrong_weight_names_the_first_diverging_block(
    tmp_path: Path, weight: str, where: str
) -> None:
    path = _bent(exported(tmp_path, ARCH), weight)
    message = rf"model\.onnx against the torch model: {where} is the first that differs"
    with pytest.raises(ParityError, match=message):
        check_parity(torch_link(random_model(ARCH)), onnx_link(path, 1), [noise(ARCH)], LIMITS, ARCH)


def test_check_parity_finds_the_image_in_a_batch(tmp_path: Path) -> None:
    path = _bent(exported(tmp_path, ARCH, batch=2), "blocks.1.norm2.bias")
    with pytest.raises(ParityError, match=r"blocks\.1 is the first"):
        check_parity(torch_link(random_model(ARCH)), onnx_link(path, 1), [noise(ARCH, 2)], LIMITS, ARCH)


def test_check_parity_of_links_without_blocks_says_only_that_outputs_differ() -> None:
    link = torch_link(random_model(ARCH))
    blind = Link("the artefact", lambda images: link.run(images) + 1)
    with pytest.raises(
        ParityError, match=r"the artefact against the torch model: the outputs differ\. Expected"
    ):
        check_parity(link, blind, [noise(ARCH)], LIMITS, ARCH)


def test_limits_allow_outliers_only_where_tokens_are_merged() -> None:
    assert limits_for(ARCH, 1e-4) == Limits(1e-4, 0.0)
    assert limits_for(MERGED, 1e-4).outliers > 0
    dead = replace(ARCH, blocks=(ARCH.blocks[0], replace(ARCH.blocks[1], queries=1, tokens_out=1)))
    assert limits_for(dead, 1e-4).outliers == 0


def test_first_block_is_where_a_reduced_input_shows() -> None:
    fewer = replace(ARCH.blocks[0], tokens_in=11, queries=11, tokens_out=11)
    arch = replace(ARCH, blocks=(fewer, fewer), choice=Choice("drop"))
    assert choosing_blocks(arch) == ("blocks.0",)
    assert choosing_blocks(MERGED) == ("blocks.0", "blocks.1")
    assert limits_for(arch, 1e-4).outliers > 0


def test_check_parity_of_plain_model_allows_no_image() -> None:
    link = torch_link(random_model(ARCH))
    with pytest.raises(ParityError, match="1 of 60 images beyond"):
        check_parity(link, _jumping(link, "blocks.0"), _batches(60, 1), limits_for(ARCH, 1e-4), ARCH)


def test_check_parity_of_merged_model_allows_few_images_that_part_at_a_merge() -> None:
    link = torch_link(random_model(MERGED))
    candidate = _jumping(link, "blocks.1")
    found = check_parity(link, candidate, _batches(60, 1), limits_for(MERGED, 1e-4), MERGED)
    assert (found.images, found.outliers) == (60, 1)


def test_check_parity_of_merged_model_allows_one_of_few_images() -> None:
    link = torch_link(random_model(MERGED))
    found = check_parity(link, _jumping(link, "blocks.1"), _batches(32, 1), limits_for(MERGED, 1e-4), MERGED)
    assert (found.images, found.outliers) == (32, 1)


def test_limits_allow_more_outliers_where_many_blocks_choose() -> None:
    many = replace(MERGED, blocks=MERGED.blocks[:1] * 10)
    assert limits_for(many, 1e-4).outliers == pytest.approx(0.1)


def test_check_parity_of_merged_model_refuses_more_images_than_the_share() -> None:
    link = torch_link(random_model(MERGED))
    candidate = _jumping(link, "blocks.1")
    with pytest.raises(
        ParityError, match=r"blocks\.1 is the first.*on all but 2% of the images.*2 of 60 images"
    ):
        check_parity(link, candidate, _batches(60, 2), limits_for(MERGED, 1e-4), MERGED)


def test_check_parity_of_merged_model_refuses_an_image_that_parts_elsewhere() -> None:
    link = torch_link(random_model(MERGED))
    candidate = _jumping(link, "blocks.2")  # merges nothing
    with pytest.raises(ParityError, match=r"blocks\.2 is the first"):
        check_parity(link, candidate, _batches(60, 1), limits_for(MERGED, 1e-4), MERGED)


def test_check_parity_with_unexplained_outliers_counts_them_alone() -> None:
    link = torch_link(random_model(MERGED))
    candidate = _jumping(link, "blocks.2")
    limits = replace(limits_for(MERGED, 1e-4), explained=False)
    assert check_parity(link, candidate, _batches(60, 1), limits, MERGED).outliers == 1
    with pytest.raises(ParityError, match=r"on all but 2% of the images; got"):
        check_parity(link, candidate, _batches(60, 2), limits, MERGED)


def test_check_parity_tolerance_grows_with_the_logits() -> None:
    zeros = np.zeros((1, 2), np.float32)
    small, large = zeros + 0.5, zeros + 50.0
    for expected, tolerance in ((small, 0.1), (large, 5.0)):
        reference = Link("reference", lambda images, expected=expected: expected)
        found = check_parity(reference, reference, [noise(ARCH)], Limits(0.1), ARCH)
        assert found.tolerance == pytest.approx(tolerance)


def test_cut_after_a_block_gives_what_leaves_it(tmp_path: Path) -> None:
    path, cut = exported(tmp_path, MERGED), tmp_path / "cut.onnx"
    cut_after(path, "blocks.1", cut)
    expected = torch_link(random_model(MERGED)).at
    assert expected is not None
    np.testing.assert_allclose(
        onnx_link(cut, 1).run(noise(MERGED)), expected("blocks.1")(noise(MERGED)), atol=1e-5
    )


def test_cut_after_an_unknown_block_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path, ARCH)
    with pytest.raises(ExportError, match=r"expected a block blocks\.0\.\.blocks\.1, got 'blocks\.7'"):
        cut_after(path, "blocks.7", tmp_path / "cut.onnx")


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.parametrize("opset", [17, 18, 20, 23])
def test_real_model_is_equal_in_torch_onnxruntime_and_openvino(
    tmp_path: Path, shared_data: Path, opset: int
) -> None:
    import openvino

    weights = shared_data / "deit_tiny_patch16_224_imagenet.safetensors"
    model = load_model(ModelSource("deit_tiny_patch16_224", weights)).model
    path = tmp_path / "deit.onnx"
    export_onnx(model, path, ExportOptions(opset=opset))
    torch.set_num_threads(2)
    images = [np.random.default_rng(seed).standard_normal((1, 3, 224, 224), np.float32) for seed in range(4)]
    check_parity(torch_link(model), onnx_link(path, 2), images, limits_for(model.arch, 1e-4), model.arch)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    artefact = Link("openvino", lambda batch: np.array(compiled(batch)[0]))
    check_parity(onnx_link(path, 2), artefact, images, limits_for(model.arch, 1e-3), model.arch)
