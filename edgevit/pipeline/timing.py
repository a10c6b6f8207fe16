"""Timing artefacts that are already there, alone or against another, here or on a board, outside a build."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from edgevit.backends import get_backend
from edgevit.backends.files import MODEL_SUFFIXES
from edgevit.backends.graph_precision import graph_precision
from edgevit.board import Conditions, Machine, draw_sample, read_conditions, read_machine, timed_shape
from edgevit.errors import BackendError, RecipeError
from edgevit.measure.protocol import Measurement, measure_pair, require_same_shape, summarise, until_trusted
from edgevit.measure.remote import Answered, take_on_board
from edgevit.measure.ssh import Board
from edgevit.progress import Progress
from edgevit.report.model import FILE_NAME, load_report
from edgevit.report.phrases import label
from edgevit.target import Precision, Target


@dataclass(frozen=True)
class Chosen:
    """What is to be timed."""

    artefact: Path
    against: Path | None
    """The reference of the speed-up, where there is one."""
    precision: Precision

    @property
    def in_order(self) -> list[Path]:
        """Return the reference, if there is one, and then the artefact."""
        return [self.artefact] if self.against is None else [self.against, self.artefact]


@dataclass(frozen=True)
class Timed:
    """What timing found, and what the artefacts ran on."""

    chosen: Chosen
    found: Measurement
    host: str | None
    """Address of the board; None for this machine."""
    device: dict[str, str]
    """What the runtime says it used."""
    machine: Machine
    conditions: tuple[Conditions, Conditions]
    """Before and after."""


def choose_artefacts(path: Path, against: Path | None, target: Target, precision: str | None) -> Chosen:
    """Find what a path means: a build directory, a folder with one model file, or that file itself.

    A build gives its slim artefact against its dense one, in the precision it chose. Any other file is in the
    precision that its folder is named after, as builds name them, else in the one that an ONNX graph has,
    where that is not fp32, else in the target's first.

    Args:
        path: what the user names.
        against: another reference than a build's dense artefact: a file, or a folder with one.
        target: the target to time on.
        precision: the precision wanted, if the user names one.

    Raises:
        RecipeError: no such file or precision, or the build has nothing for this target and precision.
        OutputError: a folder is neither of these.
    """
    wanted = None if precision is None else _precision(precision)
    reference = None if against is None else _model_file(against) or against
    model = _model_file(path)
    if model is None:
        slim, dense, built = _artefacts_of_build(path, target.name, wanted)
        chosen = Chosen(slim, reference or dense, built)
    else:
        chosen = Chosen(model, reference, wanted or _said_by(model) or target.precisions[0])
    for file in chosen.in_order:
        if not file.is_file():
            found = "a folder" if file.is_dir() else "no such file"
            raise RecipeError(
                f"{file}: expected a built artefact, found {found}. Give the file that a build made."
            )
    return chosen


def _said_by(model: Path) -> Precision | None:
    """Return the precision that a file's folder or graph tells; fp32 tells nothing, as bf16 is made of it."""
    named = _known(model.parent.name)
    if named is not None or model.suffix != ".onnx":
        return named
    try:
        found = graph_precision(model)
    except BackendError:  # loading it says better what is wrong with it
        return None
    return None if found == "fp32" else found


def time_here(chosen: Chosen, target: Target, progress: Progress) -> Timed:
    """Time artefacts on this machine, interleaved where there are two.

    Raises:
        RecipeError: the two take inputs of different shapes.
        BackendUnavailableError: the runtime or device is not here.
        BackendError: a file cannot be loaded, or a run failed.
    """
    backend = get_backend(target.runtime)
    backend.check()
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(backend.load(path, target, chosen.precision)) for path in chosen.in_order
        ]
        shapes = [timed_shape(session.input_shape, target.batch) for session in sessions]
        require_same_shape(chosen.in_order, shapes)
        before = read_conditions()
        found = measure_pair(
            sessions[0],
            sessions[1] if len(sessions) == 2 else None,
            draw_sample(shapes[0]),
            target.timing,
            progress=lambda share: progress(f"timing {chosen.artefact.name}", round(1000 * share), 1000),
        )
        conditions = (before, read_conditions())
        machine = read_machine(backend.versions())
        return Timed(chosen, found, None, sessions[-1].device(), machine, conditions)


def time_on_board(board: Board, chosen: Chosen, target: Target, progress: Progress) -> Timed:
    """Time artefacts on a board, as `time_here` does on this machine.

    Raises:
        RecipeError: the two take inputs of different shapes.
        BackendUnavailableError: no ssh here, no way to the board, or it lacks Python, NumPy, the runtime, the
            device or the precision.
        BackendError: a file is broken or refused there, or the board went silent or away.
    """
    answers: list[Answered] = []

    def once() -> Measurement:
        answers.append(take_on_board(board, chosen.in_order, target, chosen.precision, progress))
        return summarise(answers[-1].taken, target.timing)

    found = until_trusted(once, target.timing)
    answered = answers[-1]
    return Timed(chosen, found, str(board), answered.device, answered.machine, answered.conditions)


def _known(name: str) -> Precision | None:
    return next((one for one in get_args(Precision) if one == name), None)


def _precision(name: str) -> Precision:
    known = _known(name)
    if known is None:
        raise RecipeError(f"precision: expected one of {', '.join(get_args(Precision))}, got {name}.")
    return known


def _model_file(path: Path) -> Path | None:
    """Return the file that `path` is or, as the only model in it, has; None for a build directory."""
    if not path.is_dir():
        return path
    models = [file for file in path.iterdir() if file.suffix in MODEL_SUFFIXES]
    return models[0] if len(models) == 1 and not (path / FILE_NAME).exists() else None


def _artefacts_of_build(
    folder: Path, target: str, precision: Precision | None
) -> tuple[Path, Path, Precision]:
    """Return the slim and the dense artefact of a build for a target, and their precision."""
    results = load_report(folder).results
    mine = [result for result in results if result.target == target]
    wanted = [result for result in mine if result.precision == precision] if precision else mine
    if not wanted:
        there = ", ".join(map(label, results)) or "nothing"
        asked = f"{target} {precision}" if precision else target
        raise RecipeError(f"{folder}: this build has no artefact for {asked}; it has {there}.")
    best = next((result for result in wanted if result.chosen), wanted[0])
    return folder / best.slim.artefact, folder / best.dense.artefact, _precision(best.precision)
