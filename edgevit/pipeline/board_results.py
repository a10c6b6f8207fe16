"""What a kit's runner found on its board, judged as if it had been measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from edgevit.board import Taken
from edgevit.disk import atomic_write, sha256_file
from edgevit.engine import ENGINE, KIT, SCHEMA, Allowed, Compared, allowed_difference, objection
from edgevit.errors import OutputError, ParityError
from edgevit.measure.protocol import Latency as Times
from edgevit.measure.protocol import Measurement, summarise
from edgevit.ownership import OWN
from edgevit.pipeline.candidate import gpu_medians, report_latency
from edgevit.pipeline.graphs import SIDES
from edgevit.pipeline.inputs import CALIBRATED
from edgevit.report.model import ArtefactFacts, NotBuilt, Result, SlimFacts, Speedup
from edgevit.target import Timing


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=True)


class _Engine(_Part):
    sha256: str
    bytes: int


class _Candidate(_Part):
    precision: str
    failed: str | None = None
    engines: Mapping[str, _Engine] = {}
    parity: Mapping[str, Compared] = {}
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
    allowed: Allowed


class _KitCandidate(_Part):
    precision: str
    dense: _KitSide
    slim: _KitSide


class _Kit(_Part):
    """What a kit says of itself."""

    target: str
    timing: Timing
    candidates: tuple[_KitCandidate, ...]


@dataclass(frozen=True)
class BoardResults:
    """What a board's report says of each precision that it tells of."""

    results: tuple[Result, ...]
    """None is chosen yet."""
    not_built: tuple[NotBuilt, ...]

    @property
    def precisions(self) -> set[str]:
        """Return those that the board told of, built or not."""
        return {one.precision for one in self.results} | {one.precision for one in self.not_built}


def read_board_report(file: Path) -> BoardReport:
    """Read what a kit's runner wrote.

    Raises:
        OutputError: it is not there, damaged, or of another schema.
    """
    board = _read(file, BoardReport)
    if board.format != SCHEMA:
        raise OutputError(
            f"{file}: expected a board's report of schema {SCHEMA}, got {board.format}."
            " Build the kit anew, and run that one."
        )
    return board


def kept_report(root: Path, kit_sha256: str) -> Path:
    """Return where a build directory keeps the report of a kit, so that later builds still have it."""
    return root / OWN / "boards" / f"{kit_sha256}.json"


def keep_report(root: Path, file: Path, kit_sha256: str) -> None:
    """Keep a board's report for as long as builds make the very same kit.

    Raises:
        DiskFullError, OutputError: it cannot be written.
    """
    atomic_write(kept_report(root, kit_sha256), file.read_bytes())


def kept_results(root: Path, kit: Path, estimated: float) -> BoardResults:
    """Return what a board has said of this very kit; nothing where it has not, or can no longer be read."""
    file = kept_report(root, sha256_file(kit / KIT))
    try:
        board = read_board_report(file)
    except OutputError:
        return BoardResults((), ())
    return judge_board(board, kit, estimated)


def judge_board(board: BoardReport, kit: Path, estimated: float) -> BoardResults:
    """Compare what a board found with what its kit allows, and sum up its times.

    The accuracy stays unknown: a board compares outputs on the stored images alone.

    Args:
        board: its report.
        kit: the folder of the kit that it ran.
        estimated: the speed-up that the models' MACs let hope for.

    Raises:
        OutputError: the report tells of what the kit has not, or lacks times.
        ParityError: an engine in fp32 gave other outputs than its graph. One in fp16 or int8 is not built,
            as where artefacts are built here.
    """
    said = _read(kit / KIT, _Kit)
    why = {one.precision: _refusal(said, one) for one in board.candidates}
    failed = tuple(
        NotBuilt(target=said.target, precision=precision, why=f"on the board: {words}")
        for precision, words in why.items()
        if words
    )
    results = tuple(
        _result(said, one, board, estimated) for one in board.candidates if not why[one.precision]
    )
    return BoardResults(results, failed)


def _refusal(kit: _Kit, found: _Candidate) -> str:
    """Return why a candidate has no result: it failed, or its engines are not its graphs; else nothing.

    Raises:
        ParityError: an engine in fp32 gave other outputs than its graph.
    """
    if found.failed is not None:
        return found.failed
    _require_complete(kit, found)
    wrong = []
    for side, compared in found.parity.items():
        words = objection(compared, _allowed(kit, found.precision, side))
        if words:
            wrong.append(f"the {side} engine {words}")
    if not wrong:
        return ""
    text = f"{' and '.join(wrong)}. It would not have the model's accuracy"
    if found.precision not in CALIBRATED:
        raise ParityError(f"{kit.target} {found.precision}: {text}: take another precision or opset.")
    return text


def _allowed(kit: _Kit, precision: str, side: str) -> Allowed:
    entry = _entry(kit, precision)
    return entry.dense.allowed if side == "dense" else entry.slim.allowed


def _require_complete(kit: _Kit, found: _Candidate) -> None:
    _entry(kit, found.precision)
    if found.taken is None or set(found.engines) != set(SIDES) or set(found.parity) != set(SIDES):
        raise OutputError(
            f"{kit.target} {found.precision}: the board's report has no times or comparisons."
            " Run the kit again."
        )


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


def _entry(kit: _Kit, precision: str) -> _KitCandidate:
    for entry in kit.candidates:
        if entry.precision == precision:
            return entry
    known = ", ".join(entry.precision for entry in kit.candidates)
    raise OutputError(
        f"{kit.target}: expected the board's report of {known}, which its kit has, got {precision}."
        " Run the kit again, and bring back the file as it is."
    )


def _result(kit: _Kit, found: _Candidate, board: BoardReport, estimated: float) -> Result:
    entry = _entry(kit, found.precision)
    assert found.taken is not None
    times = summarise(found.taken, kit.timing)
    assert times.candidate is not None
    assert times.speedup is not None
    dense = _artefact(kit, entry.dense.folder, found.engines["dense"], times.reference)
    slim = _artefact(kit, entry.slim.folder, found.engines["slim"], times.candidate)
    return Result(
        target=kit.target,
        precision=found.precision,
        on_board=True,
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
        parity=_parity(kit, found),
        verdict=times.verdict,
        why=times.why,
    )


def _parity(kit: _Kit, found: _Candidate) -> dict[str, JsonValue]:
    facts: dict[str, JsonValue] = {}
    for side, compared in found.parity.items():
        allowed = _allowed(kit, found.precision, side)
        link = f"{side}_onnx_artefact"
        facts |= {
            f"{link}_max_abs": compared.max_abs,
            f"{link}_allowed": allowed_difference(compared.largest, allowed),
            f"{link}_top1_agreement": compared.top1_agreement,
        }
        if allowed.agreement is not None:
            facts[f"{link}_min_agreement"] = allowed.agreement
    return facts


def _protocol(
    found: _Candidate, times: Measurement, timing: Timing, board: BoardReport
) -> dict[str, JsonValue]:
    facts: dict[str, JsonValue] = {
        "runs_per_burst": times.runs_per_burst,
        "timing": timing.model_dump(mode="json"),
        "expected_versions": list(board.expected_versions),
        **gpu_medians(found.gpu_ms),
    }
    for side, words in found.cuda_graph.items():
        facts[f"{side}_cuda_graph"] = words
    return facts


def _artefact(kit: _Kit, folder: str, engine: _Engine, times: Times) -> ArtefactFacts:
    return ArtefactFacts(
        artefact=f"{kit.target}/{folder}/{ENGINE}, on the board",
        sha256=engine.sha256,
        bytes=engine.bytes,
        top1=None,
        latency_ms=report_latency(times),
    )
