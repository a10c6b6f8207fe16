"""The line of docs/architecture.md: from a recipe to measured artefacts, a report and a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import edgevit
from edgevit.backends import get_backend
from edgevit.disk import atomic_write, sha256_file
from edgevit.errors import BackendUnavailableError, ImagesError
from edgevit.gates import Gates, choose, require_gates
from edgevit.images import Images, check_labels, open_images, resolve_preprocess
from edgevit.integrate.depfile import depfile_text
from edgevit.integrate.manifest import MANIFEST_FILE, ArtefactEntry, FileEntry, Manifest, manifest_text
from edgevit.models.anatomy import read_anatomy
from edgevit.models.load import ARCH_FILE, WEIGHTS_FILE
from edgevit.pipeline.candidate import Candidate, try_candidate
from edgevit.pipeline.facts import Archs, Found, Sets, make_report, make_result, public_entry, public_folder
from edgevit.pipeline.graphs import SIDES, Form, Graphs, Probe, export_graphs, make_probe
from edgevit.pipeline.inputs import Inputs, Wanted, read_inputs
from edgevit.pipeline.keys import library_versions
from edgevit.pipeline.stages import PLAN_FILE, Saved, Workshop, keep_plan, load_dense, slim_dense
from edgevit.plan import KINDS, Counts, Plan, check_multiples, keep_all, plan_from_counts, plan_text
from edgevit.progress import Progress, silent
from edgevit.recipe import LoadedRecipe
from edgevit.report.html import render_html
from edgevit.report.model import NotBuilt, Report, Result, to_json
from edgevit.slim import SlimOptions
from edgevit.store import Store

REPORT_FILES = ("report.json", "report.html")
_LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxscript", "pillow", "safetensors", "timm", "torch")


@dataclass(frozen=True)
class BuildOptions:
    """How a build departs from its recipe."""

    targets: tuple[str, ...] = ()
    """Targets in place of the recipe's: names, or paths relative to the working directory."""
    depfile: Path | None = None
    """Where to write which files the build read, for Make and Ninja."""


@dataclass(frozen=True)
class _Measured:
    """What came out for all targets."""

    candidates: tuple[Candidate, ...]
    results: tuple[Result, ...]
    not_built: tuple[NotBuilt, ...]
    graphs: dict[Form, Graphs]


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
        shop = Workshop(store, progress)
        dense = load_dense(shop, inputs)
        sets = open_sets(inputs, dense, progress)
        plan = make_plan(inputs, dense)
        plan_file = keep_plan(shop, plan)
        slim = slim_dense(shop, dense, plan, SlimOptions(recover=recipe.recipe.recover), sets.calibration)
        measured = _measure_all(shop, inputs, (dense, slim), sets, plan)
        archs = Archs(dense.loaded.model.arch, slim.loaded.model.arch)
        found = Found(archs, plan, dense.loaded.random_weights, sets, _versions(inputs))
        report = make_report(inputs, found, measured.results, measured.not_built, shop.facts)
        store.withdraw(MANIFEST_FILE)
        _publish(store, plan_file, slim, measured)
        store.write("report.json", to_json(report))
        store.write("report.html", render_html([report]))
        try:
            require_gates(report.results, _gates(inputs))
            store.write(
                MANIFEST_FILE, manifest_text(_manifest(inputs, plan, measured, found.versions, store))
            )
        finally:
            store.finish()
    if options.depfile is not None:
        text = depfile_text(str(out / MANIFEST_FILE), map(str, inputs.files()))
        atomic_write(options.depfile, text)
    return report


def open_sets(inputs: Inputs, dense: Saved, progress: Progress) -> Sets:
    """Draw the images that a build needs and check the labels against the head.

    Raises:
        ImagesError: images that cannot be used, labels that do not fit the head, or none for a gate.
    """
    recipe, default = inputs.recipe.recipe, dense.loaded.preprocess
    calibration = evaluation = None
    if inputs.calibration is not None and recipe.calibration is not None and recipe.recover == "closed-form":
        # Calibration reads no labels, so wrong ones do no harm.
        unlabelled = inputs.calibration.set.model_copy(update={"label": ""})
        calibration = open_images(
            type(inputs.calibration)(unlabelled, inputs.calibration.path),
            resolve_preprocess(default, unlabelled.preprocess),
            recipe.calibration.images,
            recipe.calibration.seed,
            progress,
        )
    if inputs.evaluation is not None and recipe.evaluation is not None:
        evaluation = open_images(
            inputs.evaluation,
            resolve_preprocess(default, inputs.evaluation.set.preprocess),
            recipe.evaluation.images,
            recipe.evaluation.seed,
            progress,
        )
        _check_labels(inputs, evaluation, dense.loaded.model.arch.classes)
    return Sets(calibration, evaluation)


def _check_labels(inputs: Inputs, evaluation: Images, classes: int) -> None:
    assert inputs.evaluation is not None
    if evaluation.labels is not None:
        try:
            check_labels(evaluation.labels, classes)
        except ImagesError as error:
            raise ImagesError(f"{inputs.evaluation.path}: {error}") from error
    elif inputs.recipe.recipe.gates.max_drop is not None:
        raise ImagesError(
            f"{inputs.evaluation.path}: gates.max_drop needs labels, and this set has none. Name its label"
            " column, or use gates.min_agreement, which needs no labels."
        )


def make_plan(inputs: Inputs, dense: Saved) -> Plan:
    """Turn the recipe's counts into a plan that the model and every target can take.

    Raises:
        PlanError: every count that does not fit.
    """
    recipe, anatomy = inputs.recipe.recipe, read_anatomy(dense.loaded.model.arch)
    # On by default; where the head reads all tokens that only matters to a recipe that asked for it.
    asked = "dead_tokens" in recipe.slim.model_fields_set
    dead = recipe.slim.dead_tokens and (asked or anatomy.read_tokens is not None)
    plan = plan_from_counts(anatomy, Counts(**recipe.plan.model_dump()), dead_tokens=dead)
    for wanted in inputs.wanted:
        multiples = {kind: int(getattr(wanted.target.rules, kind)) for kind in KINDS}
        check_multiples(plan, keep_all(anatomy), multiples, wanted.target.name)
    return plan


def _measure_all(
    shop: Workshop, inputs: Inputs, models: tuple[Saved, Saved], sets: Sets, plan: Plan
) -> _Measured:
    archs = Archs(models[0].loaded.model.arch, models[1].loaded.model.arch)
    probe = make_probe(sets.evaluation or sets.calibration, archs.dense)
    graphs: dict[Form, Graphs] = {}
    candidates: list[Candidate] = []
    results: list[Result] = []
    missing: list[NotBuilt] = []
    for wanted in inputs.wanted:
        form = Form.of(inputs.recipe.recipe.export, wanted.target)
        if form not in graphs:
            graphs[form] = export_graphs(shop, models, form, _plan_sha256(plan), probe)
        mine = list(_candidates(shop, wanted, (graphs[form], probe), sets.evaluation, missing))
        made = [make_result(one, archs, sets.evaluation, graphs[form].parity) for one in mine]
        candidates += mine
        results += choose(made, _gates(inputs), wanted.section.prefer)
    return _Measured(tuple(candidates), tuple(results), tuple(missing), graphs)


def _candidates(
    shop: Workshop,
    wanted: Wanted,
    checked: tuple[Graphs, Probe],
    evaluation: Images | None,
    missing: list[NotBuilt],
) -> Iterator[Candidate]:
    """Yield the candidates that this machine can run; those that it cannot go to `missing`.

    Raises:
        BackendUnavailableError: it can run none of them.
    """
    target, reasons = wanted.target, []
    for precision in wanted.precisions:
        try:
            yield try_candidate(shop, (target, precision), *checked, evaluation)
        except BackendUnavailableError as error:
            reasons.append(error)
            missing.append(NotBuilt(target=target.name, precision=precision, why=str(error)))
    if len(reasons) == len(wanted.precisions):
        raise reasons[0]


def _gates(inputs: Inputs) -> Gates:
    return Gates(**inputs.recipe.recipe.gates.model_dump())


def _versions(inputs: Inputs) -> dict[str, str]:
    versions = {"edgevit": edgevit.__version__, **library_versions(_LIBRARIES)}
    for wanted in inputs.wanted:
        versions |= get_backend(wanted.target.runtime).versions()
    return dict(sorted(versions.items()))


def _publish(store: Store, plan_file: Path, slim: Saved, measured: _Measured) -> None:
    """Give the outputs their public names; every candidate is there, the report says which is chosen."""
    store.publish(plan_file, PLAN_FILE)
    for name in (WEIGHTS_FILE, ARCH_FILE):
        store.publish(slim.folder / name, name)
    for index, (form, checked) in enumerate(measured.graphs.items()):
        folder = "onnx" if index == 0 else f"onnx/{form.folder}"
        store.publish(checked.by_side["slim"].path.parent, folder)
        store.publish(checked.by_side["dense"].path.parent, f"{folder}/dense")
    for candidate in measured.candidates:
        for side in SIDES:
            store.publish(candidate.artefacts[side].folder, public_folder(candidate, side))


def _manifest(
    inputs: Inputs, plan: Plan, measured: _Measured, versions: dict[str, str], store: Store
) -> Manifest:
    names = [name for name in store.published if name not in (*REPORT_FILES, MANIFEST_FILE)]
    return Manifest(
        name=inputs.recipe.recipe.name,
        recipe_sha256=inputs.recipe.sha256,
        plan_sha256=_plan_sha256(plan),
        versions=versions,
        artefacts=tuple(
            ArtefactEntry(
                target=candidate.target.name,
                precision=candidate.precision,
                model="dense" if side == "dense" else "slim",
                path=public_entry(candidate, side),
            )
            for candidate in measured.candidates
            for side in SIDES
        ),
        files=tuple(_entry(store.root, name) for name in names),
    )


def _plan_sha256(plan: Plan) -> str:
    return hashlib.sha256(plan_text(plan).encode()).hexdigest()


def _entry(root: Path, name: str) -> FileEntry:
    path = root / name
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=sha256_file(path))
