"""Compare two links of the chain of custody on the same images, and name the first block where they part.

Two runtimes never round alike, so outputs are compared within a tolerance. In a model that merges or drops
tokens, or whose images choose neurons, a rounding can also turn a choice: two that are nearly equal swap
places, and one image's output jumps by far more than rounding. That is no fault of either link, so such
models, and no others, may exceed the tolerance on a stated share of the images; and where both links can show
their blocks, each of these images must begin to differ in a block that chooses, else it is a fault after all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevit.engine import most_beyond
from edgevit.errors import ParityError
from edgevit.models.arch import Arch

Batch = NDArray[np.float32]
"""Images [B, C, H, W], or what a link makes of them."""
Runner = Callable[[Batch], Batch]
"""Maps images [B, C, H, W] to logits [B, classes], or to what leaves a block, [B, N, D]."""

TORCH_TO_ONNX = 1e-4
ONNX_TO_ARTEFACT = 1e-3
"""Largest difference of a logit across a link in fp32, as `Limits.relative` has it."""
CHOSEN_OUTLIERS = 0.01
"""Share of images in which one choosing block may turn a choice, 0..1."""
LEAST_OUTLIERS = 0.02
"""That share for a model as a whole, 0..1, where few blocks choose."""


@dataclass(frozen=True)
class Link:
    """One form of the model that can be run: torch, an ONNX file, an artefact."""

    name: str
    run: Runner
    at: Callable[[str], Runner] | None = None
    """Gives the runner of what leaves a block (`blocks.3`), where the link can show it."""


@dataclass(frozen=True)
class Limits:
    """How far two links may be apart."""

    relative: float
    """Largest difference of any logit, as a share of the largest logit where that is above 1."""
    outliers: float = 0.0
    """Share of images that may exceed it, 0..1; above 0 only for models that choose tokens or neurons."""
    explained: bool = True
    """Whether each of them must begin to differ in a block that chooses. That cannot be told where rounding
    itself is as coarse as a changed choice."""
    agreement: float | None = None
    """Share of images with the same top-1 that is asked for in place of a largest difference, 0..1. For int8,
    where a sum that differs in its last bit moves an activation by a whole step."""


@dataclass(frozen=True)
class Parity:
    """How far two links were apart; differences are of logits."""

    images: int
    tolerance: float
    """The largest difference that was allowed."""
    max_abs: float
    mean_abs: float
    top1_agreement: float
    outliers: int
    """Images with a logit beyond the tolerance; always 0 for models that choose nothing, once checked."""


@dataclass(frozen=True)
class Outlier:
    """An image whose logits are beyond the tolerance: a row of the batch that it was run in."""

    batch: Batch
    row: int


@dataclass(frozen=True)
class _Pair:
    """What both links made of one batch: logits [B, classes]."""

    batch: Batch
    expected: Batch
    got: Batch


def limits_for(arch: Arch, relative: float) -> Limits:
    """Return the limits for a model: a share of images may exceed them only where something is chosen.

    The share grows with the blocks that choose: each has nearly equal pairs of its own.
    """
    choosing = len(choosing_blocks(arch))
    return Limits(relative, max(LEAST_OUTLIERS, CHOSEN_OUTLIERS * choosing) if choosing else 0.0)


def choosing_blocks(arch: Arch) -> tuple[str, ...]:
    """Return the names of the blocks where images choose tokens (before the first: its own) or neurons."""
    return tuple(
        f"blocks.{index}"
        for index, block in enumerate(arch.blocks)
        if block.merged or block.per_image or (index == 0 and arch.merged)
    )


def parity(reference: Runner, candidate: Runner, batches: Iterable[Batch], tolerance: float) -> Parity:
    """Run both on every batch and compare their logits; `tolerance` is absolute.

    Raises:
        ParityError: outputs of other shapes, or no image at all.
    """
    return _compare(_run_both(reference, candidate, batches), tolerance)[0]


def check_parity(
    reference: Link, candidate: Link, batches: Iterable[Batch], limits: Limits, arch: Arch
) -> Parity:
    """Compare two links and refuse a difference beyond the limits.

    Raises:
        ParityError: names both links, the first diverging block where both can show their blocks, expected
        and got.
    """
    pairs = _run_both(reference.run, candidate.run, batches)
    # Rounding grows with the numbers: logits above 1 may differ by as much more.
    largest = max(float(np.abs(pair.expected).max()) for pair in pairs)
    found, outliers = _compare(pairs, limits.relative * max(1.0, largest))
    if limits.agreement is not None:
        if found.top1_agreement < limits.agreement or not math.isfinite(found.max_abs):
            raise ParityError(_agreement_message((reference, candidate), found, limits.agreement))
        return found
    if found.outliers > most_beyond(limits.outliers, found.images):
        block = first_diverging(reference, candidate, outliers[0], limits, arch)
        raise ParityError(_message((reference, candidate), found, limits, block))
    for outlier in outliers if limits.explained else []:
        block = first_diverging(reference, candidate, outlier, limits, arch)
        if block is not None and block not in choosing_blocks(arch):
            raise ParityError(_message((reference, candidate), found, limits, block))
    return found


def first_diverging(
    reference: Link, candidate: Link, outlier: Outlier, limits: Limits, arch: Arch
) -> str | None:
    """Return the first block whose output differs on an image, `head` when all agree.

    Differences count relative to the block's largest output where that is above 1, as outputs grow with
    depth.

    Returns:
        The block's name; None when a link cannot show its blocks.
    """
    if reference.at is None or candidate.at is None:
        return None
    for index in range(len(arch.blocks)):
        name = f"blocks.{index}"
        expected, got = (link(name)(outlier.batch)[outlier.row] for link in (reference.at, candidate.at))
        allowed = limits.relative * max(1.0, float(np.abs(expected).max()))
        # Written so that a NaN, which compares false with everything, differs.
        if expected.shape != got.shape or not float(np.abs(expected - got).max()) <= allowed:
            return name
    return "head"


def _run_both(reference: Runner, candidate: Runner, batches: Iterable[Batch]) -> list[_Pair]:
    pairs = [_Pair(batch, reference(batch), candidate(batch)) for batch in batches]
    if not sum(len(pair.batch) for pair in pairs):
        raise ParityError("parity: expected one image or more to compare on, got none.")
    for pair in pairs:
        if pair.expected.shape != pair.got.shape:
            raise ParityError(
                f"outputs: expected the shape {list(pair.expected.shape)}, got {list(pair.got.shape)}."
                " Export again."
            )
    return pairs


def _compare(pairs: list[_Pair], tolerance: float) -> tuple[Parity, list[Outlier]]:
    expected, got = (np.concatenate([getattr(pair, side) for pair in pairs]) for side in ("expected", "got"))
    # A NaN compares false with everything: it is beyond any tolerance, whichever side it is on.
    difference = np.nan_to_num(np.abs(expected.astype(np.float64) - got), nan=np.inf)
    beyond = difference.max(axis=1) > tolerance
    rows = [Outlier(pair.batch, row) for pair in pairs for row in range(len(pair.batch))]
    outliers = [row for row, out in zip(rows, beyond, strict=True) if out]
    found = Parity(
        images=len(rows),
        tolerance=tolerance,
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        top1_agreement=float((expected.argmax(axis=1) == got.argmax(axis=1)).mean()),
        outliers=len(outliers),
    )
    return found, outliers


def _agreement_message(links: tuple[Link, Link], found: Parity, limit: float) -> str:
    reference, candidate = links
    return (
        f"{candidate.name} against {reference.name}: expected the same top-1 on {limit:.0%} of {found.images}"
        f" images, got {found.top1_agreement:.1%}; logits differ by up to {found.max_abs:.3g} (mean"
        f" {found.mean_abs:.3g}). It would not have the graph's accuracy: take this precision out, and"
        " report it with the recipe."
    )


def _message(links: tuple[Link, Link], found: Parity, limits: Limits, block: str | None) -> str:
    reference, candidate = links
    where = f"{block} is the first that differs" if block else "the outputs differ"
    share = (
        f" on all but {limits.outliers:.0%} of the images"
        + (", all of them by a choice of tokens or neurons" if limits.explained else "")
        if limits.outliers
        else ""
    )
    return (
        f"{candidate.name} against {reference.name}: {where}. Expected logits within {found.tolerance:.3g}"
        f"{share}; got up to {found.max_abs:.3g} (mean {found.mean_abs:.3g}), {found.outliers} of "
        f"{found.images} images beyond, top-1 agreement {found.top1_agreement:.4f}. It would not have the "
        "model's accuracy: try another opset or export.simplify = false, and report it with the recipe."
    )
