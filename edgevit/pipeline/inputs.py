"""Everything that a build reads, found and checked before any long work starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from edgevit.backends import Backend, get_backend
from edgevit.disk import files_below, sha256_file
from edgevit.errors import BackendUnavailableError, RecipeError, WeightsError
from edgevit.export.precision import require_nncf
from edgevit.images import LoadedSet, load_image_set
from edgevit.models.load import ARCH_FILE, WEIGHTS_FILE, ModelSource
from edgevit.recipe import Gates, LoadedRecipe, TargetSection
from edgevit.shipped import find_shipped
from edgevit.target import TENSORRT_RUNTIMES, Precision, Target, load_target

QUANTISED: tuple[Precision, ...] = ("int8", "int8-bf16")
CALIBRATED: tuple[Precision, ...] = ("fp16", *QUANTISED)
"""Precisions whose graph takes the ranges of activations from images."""


@dataclass(frozen=True)
class Wanted:
    """One target of a build, and what is built for it."""

    target: Target
    path: Path
    precisions: tuple[Precision, ...]
    section: TargetSection


@dataclass(frozen=True)
class Inputs:
    """What a recipe names, as it is on this disk."""

    recipe: LoadedRecipe
    source: ModelSource
    source_sha256: str | None
    """Hash of the weights file, or of the saved model; None where timm makes or fetches the weights."""
    wanted: tuple[Wanted, ...]
    calibration: LoadedSet | None
    evaluation: LoadedSet | None

    @property
    def gates(self) -> Gates:
        """The limits that the recipe sets."""
        return self.recipe.recipe.gates

    def files(self) -> list[Path]:
        """List every file that the build depends on."""
        paths = [self.recipe.path, *(wanted.path for wanted in self.wanted)]
        if self.source.weights is not None:
            paths.append(self.source.weights)
        if self.source.directory is not None:
            paths += [self.source.directory / name for name in (ARCH_FILE, WEIGHTS_FILE)]
        for images in (self.calibration, self.evaluation):
            if images is not None:
                paths += [images.path, *_set_files(images)]
        return [path.absolute() for path in paths]


def read_inputs(recipe: LoadedRecipe, targets: Sequence[str]) -> Inputs:
    """Find what a recipe names.

    Args:
        recipe: the recipe.
        targets: names or paths (relative to the working directory) in place of the recipe's targets.

    Raises:
        RecipeError: a target or image set that does not exist or has problems.
        WeightsError: the weights file does not exist.
        BackendUnavailableError: a target's runtime is not installed.
        ExportError: int8 is wanted, and NNCF is not installed.
    """
    wanted = tuple(_wanted(recipe, targets))
    doubled = [name for name, count in Counter(item.target.name for item in wanted).items() if count > 1]
    if doubled:
        raise RecipeError(
            f"{recipe.path}: two targets are named {doubled[0]!r}. Give one of them another `name`."
        )
    for item in wanted:
        backend = get_backend(item.target.runtime)
        if item.target.device != "board":  # a board's kit needs none of its runtime here
            _check_runtime(recipe, backend)
        _check_precisions(recipe.path, item, backend.precisions)
    source = _source(recipe)
    sets = recipe.recipe
    return Inputs(
        recipe=recipe,
        source=source,
        source_sha256=_source_sha256(source),
        wanted=wanted,
        calibration=load_image_set(sets.calibration.set, recipe.folder) if sets.calibration else None,
        evaluation=load_image_set(sets.evaluation.set, recipe.folder) if sets.evaluation else None,
    )


def _check_runtime(recipe: LoadedRecipe, backend: Backend) -> None:
    """Make sure that a target's runtime is here; where a budget wants it timed, say what needs no timing."""
    try:
        backend.check()
    except BackendUnavailableError as error:
        budget = recipe.recipe.budget
        if budget is None or budget.unit != "ms":
            raise
        raise BackendUnavailableError(
            f"{error} budget.{budget.key} needs it to time blocks; a budget of macs is planned without, for a"
            " target whose runtime is here."
        ) from error


def _wanted(recipe: LoadedRecipe, targets: Sequence[str]) -> Iterator[Wanted]:
    sections = {section.name: (section, recipe.folder) for section in recipe.recipe.target}
    given = {name: (TargetSection(name=name), Path()) for name in dict.fromkeys(targets)}
    chosen = {name: sections.get(name, own) for name, own in given.items()} or sections
    for section, folder in chosen.values():
        target = load_target(section.name, folder)
        precisions = section.precisions or target.precisions
        _check_exported(recipe, target, precisions)
        yield Wanted(target, find_shipped("targets", section.name, folder), precisions, section)


def _check_exported(recipe: LoadedRecipe, target: Target, precisions: Sequence[Precision]) -> None:
    # TensorRT computes in what the graph says, and no graph says bf16: OpenVINO makes that of fp32 by itself.
    typed = target.runtime in TENSORRT_RUNTIMES
    exported = [precision for precision in get_args(Precision) if precision != "bf16" or not typed]
    other = [precision for precision in precisions if precision not in exported]
    if other:
        raise RecipeError(
            f"{recipe.path}: target {target.name}: expected precisions among {', '.join(exported)},"
            f" got {', '.join(other)}, which this version does not export. Take them out of `precisions`."
        )
    calibrated = [precision for precision in precisions if precision in CALIBRATED]
    if calibrated and recipe.recipe.calibration is None:
        raise RecipeError(
            f"{recipe.path}: calibration: missing; {', '.join(calibrated)} of target {target.name} takes the"
            " ranges of activations from images. Add [calibration], which needs no labels, or take it out of"
            " `precisions`."
        )
    if calibrated and "fp32" not in precisions and target.device != "board":
        raise RecipeError(
            f"{recipe.path}: target {target.name}: {', '.join(calibrated)} is judged against fp32 on the same"
            ' device, and `precisions` has no "fp32". Add it.'
        )
    if any(precision in QUANTISED for precision in precisions):
        require_nncf()


def _check_precisions(recipe: Path, wanted: Wanted, offered: Sequence[Precision]) -> None:
    other = [precision for precision in wanted.precisions if precision not in offered]
    if other:
        raise RecipeError(
            f"{recipe}: target {wanted.target.name}: {wanted.target.runtime} computes in"
            f" {', '.join(offered)}, got {', '.join(other)}."
            " Change `precisions`, or choose a target with another runtime."
        )


def _source(recipe: LoadedRecipe) -> ModelSource:
    """Say where the model comes from; a directory is relative to the recipe, like every path in it."""
    model = recipe.recipe.model
    saved = recipe.folder / Path(model.name).expanduser()
    if (saved / ARCH_FILE).is_file():
        given = [key for key in ("weights", "options", "pretrained") if getattr(model, key)]
        if given:
            raise RecipeError(
                f"{recipe.path}: model.{given[0]}: {saved} is a model that edgevit saved, with its own"
                " weights and dims. Take this key out."
            )
        return ModelSource(model.name, directory=saved)
    return ModelSource(model.name, recipe.weights, model.pretrained, dict(model.options))


def _source_sha256(source: ModelSource) -> str | None:
    if source.directory is not None:
        arch, weights = source.directory / ARCH_FILE, source.directory / WEIGHTS_FILE
        if not weights.is_file():
            raise WeightsError(
                f"model {source.directory}: expected {WEIGHTS_FILE} beside {ARCH_FILE}, found none. Copy the"
                " whole build, or build the model again."
            )
        return sha256_file(arch) + sha256_file(weights)
    if source.weights is None:
        return None
    if not source.weights.is_file():
        raise WeightsError(
            f"model.weights: {source.weights}: no such file."
            " Paths in a recipe are relative to the recipe file."
        )
    return sha256_file(source.weights)


def _set_files(images: LoadedSet) -> list[Path]:
    if images.set.kind == "hub":
        return []
    path = images.path.parent / Path(images.set.path).expanduser()
    return files_below(path) if path.is_dir() else [path]
