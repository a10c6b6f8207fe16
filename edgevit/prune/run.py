"""From a recipe's methods to one plan: each decides in turn, on the plan of those before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from edgevit.errors import PlanError
from edgevit.images import Images
from edgevit.methods import (
    CoupledDims,
    EffiSelect,
    IntraHead,
    Method,
    PatchSimilarity,
    TokenChannels,
    need_images,
)
from edgevit.models.group_scores import Scores
from edgevit.models.layers import SlimViT
from edgevit.plan import Plan
from edgevit.progress import Progress
from edgevit.prune.coupled_dims import coupled_dims
from edgevit.prune.effiselect import effiselect
from edgevit.prune.intra_head import intra_head
from edgevit.prune.patch_similarity import patch_similarity
from edgevit.prune.token_channels import token_channels
from edgevit.slim.stream import tensor_batches

_NOTHING: Mapping[int, Scores] = {}


def run_methods(
    model: SlimViT,
    plan: Plan,
    methods: Sequence[Method],
    images: Images | None,
    progress: Progress,
    scores: Mapping[int, Scores] = _NOTHING,
) -> Plan:
    """Run methods in the order given.

    Args:
        model: the dense model; stays as it is.
        plan: what remains by hand.
        methods: the options of each method.
        images: calibration images, unlabelled, for the methods that look at them.
        progress: called while images are looked at.
        scores: what those methods have learnt that do, by their place.

    Returns:
        The plan with what the methods decided: counts and, where something was cut, indices.

    Raises:
        PlanError: options that this model cannot take, or a method without the images or scores that it
            needs; keys begin with "prune", and with the method's place where there are several.
    """
    model = model.eval().requires_grad_(False)
    for index, options in enumerate(methods):
        where = "prune" if len(methods) == 1 else f"prune[{index}]"
        try:
            plan = _run(model, plan, options, _Evidence(images, scores.get(index)), progress)
        except PlanError as error:
            raise PlanError("\n".join(f"{where}.{line}" for line in str(error).splitlines())) from error
    return plan


class _Evidence(NamedTuple):
    """What one method decides by."""

    images: Images | None
    scores: Scores | None


def _run(model: SlimViT, plan: Plan, options: Method, evidence: _Evidence, progress: Progress) -> Plan:
    images = evidence.images
    if images is None and need_images([options]):
        raise PlanError(f'method: "{options.method}" needs [calibration] images, unlabelled. Add them.')

    def report(seen: int) -> None:
        scored = "neurons" if isinstance(options, TokenChannels) else "patches"
        progress(f"scoring {scored}", seen, 0 if images is None else len(images))

    match options:
        case CoupledDims():
            return coupled_dims(model, plan, options)
        case TokenChannels():
            return token_channels(model, plan, options, _batches(images, model.device), report)
        case PatchSimilarity():
            return patch_similarity(model, plan, options, lambda: _batches(images, model.device), report)
        case EffiSelect():
            return effiselect(model.arch, plan, options, _scores(evidence, options))
        case IntraHead():
            return intra_head(model, plan, options, _scores(evidence, options))
        case _:
            assert_never(options)


def _scores(evidence: _Evidence, options: Method) -> Scores:
    if evidence.scores is None:
        raise PlanError(f'method: "{options.method}" decides by what a search has learnt, and none has run.')
    return evidence.scores


def _batches(images: Images | None, device: torch.device) -> Iterator[Tensor]:
    """Yield the images of a method that may do without, float32 [B, C, H, W]; none where there are none."""
    return iter(()) if images is None else tensor_batches(images, device)
