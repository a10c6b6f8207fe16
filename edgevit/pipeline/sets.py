"""The images of a build."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.errors import ImagesError
from edgevit.images import Images, check_labels, open_images
from edgevit.methods import need_images
from edgevit.pipeline.inputs import Inputs
from edgevit.pipeline.keys import images_key
from edgevit.pipeline.models import Saved
from edgevit.pipeline.stages import Stages
from edgevit.preprocess import Preprocess

_BATCH = 32


@dataclass(frozen=True)
class Sets:
    """The images of a build; None where the recipe names none or nothing reads them."""

    calibration: Images | None
    evaluation: Images | None
    tuning: Images | None


def open_sets(stages: Stages, inputs: Inputs, dense: Saved) -> Sets:
    """Draw the images that a build needs and check the labels against the head.

    Raises:
        ImagesError: images that cannot be used, labels that do not fit the head, or none for a gate.
    """
    recipe, default = inputs.recipe.recipe, dense.loaded.preprocess
    calibration = evaluation = tuning = None
    calibrates = recipe.recover == "closed-form" or need_images(recipe.methods)
    if recipe.calibration is not None and calibrates:
        calibration = _open_unlabelled(stages, inputs, default, recipe.calibration.images)
    if recipe.calibration is not None and recipe.tune is not None:
        count = recipe.tune.images or recipe.calibration.images
        same = calibration is not None and count == recipe.calibration.images
        tuning = calibration if same else _open_unlabelled(stages, inputs, default, count)
    if inputs.evaluation is not None and recipe.evaluation is not None:
        evaluation = open_images(
            inputs.evaluation, default, recipe.evaluation.images, recipe.evaluation.seed, stages.progress
        )
        _check_labels(inputs, evaluation, dense.loaded.model.arch.classes)
    for name, images in (("calibration", calibration), ("tuning", tuning), ("evaluation", evaluation)):
        again = name == "tuning" and images is calibration
        if images is not None and not again:
            _decode_all(stages, name, images)
    return Sets(calibration, evaluation, tuning)


def _open_unlabelled(stages: Stages, inputs: Inputs, default: Preprocess, count: int) -> Images:
    """Draw from the calibration set, whose labels nothing reads: wrong ones do no harm."""
    assert inputs.calibration is not None
    assert inputs.recipe.recipe.calibration is not None
    unlabelled = inputs.calibration.set.model_copy(update={"label": ""})
    source = replace(inputs.calibration, set=unlabelled)
    return open_images(source, default, count, inputs.recipe.recipe.calibration.seed, stages.progress)


def _decode_all(stages: Stages, name: str, images: Images) -> None:
    """Decode every image before long work starts: a broken one at the end would cost minutes.

    The pixels stay in memory where there is room, so the stages that follow need not decode again.
    """

    def make(folder: Path) -> None:
        done = 0
        for batch in images.batches(_BATCH):
            done += len(batch)
            stages.progress(f"decoding {name} images", done, len(images))
        (folder / "images.txt").write_text(f"{done}\n")

    stages.run("decode", {"images": images_key(images)}, make, of=name)


def _check_labels(inputs: Inputs, evaluation: Images, classes: int) -> None:
    assert inputs.evaluation is not None
    if evaluation.labels is not None:
        try:
            check_labels(evaluation.labels, classes)
        except ImagesError as error:
            raise ImagesError(f"{inputs.evaluation.path}: {error}") from error
    elif inputs.recipe.recipe.gates.max_drop is not None:
        raise ImagesError(
            f"{inputs.evaluation.path}: gates.max_drop needs labels, and this set has none. Name its label"
            " column, or use gates.min_agreement, which needs no labels."
        )
