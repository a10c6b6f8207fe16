"""Passes over images on a GPU: a pretended one by default, and on the machine's own where there is one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from pretended_gpu import PRETENDED, MixedDevicesError, pretended_gpu
from torch import Tensor
from toy_build import write_toy
from toy_ccts import toy_slim_cct
from toy_choosers import chooser
from toy_dinos import toy_dino
from toy_streams import some_channels
from toy_swins import toy_swin
from toy_vits import SOME_CHANNELS, few_cause_images, fewer_tokens, toy_model, toy_plan

from edgevit import gpu
from edgevit.gpu import CPU, copied_to, on_gpu_or_cpu, torch_device
from edgevit.models.layers import SlimViT
from edgevit.pipeline import budget, judged, models
from edgevit.pipeline.inputs import read_inputs
from edgevit.pipeline.judged import measured_kl
from edgevit.pipeline.make import decide, make_slim, open_start
from edgevit.pipeline.stages import Stages
from edgevit.plan import Choice, Counts, PerImage, Plan, plan_text
from edgevit.progress import silent
from edgevit.prune.curves import Sensitivity
from edgevit.prune.sensitivity import CutShares, joint_kl, measure_sensitivity
from edgevit.recipe import load_recipe
from edgevit.slim import token_weights
from edgevit.slim.channels import cut_channels
from edgevit.slim.recover import slim_closed_form
from edgevit.slim.select import slim_by_selection
from edgevit.slim.site import ClosedForm
from edgevit.store import Store

Result = TypeVar("Result")
EACH_GPU = pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.gpu)], ids=str)
CLOSE = {False: 1e-6, True: 1e-2}
"""How far results may be apart, relative to their size: one product is computed otherwise on the CPU, whose
kernels the pretended GPU has; a real one rounds by its own, in the greedy choices too."""


@contextlib.contextmanager
def _gpu(monkeypatch: pytest.MonkeyPatch, *, real: bool) -> Iterator[None]:
    """Let `on_gpu_or_cpu` find a GPU."""
    if real:
        yield
        return
    with pretended_gpu() as device, monkeypatch.context() as patched:
        patched.setattr(gpu, "torch_device", lambda: device)
        yield


def _batches(model: SlimViT, device: torch.device) -> Callable[[], Iterator[Tensor]]:
    images = few_cause_images(40, model.arch).to(device)
    return lambda: iter(images.split(32))


def _assert_equal_answers(slim: SlimViT, expected: SlimViT, tolerance: float) -> None:
    images = few_cause_images(16, expected.arch, seed=40)
    with torch.no_grad():
        found, answers = slim(images), expected(images)
    assert slim.arch == expected.arch
    assert (found - answers).square().mean() <= tolerance**2 * answers.var()


MEASURED = {"plain": toy_model, "DINOv3": toy_dino, "Swin": toy_swin}


@EACH_GPU
@pytest.mark.parametrize("name", MEASURED)
def test_sensitivity_is_that_of_the_cpu(name: str, real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_weights, "_LEAST_WIDTH", 0 if name == "plain" else 384)  # streams are kept
    dense = MEASURED[name]()
    shares = CutShares(heads=(0.67,), qk_dim=(0.5,), vo_dim=(0.5,), hidden=(0.5,), tokens=(0.2,))

    def measure(device: torch.device) -> Sensitivity:
        model = copied_to(dense, device)
        assert model.device.type == device.type
        return measure_sensitivity(model, _batches(dense, device), shares, None, silent)

    expected = measure(CPU)
    with _gpu(monkeypatch, real=real):
        found = on_gpu_or_cpu(measure, silent)

    assert dense.device == CPU
    for block, blocks in zip(found.blocks, expected.blocks, strict=True):
        for curve, like in zip(block, blocks, strict=True):
            assert (curve.kind, curve.counts) == (like.kind, like.counts)
            assert curve.kl == pytest.approx(like.kl, rel=CLOSE[real])
            assert curve.errors == pytest.approx(like.errors, rel=CLOSE[real], abs=1e-9)


def _per_image(dense: SlimViT) -> Plan:
    plan = toy_plan(dense, Counts(vo_dim=4))
    blocks = (dataclasses.replace(b, per_image=PerImage(10), mlp_inputs=9) for b in plan.blocks)
    return dataclasses.replace(plan, blocks=tuple(blocks))


def _chosen_tokens(dense: SlimViT) -> Plan:
    plan = fewer_tokens(toy_plan(dense, Counts(hidden=20)), None, 14, Choice("cells"))
    plan = fewer_tokens(plan, 0, 11, Choice("drop", "knn"))
    return fewer_tokens(plan, 1, 8, Choice("clusters", "count"))


ALL_KINDS = Counts(heads=[3, 2, 2], qk_dim=4, vo_dim=4, hidden=20, tokens=[15, 15, 13])
SLIMMED: dict[str, tuple[Callable[[], SlimViT], Callable[[SlimViT], Plan]]] = {
    "all kinds": (toy_model, lambda dense: toy_plan(dense, ALL_KINDS)),
    "first block whole": (toy_model, lambda dense: toy_plan(dense, Counts(tokens=[12, 12, 9]))),
    "chosen tokens": (toy_model, _chosen_tokens),
    "per image": (toy_model, _per_image),
    "some channels": (lambda: toy_model(SOME_CHANNELS), lambda dense: toy_plan(dense, Counts(hidden=20))),
    "DINOv3": (toy_dino, lambda dense: toy_plan(dense, Counts(heads=2, qk_dim=4, vo_dim=4, hidden=20))),
    "Swin": (toy_swin, lambda dense: toy_plan(dense, Counts(heads=[1, 2, 2, 4], qk_dim=4, vo_dim=4))),
    "CCT": (toy_slim_cct, lambda dense: toy_plan(dense, Counts(hidden=20, qk_dim=4))),
}


@EACH_GPU
@pytest.mark.parametrize("name", SLIMMED)
def test_closed_form_is_that_of_the_cpu(name: str, real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make, plan_of = SLIMMED[name]
    dense = make()
    options = ClosedForm(weighted=name != "first block whole")

    def slim_and_judge(device: torch.device) -> tuple[SlimViT, float]:
        model, batches = copied_to(dense, device), _batches(dense, device)
        slim = slim_closed_form(model, plan_of(dense), batches, options, silent)
        assert slim.device.type == device.type
        kl = joint_kl(model, slim, batches())
        return slim.to(CPU), kl

    expected, kl = slim_and_judge(CPU)
    with _gpu(monkeypatch, real=real):
        slim, found = on_gpu_or_cpu(slim_and_judge, silent)

    assert found == pytest.approx(kl, rel=CLOSE[real])
    assert kl > 0
    _assert_equal_answers(slim, expected, CLOSE[real])


@EACH_GPU
def test_selection_and_cut_channels_are_those_of_the_cpu(real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = chooser()
    plan, channels = toy_plan(dense, Counts(heads=2, qk_dim=4, vo_dim=4)), toy_model()

    def cut(device: torch.device) -> tuple[SlimViT, SlimViT]:
        with torch.no_grad():
            slim = slim_by_selection(copied_to(dense, device), plan)
        narrow = cut_channels(copied_to(channels, device), some_channels(channels))
        return slim.to(CPU), narrow.to(CPU)

    with _gpu(monkeypatch, real=real):
        found = on_gpu_or_cpu(cut, silent)
    for slim, expected in zip(found, cut(CPU), strict=True):
        _assert_equal_answers(slim, expected, CLOSE[real])


def _slimmed(folder: Path, recipe: Path) -> tuple[str, SlimViT, float]:
    """Plan within the recipe's budget and slim; return the plan, the slim model and its KL."""
    loaded = load_recipe(str(recipe))
    with Store.open(folder, loaded.recipe.name) as store:
        stages, inputs = Stages(store, silent), read_inputs(loaded, ())
        start = open_start(stages, inputs)
        plan, _ = decide(stages, inputs, start)
        slim = make_slim(stages, inputs, start, plan).slim
        assert start.sets.calibration is not None
        kl = measured_kl(stages, start.dense, slim, start.sets.calibration)
        assert start.dense.loaded.model.device == slim.loaded.model.device == CPU
        return plan_text(plan), slim.loaded.model, kl


@EACH_GPU
def test_build_plans_and_slims_as_on_the_cpu(
    real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_toy(tmp_path, plan="[budget]\nmacs = 0.6\n")
    with monkeypatch.context() as patched:
        patched.setattr(gpu, "torch_device", lambda: CPU)
        plan, expected, kl = _slimmed(tmp_path / "cpu" / "out", recipe)
    copied: list[str] = []

    def watched(model: SlimViT, device: torch.device) -> SlimViT:
        copied.append(device.type)
        return copied_to(model, device)

    for stage in (budget, judged, models):
        monkeypatch.setattr(stage, "copied_to", watched)
    with _gpu(monkeypatch, real=real):
        found, slim, own = _slimmed(tmp_path / "gpu" / "out", recipe)
    # To measure cuts, to slim, and both models to judge the whole plan.
    assert copied == 4 * ["cuda" if real else PRETENDED.type]
    assert found == plan
    assert own == pytest.approx(kl, rel=CLOSE[real])
    _assert_equal_answers(slim, expected, CLOSE[real])


@pytest.mark.parametrize(
    ("there", "flag", "expected"),
    [(False, "0", "cpu"), (True, "0", "cuda"), (True, "1", "cpu"), (True, "true", "cpu")],
)
def test_torch_device_is_the_gpu_unless_accelerate_is_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, there: bool, flag: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setenv("ACCELERATE_USE_CPU", flag)
    assert torch_device().type == expected


def test_work_that_the_gpu_has_no_memory_for_begins_anew_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, told = [], []

    def work(device: torch.device) -> str:
        tried.append(device)
        if device != CPU:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    monkeypatch.setattr(gpu, "torch_device", lambda: PRETENDED)
    assert on_gpu_or_cpu(work, lambda *call: told.append(call)) == "done"
    assert tried == [PRETENDED, CPU]
    assert told == [("too little memory on the GPU: computing on the CPU", done, 1) for done in (0, 1)]


def test_work_on_the_gpu_has_no_tf32_and_leaves_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def precisions(device: torch.device) -> tuple[str, str]:
        return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision

    def fail(device: torch.device) -> None:
        raise ValueError("from the work")

    before = precisions(CPU)
    assert on_gpu_or_cpu(precisions, silent) == before
    monkeypatch.setattr(gpu, "torch_device", lambda: PRETENDED)
    assert on_gpu_or_cpu(precisions, silent) == ("ieee", "ieee") != before
    with pytest.raises(ValueError, match="from the work"):
        on_gpu_or_cpu(fail, silent)
    assert precisions(CPU) == before


def test_copy_on_the_cpu_is_the_model_itself() -> None:
    model = toy_model()
    assert copied_to(model, CPU) is model


MIXED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sum": lambda there, here: there + here,
    "product": lambda there, here: here @ there,
    "in place": lambda there, here: there.add_(here),
    "index": lambda there, here: there.index_select(0, torch.zeros(2, dtype=torch.int64)),
    "fancy index": lambda there, here: here[torch.zeros(2, dtype=torch.int64).to(PRETENDED)],
    "joined": lambda there, here: torch.cat([there, here]),
    "generator": lambda there, here: torch.multinomial(there, 1, generator=torch.Generator()),
    "layer": lambda there, here: torch.nn.Linear(3, 2)(there),
}


@pytest.mark.parametrize("name", MIXED)
def test_pretended_gpu_refuses_what_mixes_devices(name: str) -> None:
    with pretended_gpu() as device, pytest.raises(MixedDevicesError, match="of the CPU, others on the GPU"):
        MIXED[name](torch.ones(3, 3, device=device), torch.ones(3, 3))


def test_pretended_gpu_gives_numpy_nothing() -> None:
    with pretended_gpu() as device, pytest.raises(RuntimeError, match=r"\.numpy\(\) is not supported"):
        torch.ones(3, device=device).numpy()


def test_pretended_gpu_copies_both_ways_and_computes() -> None:
    with pretended_gpu() as device:
        there = torch.arange(3.0).to(device)
        assert there.device == torch.zeros(2, device=device).device == device
        there[1:] += torch.tensor(2.0)  # a number
        assert int(there.argmax()) == 2
        assert (there + torch.tensor([1.0, 1.0, 1.0], device=device)).cpu().tolist() == [1.0, 4.0, 5.0]
