"""The plan of a build whose recipe lets methods decide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_build import build_patiently, made, write_toy

from edgevit.errors import ImagesError, PlanError
from edgevit.plan import Choice, PerImage, plan_from_json
from edgevit.report.model import Report

COUPLED = '[[prune]]\nmethod = "coupled-dims"\nqk_drop = 0.5\n'
CHANNELS = '[[prune]]\nmethod = "token-channels"\nhidden = [96, 64]\n'
NONE = '[slim]\nrecover = "none"\n'


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """Return a finished build and its recipe's folder."""
    folder = tmp_path_factory.mktemp("decide")
    recipe = write_toy(folder, plan="[plan]\nvo_dim = 12\n" + COUPLED + CHANNELS + NONE)
    return build_patiently(recipe, folder / "out"), folder


def test_build_writes_counts_and_indices_of_methods_into_the_plan(built: tuple[Report, Path]) -> None:
    report, folder = built
    plan = plan_from_json(json.loads((folder / "out" / "plan.json").read_text()))
    assert [(b.qk_dim, b.vo_dim, b.hidden) for b in plan.blocks] == [(16, 12, 96), (8, 12, 64)]
    assert [b.kept.qk is None for b in plan.blocks] == [True, False]
    assert [len(b.kept.hidden or ()) for b in plan.blocks] == [96, 64]
    assert report.plan.methods == ("coupled-dims", "token-channels")
    assert [(b.qk_dim, b.hidden) for b in report.plan.blocks] == [(16, 96), (8, 64)]


def test_build_opens_calibration_images_for_a_method(built: tuple[Report, Path]) -> None:
    report, _ = built
    assert report.recover == "none"
    assert report.calibration is not None
    assert made(report)[:6] == ["load", "decode calibration", "decode evaluation", "prune", "plan", "slim"]


def test_build_again_makes_nothing_and_another_share_decides_anew(built: tuple[Report, Path]) -> None:
    _, folder = built
    assert made(build_patiently(folder / "toy.toml", folder / "out")) == []
    write_toy(folder, plan="[plan]\nvo_dim = 12\n" + COUPLED.replace("0.5", "0.25") + CHANNELS + NONE)
    again = made(build_patiently(folder / "toy.toml", folder / "out"))
    assert again[:3] == ["prune", "plan", "slim"]


def test_build_with_a_schedule_of_another_length_says_both_lengths(tmp_path: Path) -> None:
    recipe = write_toy(tmp_path, plan=COUPLED + CHANNELS.replace("[96, 64]", "[96, 64, 32]") + NONE)
    with pytest.raises(
        PlanError, match=r"toy\.toml: prune\[1\]\.hidden: expected one number or 2 \(one per block\), got 3"
    ):
        build_patiently(recipe, tmp_path / "out")


def test_build_without_a_method_that_looks_opens_no_images(tmp_path: Path) -> None:
    recipe = write_toy(tmp_path, plan=COUPLED + NONE)
    for image in (tmp_path / "calibration").rglob("*.png"):
        image.write_bytes(b"broken")
    assert build_patiently(recipe, tmp_path / "out").calibration is None
    write_toy(tmp_path, plan=CHANNELS + NONE)
    with pytest.raises(ImagesError, match="cannot be read as an image"):
        build_patiently(recipe, tmp_path / "out")


def test_build_lets_fewer_patches_enter_by_a_threshold(tmp_path: Path) -> None:
    patches = '[prune]\nmethod = "patch-similarity"\nstrategy = "clusters"\nthreshold = -0.2\n'
    report = build_patiently(write_toy(tmp_path, plan=patches + NONE), tmp_path / "out")
    plan = plan_from_json(json.loads((tmp_path / "out" / "plan.json").read_text()))
    assert plan.input is not None
    assert plan.input.choice == Choice("clusters")
    assert [block.tokens for block in plan.blocks] == [plan.input.tokens] * 2
    assert [block.tokens for block in report.plan.blocks] == [plan.input.tokens] * 2
    (reduction,) = report.plan.reductions
    assert (reduction.place, reduction.strategy) == ("input", "clusters")
    assert (reduction.before, reduction.after) == (17, plan.input.tokens)
    assert report.calibration is not None


PER_IMAGE = '[[prune]]\nmethod = "token-channels"\nselection = "per-image"\nhidden = [192, 64]\n'


def test_build_lets_images_choose_neurons(tmp_path: Path) -> None:
    recipe = write_toy(tmp_path, plan=PER_IMAGE + "inputs_drop = [0.0, 0.25]\n", runtime="openvino")
    report = build_patiently(recipe, tmp_path / "out")
    plan = plan_from_json(json.loads((tmp_path / "out" / "plan.json").read_text()))
    assert [block.per_image for block in plan.blocks] == [None, PerImage(64)]
    assert [(b.hidden, b.hidden_used, b.mlp_inputs) for b in report.plan.blocks] == [
        (192, None, None),
        (192, 64, 36),
    ]
    assert report.recover == "closed-form"
    dense, slim = report.blocks[1].dense, report.blocks[1].slim
    # The last block computes the class token alone; its keys and values are of all 17.
    assert dense.macs - slim.macs > 48 * 192 * 2 * 16
    assert slim.params == dense.params - 12 * 192


def test_build_whose_images_choose_needs_no_calibration(tmp_path: Path) -> None:
    recipe = write_toy(tmp_path, plan=PER_IMAGE + NONE)
    text = recipe.read_text()
    recipe.write_text(text[: text.index("[calibration]")] + text[text.index("[evaluation]") :])
    report = build_patiently(recipe, tmp_path / "out")
    assert report.calibration is None
    assert report.plan.blocks[1].hidden_used == 64
