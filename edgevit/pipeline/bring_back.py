"""Take what a kit's runner found on its board into the report of the build that made the kit."""

from __future__ import annotations

from pathlib import Path

from edgevit.disk import sha256_file
from edgevit.engine import KIT
from edgevit.errors import OutputError
from edgevit.gates import choose, require_gates
from edgevit.integrate.manifest import MANIFEST_FILE, Manifest, manifest_text
from edgevit.pipeline.board_results import BoardResults, judge_board, keep_report, read_board_report
from edgevit.pipeline.publish import write_report
from edgevit.recipe import Gates
from edgevit.report.model import KitFacts, Report, load_report, unmeasured
from edgevit.store import Store


def bring_back(folder: Path, file: Path) -> Report:
    """Put a board's results into the report of a build, rewrite the report's files, and return it.

    Later builds have them too, as long as they make the very same kit and the times can be trusted. The
    recipe's `prefer` and limits on latency and speed-up hold as for what is measured here; where one is
    missed, the build has no manifest any more.

    Args:
        folder: the build directory, which has the kit.
        file: what the kit's runner wrote.

    Raises:
        OutputError: a file is damaged, or the board's is of another kit.
        ParityError: an engine gave other outputs than its graph; the report is left as it was.
        MeasurementError, LatencyGateError, AccuracyGateError: a gate is missed; the report was written.
    """
    report, board = load_report(folder), read_board_report(file)
    kit = _find_kit(report, folder, file, board.kit_sha256)
    estimated = report.models.dense.macs / report.models.slim.macs
    found = judge_board(board, folder / kit.folder, estimated)
    changed = _changed(report, kit, found)
    with Store.open(folder, report.name) as store:
        if all(one.verdict == "trusted" for one in found.results):
            keep_report(folder, file, board.kit_sha256)
        manifest = _read_manifest(folder / MANIFEST_FILE)
        store.public.withdraw(MANIFEST_FILE)
        write_report(store, changed)
        require_gates(changed.results, Gates(**kit.gates))
        if manifest is not None:
            waiting = unmeasured(changed.kits, changed.results)
            store.public.write(
                MANIFEST_FILE, manifest_text(manifest.model_copy(update={"not_measured": waiting}))
            )
    return changed


def _changed(report: Report, kit: KitFacts, found: BoardResults) -> Report:
    """Return the report with a board's results in place of what it said of them."""
    told = found.precisions
    others = tuple(one for one in report.results if one.target != kit.target or one.precision not in told)
    mine = choose(
        [*(one for one in others if one.target == kit.target), *found.results], Gates(**kit.gates), kit.prefer
    )
    return report.model_copy(
        update={
            "results": (*(one for one in others if one.target != kit.target), *mine),
            "not_built": (
                *(one for one in report.not_built if one.target != kit.target or one.precision not in told),
                *found.not_built,
            ),
        }
    )


def _read_manifest(path: Path) -> Manifest | None:
    """Return the manifest; None where the build missed a gate and has none."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error}). Write it anew with `edgevit build`.") from error


def _find_kit(report: Report, folder: Path, file: Path, sha256: str) -> KitFacts:
    for facts in report.kits:
        path = folder / facts.folder / KIT
        if path.is_file() and sha256_file(path) == sha256:
            return facts
    kits = ", ".join(facts.folder for facts in report.kits) or "none"
    raise OutputError(
        f"{file}: expected the report of a kit of this build ({kits}), got that of another one"
        f" ({sha256[:12]}). Give the build that the kit came from, or run this build's kit."
    )
