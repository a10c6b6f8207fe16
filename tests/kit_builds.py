"""A build directory with a kit, as edgevit leaves one, without the build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgevit.integrate.manifest import MANIFEST_FILE, Manifest, manifest_text
from edgevit.report.model import FILE_NAME, Report, to_json
from edgevit.store import Store


def write_kit_build(root: Path, report: Report, fill: Callable[[Path], None]) -> None:
    """Make a build of `report`, whose one kit is what `fill` writes into a folder."""
    (facts,) = report.kits
    manifest = Manifest(
        name=report.name,
        recipe_sha256="0" * 64,
        plan_sha256="0" * 64,
        versions={},
        artefacts=(),
        not_measured=(facts.target,),
        files=(),
    )
    with Store.open(root, report.name) as store:
        store.public.put(store.run("kit", {}, lambda folder: fill(folder / "kit")) / "kit", facts.folder)
        store.public.write(FILE_NAME, to_json(report))
        store.public.write(MANIFEST_FILE, manifest_text(manifest))
        store.finish()
