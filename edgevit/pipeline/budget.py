"""The plan of a build with a budget: sensitivities measured once, a plan solved for, its promise checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgevit.cost import model_cost
from edgevit.errors import PlanError
from edgevit.images import Images
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch
from edgevit.pipeline.inputs import Inputs
from edgevit.pipeline.keys import code_sha256, images_key, library_versions
from edgevit.pipeline.models import Saved
from edgevit.pipeline.stages import Stages
from edgevit.plan import KINDS, Kind
from edgevit.prune.allocate import Allocation, ArchCosts, allocate, choices_of
from edgevit.prune.curves import Sensitivity, sensitivity_of, sensitivity_text
from edgevit.prune.decisions import decisions
from edgevit.prune.sensitivity import BlockFile, Grid, joint_kl, measure_sensitivity
from edgevit.report.model import BudgetBlock, BudgetFacts
from edgevit.slim.act import require_closed_form
from edgevit.store import JSON, canonical_json

_FILE = "sensitivity.json"
_KL_FILE = "kl.json"
_BATCH = 32
_ROOMS = ("prune/sensitivity", "prune/curves", "slim", "models", "preprocess")


@dataclass(frozen=True)
class Budgeted:
    """A plan within the recipe's budget, and what it was solved from."""

    allocation: Allocation
    dense: Arch
    sensitivity: Sensitivity
    images: Images


def plan_within_budget(
    stages: Stages, inputs: Inputs, dense: Saved, images: Images, *, dead_tokens: bool
) -> Budgeted:
    """Choose what remains so that the model's answers change least within the recipe's budget.

    Args:
        stages: measures the sensitivities, unless they are known.
        inputs: the recipe and its targets, whose multiples are kept.
        dense: the model.
        images: unlabelled images on which cuts are measured.
        dead_tokens: whether tokens that nothing reads are dropped.

    Raises:
        PlanError: a budget that is none, or that no plan of this model meets.
        ImagesError: too few images for the closed form.
    """
    arch, budget = dense.loaded.model.arch, inputs.recipe.recipe.budget
    assert budget is not None
    total = model_cost(arch).total
    whole = total.macs if budget.unit == "macs" else total.params
    limit = budget.limit(whole)
    where = f"budget.{budget.unit}"
    if limit >= whole:
        raise PlanError(
            f"{where}: expected less than the dense model's {whole:.4g}, got {limit:.4g}. Give a smaller one,"
            " or take [budget] out."
        )
    require_closed_form(dense.loaded.model, images)
    sensitivity = _sensitivity(stages, dense, images)
    choices = choices_of(read_anatomy(arch), sensitivity, _multiples(inputs), dead_tokens=dead_tokens)
    try:
        found = allocate(sensitivity, choices, ArchCosts(arch, budget.unit, dead_tokens), limit)
    except PlanError as error:
        raise PlanError(f"{where}: {error}, of the dense model's {whole:.6g}.") from error
    return Budgeted(found, arch, sensitivity, images)


def budget_facts(stages: Stages, inputs: Inputs, found: Budgeted, models: tuple[Saved, Saved]) -> BudgetFacts:
    """Put what was predicted beside what came out: the dense and the slim model, before any training."""
    budget = inputs.recipe.recipe.budget
    assert budget is not None
    (dense, slim), unit, allocation = models, budget.unit, found.allocation
    costs = model_cost(slim_arch(found.dense, allocation.plan))
    whole, counted = model_cost(found.dense).total, costs.total
    amount = (whole.macs, counted.macs) if unit == "macs" else (whole.params, counted.params)
    parts = zip(allocation.block_costs, allocation.block_kls, strict=True)
    return BudgetFacts(
        unit=unit,
        asked=budget.asked,
        limit=budget.limit(amount[0]),
        dense=amount[0],
        predicted=allocation.cost,
        counted=amount[1],
        predicted_kl=allocation.kl,
        measured_kl=_measured_kl(stages, dense, slim, found.images),
        images=len(found.images),
        blocks=tuple(BudgetBlock(cost=cost, kl=kl) for cost, kl in parts),
        decisions=tuple(decisions(found.dense, allocation, unit)),
    )


def _multiples(inputs: Inputs) -> dict[Kind, int]:
    """Return what counts have to be multiples of so that every target takes them."""
    rules = [wanted.target.rules for wanted in inputs.wanted]
    return {kind: math.lcm(*(int(getattr(rule, kind)) for rule in rules)) for kind in KINDS}


def _sensitivity(stages: Stages, dense: Saved, images: Images) -> Sensitivity:
    """Measure what cuts cost, or read what an earlier build has measured; goes on after an interruption."""
    grid: dict[str, JSON] = asdict(Grid())
    key: dict[str, JSON] = {
        "dense": dense.sha256,
        "grid": grid,
        "images": images_key(images),
        "versions": library_versions(("torch", "numpy")),
        "code": code_sha256(*_ROOMS),
    }

    def make(folder: Path) -> None:
        belongs_to = hashlib.sha256(canonical_json(key).encode()).hexdigest()
        kept = BlockFile(stages.store.work_path("sensitivity", key) / _FILE, belongs_to)
        found = measure_sensitivity(dense.loaded.model, _batches(images), Grid(), kept, stages.progress)
        (folder / _FILE).write_text(sensitivity_text(found), encoding="utf-8")

    folder = stages.run("sensitivity", key, make)
    return sensitivity_of((folder / _FILE).read_text(encoding="utf-8"))


def _measured_kl(stages: Stages, dense: Saved, slim: Saved, images: Images) -> float:
    """Return KL(dense || slim) of the whole plan on the images that its cuts were measured on."""
    key: dict[str, JSON] = {
        "dense": dense.sha256,
        "slim": slim.sha256,
        "images": images_key(images),
        "versions": library_versions(("torch", "numpy")),
        "code": code_sha256("prune/sensitivity", "models"),
    }

    def make(folder: Path) -> None:
        found = joint_kl(dense.loaded.model, slim.loaded.model, _batches(images)())
        (folder / _KL_FILE).write_text(json.dumps({"kl": found}) + "\n", encoding="utf-8")

    folder = stages.run("judge", key, make)
    return float(json.loads((folder / _KL_FILE).read_text(encoding="utf-8"))["kl"])


def _batches(images: Images) -> Callable[[], Iterator[Tensor]]:
    return lambda: (torch.from_numpy(batch) for batch in images.batches(_BATCH))
