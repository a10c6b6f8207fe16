"""Timing artefacts that are already there, alone or against another, outside a build."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevit.backends import get_backend
from edgevit.errors import RecipeError
from edgevit.measure.protocol import Measurement, measure_pair
from edgevit.progress import Progress
from edgevit.report.model import load_report
from edgevit.target import Precision, Target


@dataclass(frozen=True)
class Timed:
    """What timing found, and what the runtime says it ran on."""

    artefact: Path
    against: Path | None
    """The reference of the speed-up, where there is one."""
    found: Measurement
    device: dict[str, str]


def time_artefact(
    artefact: Path, against: Path | None, target: Target, precision: Precision, progress: Progress
) -> Timed:
    """Time `artefact` on this machine, interleaved with `against`, which is the reference of the speed-up.

    Every run gets the same random numbers: a ViT takes as long for them as for an image.

    Raises:
        RecipeError: there is no such file.
        BackendUnavailableError: the runtime or device is not here.
        BackendError: a file cannot be loaded, or the two take inputs of different shapes.
    """
    for path in (artefact, against):
        if path is not None and not path.exists():
            raise RecipeError(
                f"{path}: expected a built artefact, found no such file. Give the file that a build made."
            )
    backend = get_backend(target.runtime)
    backend.check()
    with ExitStack() as stack:
        session = stack.enter_context(backend.load(artefact, target, precision))
        other = stack.enter_context(backend.load(against, target, precision)) if against is not None else None
        shape = [size or target.batch for size in session.input_shape]
        sample = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        found = measure_pair(
            session if other is None else other,
            None if other is None else session,
            sample,
            target.timing,
            progress=lambda share: progress(f"timing {artefact.name}", round(1000 * share), 1000),
        )
        return Timed(artefact, against, found, session.device())


def artefacts_of_build(folder: Path, target: str, precisions: Sequence[str]) -> tuple[Path, Path, str]:
    """Return the slim and the dense artefact of a build for a target, and their precision.

    Args:
        folder: the build directory.
        target: name of the target.
        precisions: those that will do, the first found is taken; empty: the chosen one, else the first.

    Raises:
        OutputError: the folder holds no finished build.
        RecipeError: the build has nothing for this target and precision.
    """
    results = load_report(folder).results
    mine = [result for result in results if result.target == target]
    wanted = [result for result in mine if result.precision in precisions] if precisions else mine
    if not wanted:
        there = ", ".join(f"{result.target} {result.precision}" for result in results) or "nothing"
        asked = " ".join([target, *precisions])
        raise RecipeError(f"{folder}: this build has no artefact for {asked}; it has {there}.")
    best = next((result for result in wanted if result.chosen), wanted[0])
    return folder / best.slim.artefact, folder / best.dense.artefact, best.precision
