"""From a model and a plan to a smaller model: by selection, or in closed form with calibration images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from edgevit.errors import ImagesError, PlanError
from edgevit.images import Images
from edgevit.models.anatomy import read_anatomy
from edgevit.models.layers import SlimViT
from edgevit.plan import Plan, keep_all
from edgevit.progress import Progress
from edgevit.slim.recover import slim_closed_form
from edgevit.slim.select import slim_by_selection
from edgevit.slim.site import ClosedForm
from edgevit.slim.stream import BATCH

_ROWS_PER_DIM = 2  # rows (images times tokens) that a covariance needs for each of its dims


@dataclass(frozen=True)
class SlimOptions:
    """How what a cut loses is recovered."""

    recover: Literal["none", "closed-form"]
    closed_form: ClosedForm = field(default_factory=ClosedForm)


def slim_model(
    dense: SlimViT, plan: Plan, options: SlimOptions, images: Images | None, progress: Progress
) -> SlimViT:
    """Return the smaller model that `plan` describes; `dense` stays as it is.

    Args:
        dense: the model to slim.
        plan: what remains of it.
        options: how what is lost is recovered.
        images: calibration images, unlabelled; needed by "closed-form".
        progress: called while weighing tokens and slimming.

    Raises:
        PlanError: "closed-form" without images.
        ImagesError: fewer images than the ranks of the plan need.
    """
    dense = dense.eval().requires_grad_(False)
    if options.recover == "none" or _cuts_no_weights(dense, plan):
        with torch.no_grad():
            return slim_by_selection(dense, plan)
    if images is None:
        raise PlanError(
            'slim.recover = "closed-form" needs [calibration] images. Add them, or set it to "none".'
        )
    _check_enough(dense, images)

    def batches() -> Iterator[Tensor]:
        for batch in images.batches(BATCH):
            yield torch.from_numpy(batch)

    return slim_closed_form(dense, plan, batches, options.closed_form, progress)


def _cuts_no_weights(dense: SlimViT, plan: Plan) -> bool:
    return plan.blocks == keep_all(read_anatomy(dense.arch)).blocks


def _check_enough(dense: SlimViT, images: Images) -> None:
    """Refuse a calibration set whose covariances would not have full rank."""
    widest = max(max(block.hidden, block.heads * block.vo_dim) for block in dense.arch.blocks)
    least = math.ceil(_ROWS_PER_DIM * widest / dense.arch.tokens)
    if len(images) < least:
        raise ImagesError(
            f"calibration.images: the closed form needs at least {least} images for this model ({widest} "
            f"dims in its widest layer, {dense.arch.tokens} tokens an image), got {len(images)}. "
            "Give it that many or more: accuracy grows with them, and so does the time."
        )
