"""The learning rate of each step, as a function of the step alone: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from edgevit.training import Training

_START = 1 / 25  # of the highest rate, at the first step of one-cycle
_END = 1e-4  # of the highest rate, at its last step


def learning_rate(training: Training, step: int, total: int) -> float:
    """Return the learning rate of a step.

    "cosine" rises in a line from 0 and falls to 0 in half a cosine; "one-cycle" rises and falls in half a
    cosine each, from 1/25 of the highest rate and to 1/10000 of it.

    Args:
        training: highest rate, schedule and warm-up.
        step: 0..total - 1.
        total: steps of the whole training.

    Reference: Smith and Topin 2017, arXiv:1708.07120.
    Differs: momentum stays the same.
    """
    rise = training.warmup * total
    fallen = (step - rise) / max(1.0, total - rise)
    match training.schedule:
        case "cosine":
            share = min(1.0, (step + 1) / rise) if fallen < 0 else _between(1.0, 0.0, fallen)
        case "one-cycle":
            share = _between(_START, 1.0, step / rise) if fallen < 0 else _between(1.0, _END, fallen)
    return training.lr * share


def _between(start: float, end: float, done: float) -> float:
    """Go from `start` to `end` in half a cosine; `done` rises from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
