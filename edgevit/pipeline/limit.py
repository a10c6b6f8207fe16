"""What a recipe's budget limits: MACs and params by counting, milliseconds by its target's latency table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from edgevit.budget import BudgetSection, Unit, amount_text
from edgevit.errors import BackendUnavailableError, PlanError, RecipeError
from edgevit.measure.table import LatencyCost, LatencyTable
from edgevit.pipeline.artefacts import Device
from edgevit.pipeline.graphs import Form
from edgevit.pipeline.inputs import Inputs, Wanted
from edgevit.pipeline.latency import measure_table
from edgevit.pipeline.models import Saved
from edgevit.pipeline.sets import Sets
from edgevit.pipeline.stages import Stages
from edgevit.pipeline.targets import open_graphs
from edgevit.prune.allocate import ArchCosts, CostModel
from edgevit.target import Precision


@dataclass(frozen=True)
class TimedTable:
    """The table behind a budget in milliseconds, and what it is of."""

    table: LatencyTable
    device: Device
    form: Form


@dataclass(frozen=True)
class Limit:
    """A budget as the solver takes it."""

    key: str
    """Of the recipe."""
    unit: Unit
    dense: float
    """What the dense model costs."""
    most: float
    """What the slim model may cost."""
    costs: CostModel
    dead_tokens: bool
    timed: TimedTable | None = None


def find_limit(stages: Stages, inputs: Inputs, dense: Saved, sets: Sets, *, dead_tokens: bool) -> Limit:
    """Say what the recipe's budget allows; a budget of time first has its target's blocks timed.

    Args:
        stages: exports and times, unless that was done.
        inputs: the recipe and its targets.
        dense: the model.
        sets: images, for graphs in int8 and for the check of the dense graph.
        dead_tokens: whether the plan drops tokens that nothing reads.

    Raises:
        PlanError: the dense model is within the budget.
        RecipeError: the budget names a target or precision that the recipe does not build for.
        BackendUnavailableError: the target cannot be timed here.
        UnsupportedModelError: a budget of time for a model of which no table is made.
        BackendError: the runtime refuses a part of the model.
        MeasurementError: the times tell nothing of blocks.
    """
    budget, arch = inputs.recipe.recipe.budget, dense.loaded.model.arch
    assert budget is not None
    if budget.unit == "ms":
        timed = _time(stages, inputs, dense, sets)
        costs: CostModel = LatencyCost(timed.table, arch, dead_tokens)
        limit = Limit(f"budget.{budget.key}", "ms", 0.0, 1.0, costs, dead_tokens, timed)
    else:
        costs = ArchCosts(arch, budget.unit, dead_tokens)
        limit = Limit(f"budget.{budget.key}", budget.unit, 0.0, 1.0, costs, dead_tokens)
    whole = limit.costs.total(arch)
    limit = dataclasses.replace(limit, dense=whole, most=budget.limit(whole))
    if limit.most >= whole:
        raise PlanError(
            f"{limit.key}: expected less than the dense model's {amount_text(whole, limit.unit)}, got"
            f" {amount_text(limit.most, limit.unit)}. Give a smaller one, or take [budget] out."
        )
    return limit


def _time(stages: Stages, inputs: Inputs, dense: Saved, sets: Sets) -> TimedTable:
    """Measure the table of the budget's target, in the precision that is planned for."""
    budget = inputs.recipe.recipe.budget
    assert budget is not None
    wanted = _target(inputs, budget)
    target = wanted.target
    if target.device == "board":
        raise BackendUnavailableError(
            f"budget.{budget.key}: {target.name} is a board, whose blocks cannot be timed here. Give the"
            " budget as macs, or name another of the recipe's targets as budget.target."
        )
    precision = _precision(wanted, budget)
    form = Form.of(inputs.recipe.recipe.export, target)
    files = open_graphs(stages, inputs, {"dense": dense}, sets, None)
    graph = files.of(form, precision).by_side["dense"]
    device = target, precision
    return TimedTable(measure_table(stages, device, form, graph), device, form)


def _target(inputs: Inputs, budget: BudgetSection) -> Wanted:
    if budget.target is None:
        return inputs.wanted[0]
    found = [wanted for wanted in inputs.wanted if budget.target in (wanted.section.name, wanted.target.name)]
    if not found:
        names = ", ".join(wanted.section.name for wanted in inputs.wanted)
        raise RecipeError(
            f"budget.target: expected one of the targets that are built for ({names}), got {budget.target}."
            " Add a [[target]] of that name."
        )
    return found[0]


def _precision(wanted: Wanted, budget: BudgetSection) -> Precision:
    if budget.precision is None:
        return wanted.precisions[0]
    found = [precision for precision in wanted.precisions if precision == budget.precision]
    if not found:
        raise RecipeError(
            f"budget.precision: expected one of {', '.join(wanted.precisions)}, in which {wanted.target.name}"
            f" is built, got {budget.precision}. Add it to `precisions` of that [[target]]."
        )
    return found[0]
