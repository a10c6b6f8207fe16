"""Accuracy control: which layers of an int8 graph go back to float, until what it costs holds the limits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from edgevit.measure.accuracy import Logits, agreement, expected_drop, mean_kl
from edgevit.pipeline.int8_sensitivity import LayerSensitivity
from edgevit.recipe import Int8Section


@dataclass(frozen=True)
class Loss:
    """What int8 costs against the same model in fp32, on calibration images and without labels."""

    expected_drop: float
    """Points of top-1, as fp32's own probabilities expect it."""
    agreement: float
    """Share of images with fp32's top-1."""
    kl: float
    """Mean KL(fp32 || int8), nats."""


@dataclass(frozen=True)
class FloatLayers:
    """What goes back to float, and what that changes."""

    in_float: tuple[str, ...]
    """Names of layers, in the order in which they went back."""
    before: Loss
    """With every layer in int8."""
    after: Loss


def loss_between(fp32: Logits, int8: Logits) -> Loss:
    """Return what the answers of int8 cost, both [n, classes]."""
    return Loss(expected_drop(fp32, int8), agreement(fp32, int8), mean_kl(fp32, int8))


def holds(loss: Loss, limits: Int8Section) -> bool:
    """Say whether a loss keeps the limits; one that is None limits nothing."""
    drop = limits.max_drop is None or loss.expected_drop <= limits.max_drop
    return drop and (limits.min_agreement is None or loss.agreement >= limits.min_agreement)


def order_of_return(sensitivities: Sequence[LayerSensitivity]) -> list[LayerSensitivity]:
    """Order layers by what each costs in int8 for the time that it saves there: the worst bargain first.

    The time is taken to be in proportion to the layer's MACs, a first estimate that is the same for every
    runtime, as the graph is. Ties keep the order of the graph.
    """
    return sorted(sensitivities, key=lambda one: -one.kl / max(1, one.layer.macs))


def choose_float_layers(
    sensitivities: Sequence[LayerSensitivity],
    loss_of: Callable[[tuple[str, ...]], Loss],
    limits: Int8Section,
) -> FloatLayers:
    """Find the fewest layers, in their order of return, without which int8 holds the limits.

    The number is bisected, as errors of layers add up: with L layers the loss is measured log2(L) + 2 times
    at most. One layer stays in int8 even where the limits then do not hold, which the gates will say.

    Args:
        sensitivities: of all layers of the graph.
        loss_of: measures the loss with these layers in float and all others in int8.
        limits: what the loss has to keep.
    """
    order = tuple(one.layer.name for one in order_of_return(sensitivities))
    loss_after = cache(lambda count: loss_of(order[:count]))
    before: Loss = loss_after(0)
    if holds(before, limits):
        return FloatLayers((), before, before)
    counts = range(1, max(1, len(order) - 1))
    count = 1 + bisect_left(counts, True, key=lambda count: holds(loss_after(count), limits))
    count = min(count, len(order) - 1)
    return FloatLayers(order[:count], before, loss_after(count))
