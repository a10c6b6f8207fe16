from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_streams import MODELS, some_channels, with_zero_channels
from toy_training import SHORT, checkpoint_in, open_toy, stop_at
from toy_vits import few_cause_images, fewer_tokens, noise_images, toy_arch, toy_model, toy_plan

from edgevit.images import Images
from edgevit.models.arch import Reads
from edgevit.models.layers import SlimViT
from edgevit.models.reduction import reduce_tokens
from edgevit.plan import Choice, Counts, Strategy
from edgevit.slim.channels import cut_channels
from edgevit.slim.select import slim_by_selection
from edgevit.tune.distil import Distil, Distillation, compared_blocks, distil

MERGE = Counts(qk_dim=6, tokens=[13, 13, 9])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return open_toy(tmp_path_factory.mktemp("images"), "")


def slim_of(dense: SlimViT, counts: Counts, *, dead_tokens: bool = False) -> SlimViT:
    with torch.no_grad():
        return slim_by_selection(dense, toy_plan(dense, counts, dead_tokens=dead_tokens))


def loss_of(dense: SlimViT, slim: SlimViT, options: Distil) -> float:
    with torch.no_grad():
        return float(Distillation(slim, dense, options)(few_cause_images(8)))


@pytest.mark.parametrize("dead_tokens", [False, True])
def test_distillation_of_an_equal_student_is_nothing(dead_tokens: bool) -> None:
    dense = toy_model()
    assert loss_of(dense, slim_of(dense, Counts(), dead_tokens=dead_tokens), Distil()) == pytest.approx(
        0, abs=1e-5
    )


@pytest.mark.parametrize("counts", [Counts(qk_dim=6), Counts(hidden=20), MERGE])
def test_distillation_of_a_cut_student_has_both_terms(counts: Counts) -> None:
    dense = toy_model()
    slim = slim_of(dense, counts)
    logits = loss_of(dense, slim, Distil(hidden_states=0.0))
    both = loss_of(dense, slim, Distil(hidden_states=2.0))
    assert 0 < logits < both
    once = loss_of(dense, slim, Distil(hidden_states=1.0))
    assert both - logits == pytest.approx(2 * (once - logits), rel=1e-3)


@pytest.mark.parametrize("name", ["plain", "mean", "Swin", "CCT"])
def test_distillation_compares_the_channels_that_were_kept(name: str) -> None:
    dense = MODELS[name]()
    kept = some_channels(dense)
    teacher = with_zero_channels(dense, kept)
    student = cut_channels(teacher, kept)
    images = noise_images(4, dense.arch)
    with torch.no_grad():
        found = Distillation(student, teacher, Distil(channels=kept))(images)
        assert float(found) == pytest.approx(0, abs=1e-5)
        others = tuple(tuple(range(len(channels))) for channels in kept)
        assert float(Distillation(student, teacher, Distil(channels=others))(images)) > 0.1


def test_distillation_of_a_student_without_some_channels_asks_which() -> None:
    dense = toy_model()
    student = cut_channels(dense, some_channels(dense))
    with pytest.raises(ValueError, match=r"blocks\.0 of the slim model has 16 in its stream, expected 24"):
        Distillation(student, dense, Distil())
    logits = Distil(hidden_states=0.0)
    assert loss_of(dense, student, logits) > 0


def test_distillation_logits_term_is_kl_at_the_temperature() -> None:
    dense = toy_model()
    slim = slim_of(dense, Counts(hidden=20))
    images = few_cause_images(8)
    with torch.no_grad():
        p, q = (dense(images) / 2).softmax(dim=-1), (slim(images) / 2).softmax(dim=-1)
    expected = 4 * float((p * (p / q).log()).sum(dim=-1).mean())
    found = loss_of(dense, slim, Distil(temperature=2.0, hidden_states=0.0))
    assert found == pytest.approx(expected, rel=1e-4)


def test_distillation_merged_student_is_compared_with_the_pooled_teacher() -> None:
    dense = toy_model(toy_arch(depth=1))
    slim = slim_of(dense, Counts(tokens=[13]))
    block, wanted = slim.blocks[0], dense.blocks[0]
    with torch.no_grad():
        x = dense.embed(few_cause_images(8))
        own, _ = block(x, None)
        match = block.reduction(block.attn.keys(block.norm1(x)))
        aim, _ = reduce_tokens(wanted(x, None)[0], None, match)
    errors = (own - aim).square().sum(dim=(1, 2)) / aim.square().sum(dim=(1, 2))
    hidden = loss_of(dense, slim, Distil(hidden_states=1.0)) - loss_of(dense, slim, Distil(hidden_states=0.0))
    assert hidden == pytest.approx(float(errors.mean()), rel=1e-4)


def test_distillation_in_training_leaves_the_teacher_evaluating() -> None:
    dense = toy_model()
    objective = Distillation(slim_of(dense, MERGE), dense, Distil()).train()
    assert objective.student.training
    assert not any(module.training for module in objective.teacher.modules())


def test_distillation_is_a_mean_over_images() -> None:
    dense = toy_model()
    objective = Distillation(slim_of(dense, MERGE), dense, Distil())
    images = few_cause_images(8)
    with torch.no_grad():
        alone = [float(objective(images[i : i + 1])) for i in range(8)]
        together = float(objective(images))
    assert together == pytest.approx(float(np.mean(alone)), rel=1e-4)


@pytest.mark.parametrize(
    ("depth", "expected"), [(12, (4, 8, 12)), (3, (1, 2, 3)), (2, (1, 2)), (1, (1,)), (5, (2, 4, 5))]
)
def test_compared_blocks_stand_after_each_third(depth: int, expected: tuple[int, ...]) -> None:
    assert compared_blocks(toy_arch(depth=depth)) == expected


def test_compared_blocks_end_where_the_teacher_merges() -> None:
    assert compared_blocks(slim_of(toy_model(), Counts(tokens=[17, 13, 13])).arch) == (1,)
    dense = toy_model()
    entering = fewer_tokens(toy_plan(dense, Counts()), None, 13, Choice("drop"))
    assert compared_blocks(slim_by_selection(dense, entering).arch) == ()


@pytest.mark.parametrize("strategy", ["drop", "clusters"])
def test_distillation_of_a_student_with_fewer_patches_compares_those_with_the_teachers(
    strategy: Strategy,
) -> None:
    dense = toy_model(toy_arch(depth=1))
    plan = toy_plan(dense, Counts())
    for place, tokens in ((None, 13), (0, 9)):
        plan = fewer_tokens(plan, place, tokens, Choice(strategy))
    slim = slim_by_selection(dense, plan)
    block, images = slim.blocks[0], few_cause_images(8)
    with torch.no_grad():
        first = slim.input_reduction(slim.patches(images))
        x, sizes = reduce_tokens(dense.embed(images), None, first)
        own, _ = block(x, sizes)
        second = block.reduction(block.attn.keys(block.norm1(x)))
        aim, sizes = reduce_tokens(dense.blocks[0](dense.embed(images), None)[0], None, first)
        aim, _ = reduce_tokens(aim, sizes, second)
    errors = (own - aim).square().sum(dim=(1, 2)) / aim.square().sum(dim=(1, 2))
    hidden = loss_of(dense, slim, Distil(hidden_states=1.0)) - loss_of(dense, slim, Distil(hidden_states=0.0))
    assert hidden == pytest.approx(float(errors.mean()), rel=1e-4)


@pytest.mark.parametrize("counts", [Counts(qk_dim=4, hidden=20), MERGE])
def test_distil_brings_the_student_nearer_and_leaves_its_arguments(images: Images, counts: Counts) -> None:
    dense = toy_model()
    slim = slim_of(dense, counts)
    before = {name: value.clone() for name, value in slim.state_dict().items()}
    options = Distil(dataclasses.replace(SHORT, epochs=15, lr=5e-3))
    found, trained = distil(dense, slim, images, options)
    assert trained.epoch_losses[-1] < 0.8 * trained.epoch_losses[0]
    assert found.arch == slim.arch
    assert all(torch.equal(value, before[name]) for name, value in slim.state_dict().items())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    pixels = torch.from_numpy(next(images.batches(12)))
    with torch.no_grad():
        wanted = dense(pixels)
        assert (found(pixels) - wanted).norm() < (slim(pixels) - wanted).norm()


def test_distil_interrupted_ends_with_the_same_bits(images: Images, tmp_path: Path) -> None:
    dense = toy_model()
    slim = slim_of(dense, MERGE)
    whole, _ = distil(dense, slim, images, Distil(SHORT))

    with pytest.raises(KeyboardInterrupt):
        distil(dense, slim, images, Distil(SHORT), checkpoint_in(tmp_path), stop_at(5))
    found, _ = distil(dense, slim, images, Distil(SHORT), checkpoint_in(tmp_path))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize(
    ("reads", "prefix"), [("class+distillation", 2), ("mean", 1), ("mean", 0), ("mean+prefix", 1)]
)
def test_distil_takes_every_kind_of_head(images: Images, reads: Reads, prefix: int, tmp_path: Path) -> None:
    dense = toy_model(toy_arch(reads, prefix))
    slim = slim_of(dense, Counts(hidden=24))
    _, trained = distil(dense, slim, images, Distil(SHORT), checkpoint_in(tmp_path))
    assert trained.steps == 6
