"""The images of a build."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgevit.cost import model_cost
from edgevit.errors import ImagesError
from edgevit.images import Images, check_labels, open_images, required_labels
from edgevit.methods import learning_methods, need_images
from edgevit.models.anatomy import read_anatomy
from edgevit.models.arch import Arch
from edgevit.pipeline.inputs import CALIBRATED, Inputs
from edgevit.pipeline.keys import images_key
from edgevit.pipeline.models import Saved
from edgevit.pipeline.stages import Stages
from edgevit.plan import keep_all
from edgevit.prune.sensitivity import HELD_OUT
from edgevit.slim.act import images_needed
from edgevit.tune.views import split

_BATCH = 32
_MEASURING, _MEASURING_LARGE, _LARGE = 256, 128, 10e9
"""Images on which a budget's cuts are measured, and on a model of more MACs than the last number says.

The time that takes is proportional to them: minutes for DeiT-T, the better part of an hour for DeiT-B.
"""
_SEEN_SHARE = 0.01
"""Of the evaluation images that may be among those learnt from."""


@dataclass(frozen=True)
class Sets:
    """The images of a build; None where the recipe names none or nothing reads them."""

    calibration: Images | None
    evaluation: Images | None
    tuning: Images | None
    measuring: Images | None = None
    """Of the calibration set, on which a budget's cuts are measured."""
    searching: Mapping[int, Images] = field(default_factory=dict)
    """Labelled, for the methods that learn, by their place."""


def open_sets(stages: Stages, inputs: Inputs, dense: Saved) -> Sets:
    """Draw the images that a build needs and check the labels against the head.

    Raises:
        ImagesError: images that cannot be used, labels that do not fit the head, or none for a gate.
    """
    recipe, default = inputs.recipe.recipe, dense.loaded.preprocess
    drawn = _Drawn(stages, inputs, dense)
    calibration = evaluation = tuning = measuring = None
    searching = {}
    quantises = any(precision in CALIBRATED for wanted in inputs.wanted for precision in wanted.precisions)
    if recipe.recover == "closed-form" or need_images(recipe.methods) or quantises:
        calibration = drawn.draw(None, "")
    for place, method in learning_methods(recipe.methods):
        images = drawn.draw(method.search.images, f'prune.method = "{method.method}"')
        if images is not None:
            searching[place] = images
    if recipe.tune is not None:
        tuning = drawn.draw(recipe.tune.images, "tune.labels" if recipe.tune.labels else "")
    if recipe.tune is not None and recipe.tune.validation and tuning is not None:
        split(len(tuning), recipe.tune.validation, recipe.tune.seed)  # says here if there are too few
    if inputs.evaluation is not None and recipe.evaluation is not None:
        evaluation = open_images(
            inputs.evaluation, default, recipe.evaluation.images, recipe.evaluation.seed, stages.progress
        )
        _check_labels(inputs, evaluation, dense.loaded.model.arch.classes)
    if recipe.budget is not None and recipe.calibration is not None:
        measuring = drawn.draw(measuring_images(dense.loaded.model.arch, recipe.calibration.images), "")
    sets = Sets(calibration, evaluation, tuning, measuring, searching)
    _refuse_seen(inputs, sets)
    named = {id(evaluation): ("evaluation", evaluation), id(tuning): ("tuning", tuning)}
    named |= {id(images): ("searching", images) for images in searching.values()}
    named |= {id(measuring): ("measuring", measuring)}
    named |= {id(calibration): ("calibration", calibration)}  # the first reader names shared images
    for name, images in reversed(named.values()):
        if images is not None:
            _decode_all(stages, name, images)
    return sets


def measuring_images(arch: Arch, most: int) -> int:
    """Return on how many images the cuts of a model are measured: enough for the fits, which learn from some.

    Args:
        arch: of the dense model.
        most: how many there are.
    """
    usual = _MEASURING_LARGE if model_cost(arch).total.macs > _LARGE else _MEASURING
    needed = images_needed(arch, keep_all(read_anatomy(arch))).images
    return min(most, max(usual, math.ceil(needed / (1 - HELD_OUT))))


@dataclass(frozen=True)
class _Drawn:
    """What is drawn from the calibration set; what is asked for twice is drawn once."""

    stages: Stages
    inputs: Inputs
    dense: Saved
    found: dict[tuple[int, bool], Images] = field(default_factory=dict)

    def draw(self, count: int | None, labels_for: str) -> Images | None:
        """Draw images, [calibration]'s number of them where `count` is None; None where there is no set.

        Where nothing reads labels (`labels_for` is empty), there are none: wrong ones do no harm.
        """
        recipe = self.inputs.recipe.recipe
        if recipe.calibration is None or self.inputs.calibration is None:
            return None
        count = count or recipe.calibration.images
        key = count, bool(labels_for)
        if key not in self.found:
            source = self.inputs.calibration
            if not labels_for:
                source = replace(source, labels=False)
            default = self.dense.loaded.preprocess
            images = open_images(source, default, count, recipe.calibration.seed, self.stages.progress)
            if labels_for:
                with _naming(source.path, labels_for):
                    required_labels(images, self.dense.loaded.model.arch.classes)
            self.found[key] = images
        return self.found[key]


@contextmanager
def _naming(*where: object) -> Iterator[None]:
    """Say in an error of the images where it was found."""
    try:
        yield
    except ImagesError as error:
        raise ImagesError(": ".join(map(str, (*where, error)))) from error


def seen_share(sets: Sets) -> float | None:
    """Return the share of the evaluation images that the build also looks at elsewhere; None without them."""
    if sets.evaluation is None:
        return None
    others = (sets.calibration, sets.tuning, sets.measuring, *sets.searching.values())
    return max((_share_of(sets.evaluation, images) for images in others if images is not None), default=0.0)


def _share_of(evaluation: Images, images: Images) -> float:
    return len(set(images.digests) & set(evaluation.digests)) / len(evaluation)


def _refuse_seen(inputs: Inputs, sets: Sets) -> None:
    """Refuse an evaluation on images that are calibrated on or learnt from.

    A few equal images are let pass: large public sets have some, and they change no figure that is shown.
    """
    tune = inputs.recipe.recipe.tune
    looked_at = dict.fromkeys(sets.searching.values(), "a method's search learns from")
    if sets.tuning is not None and tune is not None:
        labelled = tune.labels or tune.validation
        how = "[tune] learns from or chooses its epoch on" if labelled else "[tune] learns from"
        looked_at.setdefault(sets.tuning, how)
    if sets.calibration is not None:
        looked_at.setdefault(sets.calibration, "[calibration] draws")
    if sets.measuring is not None:
        looked_at.setdefault(sets.measuring, "[budget] measures cuts on")
    if sets.evaluation is None or inputs.evaluation is None:
        return
    for images, what in looked_at.items():
        share = _share_of(sets.evaluation, images)
        if share > _SEEN_SHARE:
            total = len(sets.evaluation)
            raise ImagesError(
                f"{inputs.evaluation.path}: {round(share * total)} of the {total} [evaluation] images are"
                f" among those that {what}: their accuracy would flatter the slim model. Evaluate on others."
            )


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
        with _naming(inputs.evaluation.path):
            check_labels(evaluation.labels, classes)
    elif inputs.recipe.recipe.gates.max_drop is not None:
        raise ImagesError(
            f"{inputs.evaluation.path}: gates.max_drop needs labels, and this set has none. Name its label"
            " column, or use gates.min_agreement, which needs no labels."
        )
