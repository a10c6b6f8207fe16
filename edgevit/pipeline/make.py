"""Both models of a build: the dense one with its images, what remains of it, and the slim one."""

from __future__ import annotations

from dataclasses import dataclass

from edgevit.errors import ImagesError, PlanError
from edgevit.models.anatomy import read_anatomy
from edgevit.pipeline.budget import Budgeted, plan_within_budget
from edgevit.pipeline.decide import drops_dead_tokens, make_plan
from edgevit.pipeline.inputs import Inputs
from edgevit.pipeline.limit import find_limit
from edgevit.pipeline.models import Saved, load_dense, slim_dense
from edgevit.pipeline.search import Searched, run_searches
from edgevit.pipeline.sets import Sets, open_sets
from edgevit.pipeline.stages import Stages
from edgevit.pipeline.tune import distil_options, tune_slim
from edgevit.plan import Plan
from edgevit.prune.sensitivity import HELD_OUT
from edgevit.report.model import TuneFacts
from edgevit.slim import SlimOptions
from edgevit.slim.act import check_enough, require_closed_form


@dataclass(frozen=True)
class Start:
    """What every plan of a recipe begins with."""

    dense: Saved
    sets: Sets
    searched: Searched


@dataclass(frozen=True)
class Slimmed:
    """The slim model."""

    slim: Saved
    untuned: Saved
    """The same before training, or itself where there is none."""
    tuned: TuneFacts | None


def open_start(stages: Stages, inputs: Inputs) -> Start:
    """Load the dense model, draw the images, and let methods learn what may go.

    Raises:
        WeightsError, UnsupportedModelError: the model cannot be loaded.
        ImagesError: images that cannot be used.
        TrainingError: a search's loss is not finite.
    """
    dense = load_dense(stages, inputs)
    sets = open_sets(stages, inputs, dense)
    return Start(dense, sets, run_searches(stages, inputs, dense, sets.searching))


def decide(stages: Stages, inputs: Inputs, start: Start) -> tuple[Plan, Budgeted | None]:
    """Decide what remains: by hand and by methods, or within a budget.

    Raises:
        PlanError: counts that do not fit, a budget that no plan meets, or one whose plan needs more images.
        ImagesError: too few images for the closed form of any plan.
        RecipeError, BackendUnavailableError, UnsupportedModelError: a budget of time for a target or a model
            that is not timed here.
        BackendError, MeasurementError: its latency table cannot be measured.
    """
    sets, searched = start.sets, start.searched
    if sets.measuring is None or sets.calibration is None:
        return make_plan(stages, inputs, searched, sets.calibration), None
    model = searched.start.loaded.model
    require_closed_form(model, sets.calibration, 1 - HELD_OUT)  # before anything is measured
    dead = drops_dead_tokens(inputs, read_anatomy(model.arch))
    limit = find_limit(stages, inputs, searched.start, sets, dead_tokens=dead)
    budgeted = plan_within_budget(stages, inputs, searched.start, sets.measuring, limit)
    plan = budgeted.allocation.plan
    try:
        check_enough(model.arch, plan, sets.calibration)
    except ImagesError as error:  # fewer tokens need more images
        raise PlanError(f"{limit.key}: of the plan that was solved for, {error}") from error
    return plan, budgeted


def make_slim(stages: Stages, inputs: Inputs, start: Start, plan: Plan) -> Slimmed:
    """Make the slim model that a plan describes, and train it where the recipe says so.

    Raises:
        PlanError, ImagesError: a plan, or too few images, for the repair.
        TrainingError: a loss is not finite; the last checkpoint is kept.
    """
    recipe, sets = inputs.recipe.recipe, start.sets
    repair = SlimOptions(recipe.recover, fold_means=recipe.fold_means)
    slim = slim_dense(stages, start.searched.start, plan, repair, sets.calibration)
    if recipe.tune is None or sets.tuning is None:
        return Slimmed(slim, slim, None)
    tuned = tune_slim(stages, start.dense, slim, distil_options(recipe.tune, plan), sets.tuning)
    return Slimmed(tuned.model, slim, tuned.facts)
