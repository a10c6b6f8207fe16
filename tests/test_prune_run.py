"""Methods one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_build import write_images
from toy_swins import SWIN
from toy_vits import toy_model, toy_plan

from edgevit.errors import PlanError
from edgevit.images import Images, ImageSet, LoadedSet, open_images
from edgevit.methods import CoupledDims, EffiSelect, IntraHead, Method, PatchSimilarity, TokenChannels
from edgevit.models.anatomy import slim_arch
from edgevit.models.group_scores import Scores, group_scores
from edgevit.plan import Counts, Plan, Recover, plan_from_json, plan_to_json
from edgevit.preprocess import Preprocess
from edgevit.progress import silent
from edgevit.prune import run_methods
from edgevit.slim import SlimOptions, slim_model

DENSE = toy_model()
ALL = toy_plan(DENSE, Counts())
COUPLED = CoupledDims(method="coupled-dims", qk_drop=0.5)
CHANNELS = TokenChannels(method="token-channels", hidden_drop=0.5)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    write_images(tmp_path / "images", 40)
    source = LoadedSet(ImageSet(kind="folder", path="images"), tmp_path / "set.toml")
    return open_images(
        source, Preprocess(16, (16, 16), "bicubic", (0.5,) * 3, (0.5,) * 3, channels=3), None, 0
    )


def test_run_methods_each_decides_on_the_plan_before_it(images: Images) -> None:
    told: list[tuple[str, int, int]] = []
    plan = run_methods(DENSE, ALL, [COUPLED, CHANNELS], images, lambda *step: told.append(step))
    assert [(b.qk_dim, b.vo_dim, b.hidden) for b in plan.blocks] == [(8, 8, 40)] + 2 * [(4, 8, 20)]
    assert told == [("scoring neurons", 32, 40), ("scoring neurons", 40, 40)]
    assert plan_from_json(plan_to_json(plan)) == plan
    assert run_methods(DENSE, ALL, [CHANNELS, COUPLED], images, silent) == plan


def test_methods_of_all_kinds_make_one_plan_in_any_order_which_the_closed_form_repairs(
    images: Images,
) -> None:
    methods: list[Method] = [
        EffiSelect(method="effiselect", heads_drop=0.25),
        IntraHead(method="intra-head", vo_drop=0.25, align=2),
        CoupledDims(method="coupled-dims", qk_drop=0.5),
        CHANNELS,
        PatchSimilarity(method="patch-similarity", tokens_drop=0.25, blocks=(1,), strategy="merge"),
    ]
    generator = torch.Generator().manual_seed(0)
    gates = {f"blocks.{index}.heads": torch.rand(3, generator=generator) for index in range(3)}
    learnt: list[Scores | None] = [gates, group_scores(DENSE), None, None, None]

    def planned(order: list[int]) -> Plan:
        scores = {place: found for place, index in enumerate(order) if (found := learnt[index])}
        return run_methods(DENSE, ALL, [methods[index] for index in order], images, silent, scores)

    plan = planned([0, 1, 2, 3, 4])
    assert sum(block.heads for block in plan.blocks) == 7
    assert [(b.qk_dim, b.vo_dim, b.hidden, b.tokens) for b in plan.blocks] == [
        (8, 6, 40, 17),
        (4, 6, 20, 13),
        (4, 6, 20, 13),
    ]
    assert planned([4, 3, 2, 1, 0]) == plan
    errors = []
    forms: tuple[Recover, ...] = ("none", "closed-form")
    for recover in forms:
        slim = slim_model(DENSE, plan, SlimOptions(recover, fold_means=True), images, silent)
        assert slim.arch == slim_arch(DENSE.arch, plan)
        batch = torch.from_numpy(next(iter(images.batches(40))))
        with torch.no_grad():
            errors.append(float((slim(batch) - DENSE(batch)).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_run_methods_decides_for_a_swin_stage_by_stage(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 8)
    source = LoadedSet(ImageSet(kind="folder", path="images"), tmp_path / "set.toml")
    preprocess = Preprocess(32, (32, 32), "bicubic", (0.5,) * 3, (0.5,) * 3, channels=3)
    model = toy_model(SWIN)
    plan = run_methods(
        model,
        toy_plan(model, Counts()),
        [COUPLED, CHANNELS],
        open_images(source, preprocess, None, 0),
        silent,
    )
    assert [(b.heads, b.qk_dim, b.hidden) for b in plan.blocks] == [
        (2, 8, 64),
        (2, 4, 32),
        (4, 4, 64),
        (4, 4, 64),
    ]


def test_run_methods_without_images_says_which_method_needs_them() -> None:
    with pytest.raises(
        PlanError, match=r'^prune\[1\]\.method: "token-channels" needs \[calibration\] images'
    ):
        run_methods(DENSE, ALL, [COUPLED, CHANNELS], None, silent)


def test_run_methods_names_the_key_of_every_problem() -> None:
    wrong = CoupledDims(method="coupled-dims", qk_drop=(0.5, 0.5), vo_dim=9)
    with pytest.raises(PlanError, match=r"^prune\.qk_drop: ") as caught:
        run_methods(DENSE, ALL, [wrong], None, silent)
    assert str(caught.value).splitlines() == [
        "prune.qk_drop: expected one number or 3 (one per block), got 2 numbers.",
        "prune.vo_dim: blocks.1 has 8; expected 1..8, got 9. Give 8 to keep all.",
        "prune.vo_dim: blocks.2 has 8; expected 1..8, got 9. Give 8 to keep all.",
    ]
