"""What single cuts cost, measured on toy models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_dinos import toy_dino
from toy_swins import SWIN
from toy_vits import ARCH, few_cause_images, toy_arch, toy_model, toy_plan

from edgevit.models.layers import SlimViT
from edgevit.plan import Counts
from edgevit.progress import silent
from edgevit.prune.curves import Sensitivity
from edgevit.prune.sensitivity import BlockFile, CutShares, joint_kl, measure_sensitivity
from edgevit.slim.recover import slim_closed_form
from edgevit.slim.site import ClosedForm

CUTS = CutShares(heads=(0.67,), qk_dim=(0.5,), vo_dim=(0.5,), hidden=(0.75, 0.5), tokens=(0.1, 0.4))


def images_of(model: SlimViT) -> Tensor:
    return few_cause_images(48, model.arch)


def batches(images: Tensor) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(images.split(32))


def measure(model: SlimViT, shares: CutShares = CUTS) -> Sensitivity:
    return measure_sensitivity(model, batches(images_of(model)), shares, None, silent)


def test_cut_of_the_last_neurons_costs_what_slimming_makes_of_it_on_images_that_it_has_not_seen() -> None:
    model = toy_model()
    found = measure(model).curve(2, "hidden")
    assert found is not None
    plan = toy_plan(model, Counts(hidden=[40, 40, 20]))
    images = images_of(model)
    slim = slim_closed_form(model, plan, batches(images[:32]), ClosedForm(), silent)

    expected = joint_kl(model, slim, batches(images[32:])())

    assert found.counts == (30, 20)
    assert found.at(20) == pytest.approx(expected, rel=2e-2)  # mean weights are those of all images
    assert 0 < found.at(30) < found.at(20)


def test_every_kind_is_measured_but_merging_in_front_of_dead_tokens() -> None:
    found = measure(toy_model())
    kinds = [{curve.kind for curve in block} for block in found.blocks]
    widths = {"heads", "qk_dim", "vo_dim", "hidden"}
    assert kinds == [widths | {"tokens"}, widths | {"tokens"}, widths]
    assert all(kl > 0 for block in found.blocks for curve in block for kl in curve.kl)


@pytest.mark.parametrize(
    ("arch", "refused"),
    [
        (SWIN, {"tokens"}),
        (dataclasses.replace(ARCH, qk_norm=True), {"qk_dim"}),
        (dataclasses.replace(toy_arch("mean"), norm="after-pool"), set()),
    ],
    ids=["swin", "qk-norm", "mean"],
)
def test_kinds_that_a_model_refuses_are_not_measured(arch: object, refused: set[str]) -> None:
    model = toy_model(arch)  # type: ignore[arg-type]
    found = measure(model, CutShares(heads=(), qk_dim=(0.5,), vo_dim=(0.5,), hidden=(0.5,), tokens=(0.3,)))
    kinds = {curve.kind for block in found.blocks for curve in block}
    assert kinds == {"qk_dim", "vo_dim", "hidden", "tokens"} - refused


def test_rotary_pairs_are_measured_with_the_errors_of_whole_pairs() -> None:
    model = toy_dino()
    for block in model.blocks:
        block.attn.q.weight[[row for row in range(24) if row % 8 in (1, 2, 5, 6)]] = 0
    curve = measure(model, CutShares(heads=(), qk_dim=(0.5, 0.25), vo_dim=(), hidden=(), tokens=())).curve(
        0, "qk_dim"
    )
    assert curve is not None
    assert curve.counts == (4, 2)
    assert curve.at(4) < 1e-6 < curve.at(2)
    assert curve.errors[1] == curve.errors[0] > curve.errors[2] > curve.errors[4] == curve.errors[8] == 0


def test_neurons_that_nothing_reads_cost_nothing() -> None:
    model = toy_model()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight[:, ::2] = 0.0
    found = measure(model).curve(1, "hidden")
    other = measure(model).curve(0, "hidden")
    assert found is not None
    assert other is not None
    assert found.at(20) < 1e-3 * other.at(20)


def test_measurement_leaves_the_model_as_it_is() -> None:
    model, before = toy_model(), toy_model().state_dict()
    measure(model)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_interrupted_measurement_goes_on_to_the_same_result(tmp_path: Path) -> None:
    model = toy_model()
    kept = BlockFile(tmp_path / "blocks.json", "this one")
    whole = measure(model)
    images = batches(images_of(model))
    cuts = len([kl for curve in whole.blocks[0] for kl in curve.kl])

    def stop(task: str, done: int, total: int) -> None:
        if task == "measuring cuts" and done == cuts + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(model, images, CUTS, kept, stop)
    told: list[int] = []

    def tell(task: str, done: int, total: int) -> None:
        if task == "measuring cuts":
            told.append(done)

    assert measure_sensitivity(model, images, CUTS, kept, tell) == whole
    assert told[0] == cuts + 1


def test_blocks_of_another_measurement_are_not_read(tmp_path: Path) -> None:
    model = toy_model()
    path, images = tmp_path / "blocks.json", batches(images_of(model))
    measure_sensitivity(model, images, CUTS, BlockFile(path, "this one"), silent)
    coarse = dataclasses.replace(CUTS, hidden=(0.5,))
    found = measure_sensitivity(model, images, coarse, BlockFile(path, "that one"), silent)
    assert found == measure(model, coarse)


def test_kl_of_a_model_with_itself_is_0() -> None:
    model = toy_model()
    assert joint_kl(model, model, batches(images_of(model))()) == 0.0
