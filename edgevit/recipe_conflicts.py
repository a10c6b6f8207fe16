"""What in a recipe does not go together: keys that decide the same, and sections that others need.

The tables are as written: values that are wrong by themselves, which `recipe.py` refuses, may be among them.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgevit.methods import METHODS
from edgevit.schema import Problem, section
from edgevit.target import repeated_precisions

# timm.create_model takes these as well, but edgevit loads the weights, safely, by its own keys.
_NOT_OPTIONS = {"pretrained": "model.pretrained", "checkpoint_path": "model.weights"}


def recipe_conflicts(table: Mapping[str, object]) -> list[Problem]:
    """List what does not go together across the sections of a recipe."""
    return [
        *_model_conflicts(section(table, "model")),
        *_plan_conflicts(section(table, "plan")),
        *_prune_conflicts(table),
        *_budget_conflicts(table),
        *_missing_sections(table),
        *_target_conflicts(table.get("target")),
    ]


def _model_conflicts(model: Mapping[str, object]) -> list[Problem]:
    problems = [
        Problem(f"model.options.{key}", f"not an option; use {instead}")
        for key, instead in _NOT_OPTIONS.items()
        if key in section(model, "options")
    ]
    if "weights" in model and model.get("pretrained") is True:
        problems.append(Problem("model.weights", "given beside pretrained = true. Keep one of the two."))
    return problems


def _plan_conflicts(plan: Mapping[str, object]) -> list[Problem]:
    lengths = {key: len(value) for key, value in plan.items() if isinstance(value, tuple) and value}
    if len(set(lengths.values())) < 2:
        return []
    found = ", ".join(f"{key} {length}" for key, length in lengths.items())
    return [Problem("plan", f"expected lists of one length, an entry per block; got {found} entries")]


def _prune_conflicts(table: Mapping[str, object]) -> list[Problem]:
    """Refuse a kind that is decided twice, by hand or by methods."""
    by: dict[str, str] = {kind: f"plan.{kind}" for kind in section(table, "plan")}
    problems = []
    for where, method in _methods_of(table):
        own: dict[str, str] = {}
        options = METHODS.get(str(method.get("method")))
        decided = [] if options is None else [(o, kind) for o in method for kind in options.decided_by(o)]
        for option, kind in decided:
            if kind in by:
                text = f"{by[kind]} decides this. Keep one of the two."
                problems.append(Problem(f"{where}.{option}", text))
            else:
                own.setdefault(kind, f"{where}.{option}")
        by |= own
    return problems


def _budget_conflicts(table: Mapping[str, object]) -> list[Problem]:
    """Refuse a budget beside what decides the same, and without what it decides by."""
    if "budget" not in table:
        return []
    problems = [
        Problem(key, "[budget] decides what remains. Keep one of the two.")
        for key in ("plan", "prune")
        if table.get(key)
    ]
    if section(table, "slim").get("recover") == "none":
        text = '"none" beside [budget], whose cuts are measured as the closed form makes them. Take it out.'
        problems.append(Problem("slim.recover", text))
    if "calibration" not in table:
        text = "missing; [budget] measures cuts on images. Add [calibration], which needs no labels."
        problems.append(Problem("calibration", text))
    return problems


def _methods_of(table: Mapping[str, object]) -> list[tuple[str, Mapping[str, object]]]:
    """List the methods as written, with the keys that errors name them by."""
    written = table.get("prune")
    if isinstance(written, Mapping):
        return [("prune", written)]
    several = enumerate(written) if isinstance(written, tuple) else ()
    return [(f"prune[{index}]", method) for index, method in several if isinstance(method, Mapping)]


def _missing_sections(table: Mapping[str, object]) -> list[Problem]:
    problems = []
    if section(table, "slim").get("recover") == "closed-form" and "calibration" not in table:
        text = 'missing; slim.recover = "closed-form" needs images. Add [calibration], or say "none".'
        problems.append(Problem("calibration", text))
    if "tune" in table and "calibration" not in table:
        text = "missing; [tune] needs images to train on. Add [calibration], which needs no labels."
        problems.append(Problem("calibration", text))
    methods = [(str(method.get("method")), method) for _, method in _methods_of(table)]
    learning = [name for name, _ in methods if name in METHODS and METHODS[name].needs_labels]
    if learning and "calibration" not in table:
        text = f'missing; prune.method = "{learning[0]}" learns from labelled images. Add [calibration].'
        problems.append(Problem("calibration", text))
    blind = [name for name, given in methods if name in METHODS and METHODS[name].looks_at_images(given)]
    if blind and "calibration" not in table:
        text = f'missing; prune.method = "{blind[0]}" looks at unlabelled images. Add [calibration].'
        problems.append(Problem("calibration", text))
    gates = [key for key in ("max_drop", "min_agreement") if key in section(table, "gates")]
    if gates and "evaluation" not in table:
        text = f"missing; gates.{' and gates.'.join(gates)} cannot be checked without images to compare on"
        problems.append(Problem("evaluation", text))
    return problems


def _target_conflicts(targets: object) -> list[Problem]:
    tables = [t for t in targets if isinstance(t, Mapping)] if isinstance(targets, tuple) else []
    problems = []
    for index, table in enumerate(tables):
        problems += repeated_precisions(f"target[{index}].precisions", table.get("precisions"))
        if table.get("name") in [earlier.get("name") for earlier in tables[:index]]:
            text = f'"{table.get("name")}" is there twice. Put its precisions into one [[target]].'
            problems.append(Problem(f"target[{index}].name", text))
    return problems
