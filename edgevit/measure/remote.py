"""Time artefacts on a board: send them, take what it answers, and say in the user's words what went wrong.

One connection carries all. `board.py` loads, runs and takes the samples there, with the options that the
backend decides here; what the samples tell is found here, as for samples from this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from edgevit.backends import Backend, get_backend
from edgevit.backends.base import require_file
from edgevit.backends.files import artefact_files
from edgevit.board import Conditions, Installed, Job, Machine, Taken
from edgevit.errors import BackendError, BackendUnavailableError
from edgevit.measure.protocol import require_same_shape, time_budget
from edgevit.measure.ssh import Answer, Board, Connection, connect
from edgevit.progress import Progress
from edgevit.target import TENSORRT_RUNTIMES, Precision, Target

_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Answered:
    """What a board says of the artefacts and of itself."""

    taken: Taken
    device: dict[str, str]
    """What the runtime really used."""
    machine: Machine
    conditions: tuple[Conditions, Conditions]
    """Before and after."""


def take_on_board(
    board: Board, artefacts: Sequence[Path], target: Target, precision: Precision, progress: Progress
) -> Answered:
    """Send artefacts to a board, time them there side by side in one process, and return the samples.

    Args:
        board: where.
        artefacts: one, or the reference and then the candidate.
        target: whose runtime, device, threads and protocol.
        precision: in which they run.
        progress: told of sending and of timing.

    Raises:
        RecipeError: the two take inputs of different shapes.
        BackendUnavailableError: no ssh here, no way to the board, or it lacks Python, NumPy, the runtime, the
            device or the precision.
        BackendError: an artefact is broken, the board's runtime refuses it, or the board went silent or away.
    """
    if target.runtime in TENSORRT_RUNTIMES:
        raise BackendUnavailableError(
            f"{target.name}: engines are timed where they were built, not sent to {board}: start"
            " `python3 run.py` of the build kit there, and bring its report back with `edgevit report DIR"
            " --import FILE`."
        )
    backend = get_backend(target.runtime)
    options = backend.options(target, precision)
    sources, job = _pack(artefacts, target)
    with connect(board) as connection:
        connection.send_line(
            {"runtime": options.runtime, "device": options.device, "settings": options.settings}
        )
        greeting = connection.answer()
        machine = _require_ready(board, greeting, backend, target, precision)
        connection.send_line(asdict(job))
        for path in sources:
            _send_file(connection, path, progress)
        taken = _await_samples(connection, artefacts, backend, progress)
    return Answered(
        TypeAdapter(Taken).validate_python(taken["taken"]),
        taken["device"],
        machine,
        TypeAdapter(tuple[Conditions, Conditions]).validate_python(taken["conditions"]),
    )


def _pack(artefacts: Sequence[Path], target: Target) -> tuple[list[Path], Job]:
    """Return the files to send, and what the board is to do with them."""
    sources: list[Path] = []
    entries, files = [], []
    for number, artefact in enumerate(artefacts):
        require_file(target.runtime, artefact)
        names = artefact_files(artefact)
        entries.append(f"{number}/{names[0]}")
        for name in names:
            source = artefact.parent / name
            require_file(target.runtime, source)
            sources.append(source)
            files.append((f"{number}/{name}", source.stat().st_size))
    return sources, Job(entries, files, target.batch, time_budget(target.timing))


def _require_ready(
    board: Board, greeting: Answer, backend: Backend, target: Target, precision: Precision
) -> Machine:
    """Return what machine the board is, if it has all that the target needs."""
    if greeting["answer"] == "missing":
        raise BackendUnavailableError(
            f"{board}: {greeting['module']}: not installed for {board.python} there ({greeting['words']})."
            f" Get it there with: {board.python} -m pip install numpy {target.runtime}. In a virtual"
            " environment, name that environment's Python with --python."
        )
    try:
        backend.require(TypeAdapter(Installed).validate_python(greeting["installed"]), target, precision)
    except BackendUnavailableError as error:
        raise BackendUnavailableError(f"{board}: {error}") from error
    return TypeAdapter(Machine).validate_python(greeting["machine"])


def _send_file(connection: Connection, path: Path, progress: Progress) -> None:
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            connection.send(chunk)
            done += len(chunk)
            progress(f"sending {path.name}, kB", done // 1000, total // 1000)


def _await_samples(
    connection: Connection, artefacts: Sequence[Path], backend: Backend, progress: Progress
) -> Answer:
    task = f"timing {artefacts[-1].name}"
    while True:
        answer = connection.answer()
        match answer["answer"]:
            case "loaded":
                require_same_shape(artefacts, [tuple(shape) for shape in answer["shapes"]])
            case "progress":
                progress(task, round(1000 * answer["share"]), 1000)
            case "failed":
                raise _failure(connection.board, answer, artefacts, backend)
            case "taken":
                progress(task, 1000, 1000)
                return answer


def _failure(board: Board, answer: Answer, artefacts: Sequence[Path], backend: Backend) -> BackendError:
    """Say which artefact failed on the board, and why."""
    which, words = answer["artefact"], answer["words"]
    if which is None:
        return BackendError(f"{' or '.join(map(str, artefacts))}: did not run on {board}: {words}")
    path = artefacts[which]
    return BackendError(f"{path}: did not load on {board}: {words}{backend.advice(path, words)}")
