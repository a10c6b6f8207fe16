"""Take what a kit's runner found on its board into the report of the build that made the kit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from edgevit.board import Taken
from edgevit.disk import atomic_write, sha256_file
from edgevit.engine import KIT
from edgevit.errors import OutputError, ParityError
from edgevit.gates import choose
from edgevit.measure.protocol import Latency as Times
from edgevit.measure.protocol import Measurement, summarise
from edgevit.pipeline.candidate import report_latency
from edgevit.pipeline.graphs import SIDES
from edgevit.recipe import Gates
from edgevit.report.html import render_html
from edgevit.report.model import (
    FILE_NAME,
    ArtefactFacts,
    KitFacts,
    NotBuilt,
    Report,
    Result,
    SlimFacts,
    Speedup,
    load_report,
    to_json,
)
from edgevit.target import Timing

SCHEMA = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=True)


class _Compared(_Part):
    max_abs: float
    largest: float
    top1_agreement: float


class _Candidate(_Part):
    precision: str
    failed: str | None = None
    engines: Mapping[str, Mapping[str, str]] = {}
    parity: Mapping[str, _Compared] = {}
    taken: Taken | None = None
    gpu_ms: Mapping[str, tuple[float, ...]] = {}
    cuda_graph: Mapping[str, str] = {}


class BoardReport(_Part):
    """What `run.py` of a kit writes."""

    format: int = Field(alias="schema")
    kit_sha256: str
    version: str
    expected_versions: tuple[str, ...]
    device: Mapping[str, str]
    board: Mapping[str, str]
    candidates: tuple[_Candidate, ...]


class _KitSide(_Part):
    folder: str


class _KitCandidate(_Part):
    precision: str
    tolerance: float
    dense: _KitSide
    slim: _KitSide


class Kit(_Part):
    """What a kit says of itself."""

    target: str
    timing: Timing
    candidates: tuple[_KitCandidate, ...]


def bring_back(folder: Path, file: Path) -> Report:
    """Put a board's results into the report of a build, rewrite the report's files, and return it.

    The accuracy stays unknown: a board compares outputs on the stored images alone.

    Args:
        folder: the build directory, which has the kit.
        file: what the kit's runner wrote.

    Raises:
        OutputError: a file is damaged, or the board's is of another kit.
        ParityError: an engine gave other outputs than its graph; the report is left as it was.
    """
    report = load_report(folder)
    board = _read(file, BoardReport)
    if board.format != SCHEMA:
        raise OutputError(f"{file}: expected a board's report of schema {SCHEMA}, got {board.format}.")
    facts = _find_kit(report, folder, file, board.kit_sha256)
    kit = _read(folder / facts.folder / KIT, Kit)
    by_precision = {one.precision: one for one in kit.candidates}
    results = [
        _result(report, kit, by_precision[one.precision], one, board)
        for one in board.candidates
        if one.failed is None
    ]
    failed = [
        NotBuilt(target=kit.target, precision=one.precision, why=f"on the board: {one.failed}")
        for one in board.candidates
        if one.failed is not None
    ]
    told = {one.precision for one in board.candidates}
    changed = report.model_copy(
        update={
            "results": (
                *(one for one in report.results if one.target != kit.target),
                *choose(results, Gates(), "fastest"),
            ),
            "not_built": (
                *(one for one in report.not_built if one.target != kit.target or one.precision not in told),
                *failed,
            ),
        }
    )
    atomic_write(folder / FILE_NAME, to_json(changed))
    atomic_write(folder / "report.html", render_html([changed]))
    return changed


T = TypeVar("T", bound=BaseModel)


def _read(path: Path, model: type[T]) -> T:
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise OutputError(f"{path}: expected the file that a kit's run.py wrote, found none.") from error
    except (OSError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise OutputError(f"{path}: damaged ({said}). Run the kit again.") from error


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


def _result(report: Report, kit: Kit, entry: _KitCandidate, found: _Candidate, board: BoardReport) -> Result:
    """Judge what was measured of one precision, as if it had been measured here."""
    parity = _check_parity(kit, entry, found)
    if found.taken is None or set(found.engines) != set(SIDES):
        raise OutputError(
            f"{kit.target} {found.precision}: the board's report has no times. Run the kit again."
        )
    times = summarise(found.taken, kit.timing)
    assert times.candidate is not None
    assert times.speedup is not None
    estimated = report.models.dense.macs / report.models.slim.macs
    dense = _artefact(kit, entry.dense.folder, found.engines["dense"], times.reference)
    slim = _artefact(kit, entry.slim.folder, found.engines["slim"], times.candidate)
    return Result(
        target=kit.target,
        precision=found.precision,
        device={"tensorrt": board.version, **board.device, **board.board},
        protocol=_protocol(found, times, kit.timing, board),
        chosen=False,
        refused=None,
        dense=dense,
        slim=SlimFacts(**slim.model_dump(), agreement=None),
        drop=None,
        speedup=Speedup(
            measured=times.speedup.value,
            interval=(times.speedup.low, times.speedup.high),
            estimated=estimated,
            promise=times.speedup.value / estimated,
        ),
        parity=parity,
        verdict=times.verdict,
        why=times.why,
    )


def _check_parity(kit: Kit, entry: _KitCandidate, found: _Candidate) -> dict[str, JsonValue]:
    facts: dict[str, JsonValue] = {}
    for side, compared in found.parity.items():
        allowed = entry.tolerance * max(1.0, compared.largest)
        if not compared.max_abs <= allowed:  # a NaN, which compares false, fails too
            raise ParityError(
                f"{kit.target} {found.precision}: the {side} engine's logits are up to {compared.max_abs:.3g}"
                f" from those of its graph, allowed {allowed:.3g}, top-1 agreement"
                f" {compared.top1_agreement:.4f}. It would not have the model's accuracy:"
                " take another precision or opset."
            )
        facts |= {
            f"{side}_onnx_artefact_max_abs": compared.max_abs,
            f"{side}_onnx_artefact_allowed": allowed,
            f"{side}_onnx_artefact_top1_agreement": compared.top1_agreement,
        }
    return facts


def _protocol(
    found: _Candidate, times: Measurement, timing: Timing, board: BoardReport
) -> dict[str, JsonValue]:
    facts: dict[str, JsonValue] = {
        "runs_per_burst": times.runs_per_burst,
        "timing": timing.model_dump(mode="json"),
        "expected_versions": list(board.expected_versions),
    }
    for side, samples in found.gpu_ms.items():
        facts[f"{side}_gpu_ms_median"] = sorted(samples)[len(samples) // 2]
    for side, words in found.cuda_graph.items():
        facts[f"{side}_cuda_graph"] = words
    return facts


def _artefact(kit: Kit, folder: str, facts: Mapping[str, str], times: Times) -> ArtefactFacts:
    return ArtefactFacts(
        artefact=f"{kit.target}/{folder}/model.engine, on the board",
        sha256=facts["sha256"],
        bytes=int(facts["bytes"]),
        top1=None,
        latency_ms=report_latency(times),
    )
