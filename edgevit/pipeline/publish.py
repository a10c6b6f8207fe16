"""The public names of what a build made, and the manifest that lists them."""

from __future__ import annotations

from pathlib import Path

from edgevit.disk import sha256_file
from edgevit.integrate.manifest import MANIFEST_FILE, ArtefactEntry, FileEntry, Manifest
from edgevit.models.load import ARCH_FILE, WEIGHTS_FILE
from edgevit.pipeline.graphs import SIDES
from edgevit.pipeline.inputs import Inputs
from edgevit.pipeline.models import PLAN_FILE, Saved
from edgevit.pipeline.targets import Measured
from edgevit.plan import Plan, plan_sha256
from edgevit.report import html, model
from edgevit.store import Store

REPORT_FILES = (model.FILE_NAME, html.FILE_NAME)


def publish(store: Store, plan_file: Path, slim: Saved, measured: Measured) -> None:
    """Give the outputs their public names; every candidate is there, the report says which is chosen."""
    store.public.put(plan_file, PLAN_FILE)
    for name in (WEIGHTS_FILE, ARCH_FILE):
        store.public.put(slim.folder / name, name)
    for index, (form, by_precision) in enumerate(measured.graphs.items()):
        folder = "onnx" if index == 0 else f"onnx/{form.folder}"
        for checked in by_precision.values():
            store.public.put(checked.by_side["slim"].path.parent, folder)
            store.public.put(checked.by_side["dense"].path.parent, f"{folder}/dense")
    for kit, facts in measured.kits:
        store.public.put(kit, facts.folder)
    for candidate in measured.candidates:
        for side in SIDES:
            store.public.put(candidate.artefacts[side].folder, candidate.folder(side))


def write_report(store: Store, report: model.Report) -> None:
    """Write the report, as data and as a page."""
    store.public.write(model.FILE_NAME, model.to_json(report))
    store.public.write(html.FILE_NAME, html.render_html([report]))


def make_manifest(
    inputs: Inputs, plan: Plan, measured: Measured, versions: dict[str, str], store: Store
) -> Manifest:
    """List what was published, with hashes; the report, which holds times, is left out."""
    names = [name for name in store.public.names if name not in (*REPORT_FILES, MANIFEST_FILE)]
    return Manifest(
        name=inputs.recipe.recipe.name,
        recipe_sha256=inputs.recipe.sha256,
        plan_sha256=plan_sha256(plan),
        versions=versions,
        artefacts=tuple(
            ArtefactEntry(
                target=candidate.target.name,
                precision=candidate.precision,
                model="dense" if side == "dense" else "slim",
                path=candidate.entry(side),
            )
            for candidate in measured.candidates
            for side in SIDES
        ),
        not_measured=model.unmeasured([facts for _, facts in measured.kits], measured.results),
        files=tuple(_entry(store.root, name) for name in names),
    )


def _entry(root: Path, name: str) -> FileEntry:
    path = root / name
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=sha256_file(path))
