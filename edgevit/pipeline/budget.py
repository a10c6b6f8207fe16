"""The plan of a build with a budget: sensitivities measured once, a plan solved for, its promise checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from edgevit.budget import amount_text
from edgevit.errors import PlanError
from edgevit.gpu import copied_to, on_gpu_or_cpu
from edgevit.images import Images
from edgevit.measure.table import LatencyTable
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch
from edgevit.pipeline.fused import Fusing, fusing_targets, kept_fused
from edgevit.pipeline.inputs import Inputs
from edgevit.pipeline.judged import JUDGED, measured_kl
from edgevit.pipeline.keys import code_sha256, images_key, library_versions, value_sha256
from edgevit.pipeline.latency import measure_blocks
from edgevit.pipeline.limit import Limit
from edgevit.pipeline.models import Saved
from edgevit.pipeline.precision import GRAPH_OF
from edgevit.pipeline.stages import Stages
from edgevit.pipeline.targets import Measured
from edgevit.plan import KINDS, Kind
from edgevit.prune.allocate import (
    Allocation,
    FitsAttention,
    OutOfReachError,
    allocate,
    any_attention,
    choices_of,
)
from edgevit.prune.curves import Sensitivity, sensitivity_of, sensitivity_text
from edgevit.prune.decisions import decisions
from edgevit.prune.sensitivity import BlockFile, CutShares, measure_sensitivity
from edgevit.report.model import BudgetBlock, BudgetFacts, TableFacts, TimedWhole
from edgevit.slim.stream import tensor_batches
from edgevit.store import JSON

_FILE = "sensitivity.json"
_ROOMS = ("prune/sensitivity", "prune/curves", "slim", "models", "preprocess")


@dataclass(frozen=True)
class Budgeted:
    """A plan within the recipe's budget, and what it was solved from."""

    allocation: Allocation
    dense: Arch
    sensitivity: Sensitivity
    images: Images
    limit: Limit
    binding: str | None
    """Says which rules of the targets make it another plan than it would be; None: none does."""


def plan_within_budget(
    stages: Stages, inputs: Inputs, dense: Saved, images: Images, limit: Limit
) -> Budgeted:
    """Choose what remains so that the model's answers change least within the recipe's budget.

    Args:
        stages: measures the sensitivities, unless they are known.
        inputs: the recipe and its targets, whose multiples and fused attention are kept.
        dense: the model.
        images: unlabelled images on which cuts are measured.
        limit: what the budget allows.

    Raises:
        PlanError: no plan of this model meets the budget.
    """
    arch = dense.loaded.model.arch
    sensitivity = _sensitivity(stages, dense, images)
    multiples, fusing = _multiples(inputs), fusing_targets(inputs)

    def solve(multiples: dict[Kind, int], fits: FitsAttention) -> Allocation:
        anatomy, dead = read_anatomy(arch), limit.dead_tokens
        choices = choices_of(anatomy, sensitivity, multiples, dead_tokens=dead, fits=fits)
        return allocate(sensitivity, choices, limit.costs, limit.most)

    try:
        found = solve(multiples, kept_fused(fusing, arch))
    except OutOfReachError as error:
        raise PlanError(_out_of_reach(limit, error.least)) from error
    ruled = set(multiples.values()) != {1} or fusing
    free = solve({}, any_attention) if ruled else found
    told = _binding(inputs, multiples, fusing, found.kl - free.kl) if free.kl < found.kl else None
    return Budgeted(found, arch, sensitivity, images, limit, told)


def _binding(inputs: Inputs, multiples: dict[Kind, int], fusing: Sequence[Fusing], kl: float) -> str:
    """Say which rules a plan keeps to that would be another without them, and what that costs."""
    names = " and ".join(wanted.target.name for wanted in inputs.wanted)
    kept = ", ".join(f"{kind} {multiple}" for kind, multiple in multiples.items() if multiple > 1)
    counts = [f"Counts are multiples that {names} asks for or computes whole ({kept})"] if kept else []
    return f"{'; '.join([*counts, *(one.text() for one in fusing)])}: {kl:.2g} more of KL."


def _out_of_reach(limit: Limit, least: float) -> str:
    """Say how far a budget can go, and what keeps it there."""
    smallest, whole, most = (amount_text(amount, limit.unit) for amount in (least, limit.dense, limit.most))
    if limit.key == "budget.speedup":
        reach = f"expected at most {limit.dense / least:.3g}, the fastest that cuts reach, got"
        said = f"{reach} {limit.dense / limit.most:.3g}: {smallest} of the dense model's {whole}"
    else:
        least_of = f"expected at least {smallest} of the dense model's {whole}"
        said = f"{least_of}, the smallest that cuts reach, got {most}"
    rest = ""
    if limit.unit == "ms":
        rest = f" {limit.costs.rest():.2g} ms are in front of the blocks and behind them, never cut."
    return (
        f"{limit.key}: {said}. Each block keeps half of its heads and a quarter of other dims, neurons and"
        f" tokens.{rest} Ask for less, or begin with a smaller model."
    )


def budget_facts(
    stages: Stages, inputs: Inputs, found: Budgeted, models: tuple[Saved, Saved], evaluation: Images | None
) -> BudgetFacts:
    """Put what was predicted beside what came out: the dense and the slim model, before any training.

    Args:
        stages: runs both models.
        inputs: the recipe.
        found: the plan, and what it was solved from.
        models: dense and slim.
        evaluation: images that the slim model was not fitted to; without them it is judged on those that
            cuts were measured on, and looks better than it is.
    """
    budget = inputs.recipe.recipe.budget
    assert budget is not None
    (dense, slim), limit, allocation = models, found.limit, found.allocation
    judged = found.images if evaluation is None else evaluation
    counted = None if limit.timed else limit.costs.total(slim_arch(found.dense, allocation.plan))
    parts = zip(allocation.block_costs, limit.costs.blocks(found.dense), allocation.block_kls, strict=True)
    return BudgetFacts(
        unit=limit.unit,
        key=budget.key,
        asked=budget.asked,
        limit=limit.most,
        dense=limit.dense,
        predicted=allocation.cost,
        counted=counted,
        predicted_kl=allocation.kl,
        measured_kl=measured_kl(stages, dense, slim, judged),
        judged="calibration" if evaluation is None else "evaluation",
        judged_images=min(len(judged), JUDGED),
        images=len(found.images),
        table=None if limit.timed is None else _table_facts(limit.timed.table),
        blocks=tuple(BudgetBlock(cost=cost, dense=whole, kl=kl) for cost, whole, kl in parts),
        decisions=(
            *decisions(found.dense, allocation, limit.unit, limit.costs),
            *([] if found.binding is None else [found.binding]),
        ),
    )


def _table_facts(table: LatencyTable) -> TableFacts:
    """Say how far off a latency table is."""
    return TableFacts(
        parts=len(table.parts),
        worst_part=max(map(abs, table.errors)),
        drift=table.drift,
        whole=tuple(
            TimedWhole(name=model.name, measured=model.measured_ms, predicted=model.predicted_ms)
            for model in table.checks
        ),
    )


def with_latency(stages: Stages, found: Budgeted, facts: BudgetFacts, measured: Measured) -> BudgetFacts:
    """Add what was measured on the budget's target beside what its table predicted, in all and by block.

    Args:
        stages: times the blocks of the slim model.
        found: the plan, and the table that it was made by.
        facts: without these times.
        measured: what came out for all targets.
    """
    timed = found.limit.timed
    if timed is None:
        return facts
    (target, precision), form = timed.device, timed.form
    mine = [r for r in measured.results if (r.target, r.precision) == (target.name, precision)]
    if not mine:  # it could not be built, which the report says
        return facts
    graph = measured.graphs[form][GRAPH_OF[precision]].by_side["slim"]
    times = measure_blocks(stages, timed.device, form, graph, timed.table)
    blocks = zip(facts.blocks, times, strict=True)
    return facts.model_copy(
        update={
            "counted": mine[0].slim.latency_ms.median,
            "dense_measured": mine[0].dense.latency_ms.median,
            "measured_on": f"{target.name} {precision}",
            "blocks": tuple(block.model_copy(update={"measured": ms}) for block, ms in blocks),
        }
    )


def _multiples(inputs: Inputs) -> dict[Kind, int]:
    """Return what counts have to be multiples of so that every target takes them, and wastes none."""
    rules = [rules for wanted in inputs.wanted for rules in (wanted.target.rules, wanted.target.prefers)]
    return {kind: math.lcm(*(int(getattr(rule, kind)) for rule in rules)) for kind in KINDS}


def _sensitivity(stages: Stages, dense: Saved, images: Images) -> Sensitivity:
    """Measure what cuts cost, or read what an earlier build has measured; goes on after an interruption."""
    shares: dict[str, JSON] = asdict(CutShares())
    key: dict[str, JSON] = {
        "dense": dense.sha256,
        "shares": shares,
        "images": images_key(images),
        "versions": library_versions(("torch", "numpy")),
        "code": code_sha256(*_ROOMS),
    }

    def make(folder: Path) -> None:
        belongs_to = value_sha256(key)
        kept = BlockFile(stages.store.work_path("sensitivity", key) / _FILE, belongs_to)

        def measure(device: torch.device) -> Sensitivity:
            model = copied_to(dense.loaded.model, device)
            return measure_sensitivity(
                model, lambda: tensor_batches(images, device), CutShares(), kept, stages.progress
            )

        found = on_gpu_or_cpu(measure, stages.progress)
        (folder / _FILE).write_text(sensitivity_text(found), encoding="utf-8")

    folder = stages.run("sensitivity", key, make, shared=True)
    return sensitivity_of((folder / _FILE).read_text(encoding="utf-8"))
