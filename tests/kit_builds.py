"""A build directory with a kit, as edgevit leaves one, without the build, and what a board says of a kit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgevit.integrate.manifest import MANIFEST_FILE, Manifest, manifest_text
from edgevit.report.model import FILE_NAME, Report, to_json
from edgevit.store import Store

SIDES = ("dense", "slim")
EQUAL = {"images": 32, "max_abs": 1e-4, "largest": 5.0, "beyond": 0, "top1_agreement": 1.0}


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


def candidate(precision: str, slim_ms: float, **compared: float) -> dict[str, Any]:
    """Return what a runner found; both engines compute what their graphs do, but for what is given."""
    bursts = [
        [[round(ms * 1e6) + burst + run for run in range(10)] for burst in range(12)] for ms in (4.0, slim_ms)
    ]
    return {
        "precision": precision,
        "engines": {side: {"sha256": "e" * 64, "bytes": "1000", "version": "10.3.0"} for side in SIDES},
        "parity": dict.fromkeys(SIDES, EQUAL | compared),
        "taken": {"first_ns": [9_000_000, 8_000_000], "bursts_ns": bursts, "runs_per_burst": 10},
        "gpu_ms": {side: [3.0, 2.0, 2.5] for side in SIDES},
        "cuda_graph": dict.fromkeys(SIDES, "yes"),
    }
