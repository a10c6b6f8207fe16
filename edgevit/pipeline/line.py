"""The line of docs/architecture.md: from a recipe to measured artefacts, a report and a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgevit.backends import get_backend
from edgevit.disk import atomic_write
from edgevit.gates import require_gates
from edgevit.integrate.depfile import depfile_text
from edgevit.integrate.manifest import MANIFEST_FILE, manifest_text
from edgevit.pipeline.decide import make_plan
from edgevit.pipeline.inputs import Inputs, read_inputs
from edgevit.pipeline.keys import library_versions
from edgevit.pipeline.models import Archs, keep_plan, load_dense, slim_dense
from edgevit.pipeline.publish import make_manifest, publish
from edgevit.pipeline.report import Found, make_report
from edgevit.pipeline.sets import open_sets
from edgevit.pipeline.stages import Stages
from edgevit.pipeline.targets import measure_targets
from edgevit.pipeline.tune import distil_options, tune_slim
from edgevit.progress import Progress, silent
from edgevit.recipe import LoadedRecipe
from edgevit.report.html import render_html
from edgevit.report.model import Report, to_json
from edgevit.slim import SlimOptions
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
            after the report was written; all others before any public file was changed.
    """
    inputs = read_inputs(recipe, options.targets)
    with Store.open(out, recipe.recipe.name) as store:
        stages = Stages(store, progress)
        dense = load_dense(stages, inputs)
        sets = open_sets(stages, inputs, dense)
        plan = make_plan(stages, inputs, dense, sets.calibration)
        plan_file = keep_plan(stages, plan)
        repair = SlimOptions(recipe.recipe.recover, fold_means=recipe.recipe.fold_means)
        slim = slim_dense(stages, dense, plan, repair, sets.calibration)
        tuned = None
        if recipe.recipe.tune is not None and sets.tuning is not None:
            tuned = tune_slim(stages, dense, slim, distil_options(recipe.recipe.tune), sets.tuning)
            slim = tuned.model
        measured = measure_targets(stages, inputs, (dense, slim), sets, plan)
        archs = Archs(dense.loaded.model.arch, slim.loaded.model.arch)
        facts = None if tuned is None else tuned.facts
        found = Found(archs, plan, dense.loaded.random_weights, sets, _versions(inputs), facts)
        report = make_report(inputs, found, measured.results, measured.not_built, stages.facts)
        store.withdraw(MANIFEST_FILE)
        publish(store, plan_file, slim, measured)
        store.write("report.json", to_json(report))
        store.write("report.html", render_html([report]))
        try:
            require_gates(report.results, inputs.gates)
            store.write(
                MANIFEST_FILE, manifest_text(make_manifest(inputs, plan, measured, found.versions, store))
            )
        finally:
            store.finish()
    if options.depfile is not None:
        text = depfile_text(str(out / MANIFEST_FILE), map(str, inputs.files()))
        atomic_write(options.depfile, text)
    return report


def _versions(inputs: Inputs) -> dict[str, str]:
    versions = {"edgevit": __version__, **library_versions(_LIBRARIES)}
    for wanted in inputs.wanted:
        versions |= get_backend(wanted.target.runtime).versions()
    return dict(sorted(versions.items()))
