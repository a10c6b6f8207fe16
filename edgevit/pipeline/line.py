"""The line of docs/architecture.md: from a recipe to measured artefacts, a report and a manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.backends import get_backend
from edgevit.disk import atomic_write
from edgevit.gates import require_gates
from edgevit.integrate.depfile import depfile_text
from edgevit.integrate.manifest import MANIFEST_FILE, manifest_text
from edgevit.pipeline.budget import Budgeted, budget_facts, with_latency
from edgevit.pipeline.graphs import Form
from edgevit.pipeline.inputs import Inputs, read_inputs
from edgevit.pipeline.keys import library_versions
from edgevit.pipeline.make import decide, make_slim, open_start
from edgevit.pipeline.models import Archs, Saved, keep_plan
from edgevit.pipeline.publish import make_manifest, publish, write_report
from edgevit.pipeline.report import Found, make_report
from edgevit.pipeline.stages import Stages
from edgevit.pipeline.targets import Measured, measure_targets, open_graphs
from edgevit.pipeline.untuned import SIDE, score_untuned
from edgevit.progress import Progress, silent
from edgevit.recipe import LoadedRecipe, naming_recipe
from edgevit.report.model import Report
from edgevit.store import Store
from edgevit.version import __version__

_LIBRARIES = (
    "accelerate", "numpy", "onnx", "onnxruntime", "onnxscript", "pillow", "safetensors", "timm", "torch"
)  # fmt: skip


@dataclass(frozen=True)
class BuildOptions:
    """How a build departs from its recipe."""

    targets: tuple[str, ...] = ()
    """Targets in place of the recipe's: names, or paths relative to the working directory."""
    depfile: Path | None = None
    """Where to write which files the build read, for Make and Ninja."""


def build(
    recipe: LoadedRecipe, out: Path, options: BuildOptions = BuildOptions(), progress: Progress = silent
) -> Report:
    """Make the slim model that a recipe describes, build it for each target, measure it, write the results.

    Finished stages are kept in `out`; only what depends on a change is made anew. `manifest.json` is there
    only when all went well and every gate held.

    Raises:
        EdgevitError: anything a user can cause. AccuracyGateError, MeasurementError and LatencyGateError come
            after the report was written. DiskFullError and OutputError may come while public files are put in
            place: some are then new, and there is no manifest; or after that, for the depfile. All others
            come before any public file was changed.
    """
    with naming_recipe(recipe.path):
        inputs = read_inputs(recipe, options.targets)
    with Store.open(out, recipe.recipe.name) as store:
        stages = Stages(store, progress)
        with naming_recipe(recipe.path):
            made = _make_models(stages, inputs)
        models = made.dense, made.slim
        measured = measure_targets(stages, inputs, models, made.found.sets, made.found.plan)
        found = _with_latency(stages, made, _with_untuned(stages, inputs, made, measured), measured)
        report = make_report(inputs, found, measured, stages.facts)
        store.public.withdraw(MANIFEST_FILE)
        publish(store, made.plan_file, made.slim, measured)
        write_report(store, report)
        try:
            require_gates(report.results, inputs.gates)
            manifest = make_manifest(inputs, made.found.plan, measured, made.found.versions, store)
            store.public.write(MANIFEST_FILE, manifest_text(manifest))
        finally:
            store.finish()
    if options.depfile is not None:
        text = depfile_text(str(out / MANIFEST_FILE), map(str, inputs.files()))
        atomic_write(options.depfile, text)
    return report


@dataclass(frozen=True)
class _Made:
    """Both models, and what making them has found."""

    dense: Saved
    slim: Saved
    untuned: Saved
    """The slim model before training; the same where there is none."""
    plan_file: Path
    found: Found
    budgeted: Budgeted | None


def _make_models(stages: Stages, inputs: Inputs) -> _Made:
    """Load the dense model, decide what remains, and make the slim one."""
    start = open_start(stages, inputs)
    plan, budgeted = decide(stages, inputs, start)
    plan_file = keep_plan(stages, plan)
    made, dense = make_slim(stages, inputs, start, plan), start.dense
    budget = None
    if budgeted is not None:
        models = dense, made.untuned
        budget = budget_facts(stages, inputs, budgeted, models, start.sets.evaluation)
    archs = Archs(dense.loaded.model.arch, made.slim.loaded.model.arch)
    random = dense.loaded.random_weights
    searches = start.searched.facts
    found = Found(archs, plan, random, start.sets, _versions(inputs), searches, made.tuned, budget)
    return _Made(dense, made.slim, made.untuned, plan_file, found, budgeted)


def _with_untuned(stages: Stages, inputs: Inputs, made: _Made, measured: Measured) -> Found:
    """Add what the slim model was worth before training, where it was trained and is evaluated here."""
    found = made.found
    if found.tune is None or found.sets.evaluation is None or not measured.candidates:
        return found
    first = measured.candidates[0]
    form = Form.of(inputs.recipe.recipe.export, first.target)
    files = open_graphs(stages, inputs, {SIDE: made.untuned}, found.sets, found.plan)
    tune = score_untuned(stages, found.tune, files, (first, form), found.sets.evaluation)
    return replace(found, tune=tune)


def _with_latency(stages: Stages, made: _Made, found: Found, measured: Measured) -> Found:
    """Add what was measured beside what a budget of time was planned by."""
    if made.budgeted is None or found.budget is None:
        return found
    return replace(found, budget=with_latency(stages, made.budgeted, found.budget, measured))


def _versions(inputs: Inputs) -> dict[str, str]:
    versions = {"edgevit": __version__, **library_versions(_LIBRARIES)}
    for wanted in inputs.wanted:
        if wanted.target.device == "board":
            continue  # its versions are the board's, and its report has them
        versions |= get_backend(wanted.target.runtime).versions()
    return dict(sorted(versions.items()))
