"""What remains of the model: the plan of a build."""

from __future__ import annotations

import json
from pathlib import Path

from edgevit.images import Images
from edgevit.methods import need_images
from edgevit.models.anatomy import read_anatomy
from edgevit.pipeline.inputs import Inputs
from edgevit.pipeline.keys import code_sha256, images_key, library_versions
from edgevit.pipeline.models import PLAN_FILE
from edgevit.pipeline.search import Searched
from edgevit.pipeline.stages import Stages
from edgevit.plan import (
    KINDS,
    Anatomy,
    Counts,
    Kind,
    Plan,
    check_multiples,
    count_of,
    keep_all,
    plan_from_counts,
    plan_from_json,
    plan_text,
)
from edgevit.prune import run_methods
from edgevit.store import JSON


def make_plan(stages: Stages, inputs: Inputs, searched: Searched, images: Images | None) -> Plan:
    """Turn the recipe's counts, and then its methods, into a plan that the model and every target can take.

    Args:
        stages: runs the methods.
        inputs: the recipe and its targets.
        searched: the model that is planned for, and what methods have learnt.
        images: calibration images; None where no method looks at them.

    Raises:
        PlanError: every count that does not fit.
    """
    recipe, anatomy = inputs.recipe.recipe, read_anatomy(searched.start.loaded.model.arch)
    dead = drops_dead_tokens(inputs, anatomy)
    by_hand = plan = plan_from_counts(anatomy, Counts(**recipe.plan.model_dump()), dead_tokens=dead)
    if recipe.methods:
        plan = _prune(stages, inputs, searched, by_hand, images)
    decided = [kind for kind in KINDS if _column(plan, kind) != _column(by_hand, kind)]
    for wanted in inputs.wanted:
        multiples = {kind: int(getattr(wanted.target.rules, kind)) for kind in KINDS}
        check_multiples(plan, keep_all(anatomy), multiples, wanted.target.name, decided)
    return plan


def drops_dead_tokens(inputs: Inputs, anatomy: Anatomy) -> bool:
    """Whether the plan drops dead tokens: by default, where the head does not read all of them."""
    section = inputs.recipe.recipe.slim
    asked = "dead_tokens" in section.model_fields_set
    return section.dead_tokens and (asked or anatomy.read_tokens is not None)


def _column(plan: Plan, kind: Kind) -> list[int]:
    return [count_of(block, kind) for block in plan.blocks]


def _prune(stages: Stages, inputs: Inputs, searched: Searched, plan: Plan, images: Images | None) -> Plan:
    """Run the recipe's methods as a stage of their own."""
    methods = inputs.recipe.recipe.methods
    key: dict[str, JSON] = {
        "model": searched.start.sha256,
        "plan": plan_text(plan),
        "methods": [options.model_dump(mode="json") for options in methods],
        "scores": {str(place): sha256 for place, sha256 in searched.sha256.items()},
        "images": images_key(images) if need_images(methods) else None,
        "versions": library_versions(("torch", "numpy")),
        "code": code_sha256("prune", "methods", "models", "plan", "cost"),
    }

    def make(folder: Path) -> None:
        model = searched.start.loaded.model
        decided = run_methods(model, plan, methods, images, stages.progress, searched.scores)
        (folder / PLAN_FILE).write_text(plan_text(decided), encoding="utf-8")

    text = (stages.run("prune", key, make) / PLAN_FILE).read_text(encoding="utf-8")
    return plan_from_json(json.loads(text))
