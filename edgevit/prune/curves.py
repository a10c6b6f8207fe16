"""What each cut of each block costs in KL(dense || changed): a few measured points and a rule between them.

KL is in nats, a mean over images. A cut is measured alone, everything else dense.
"""

from __future__ import annotations

import bisect
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from edgevit.plan import Kind

SCHEMA = 1
_LEAST_KL = 1e-9  # what rounding leaves of a cut that changes nothing; logarithms need more than 0


@dataclass(frozen=True)
class Curve:
    """KL of one kind of cut in one block, over what is kept.

    Between measured points KL follows a power of the cut's size, which is a straight line in logarithms. The
    size is the closed form's own squared error where `errors` has it, else the number that goes. Below the
    smallest cut that was measured KL is proportional to that error, as it is for small disturbances.
    """

    kind: Kind
    most: int
    """What the dense block has."""
    counts: tuple[int, ...]
    """What was kept where it was measured, falling."""
    kl: tuple[float, ...]
    """Measured there, nats."""
    errors: tuple[float, ...] = ()
    """Squared error of the closed form by the count that is kept, from 0 to `most`; empty: not known."""

    def at(self, kept: float) -> float:
        """Return the KL where `kept` are kept; 0 where all are."""
        if kept >= self.most:
            return 0.0
        sizes = [self._size(count) for count in self.counts]
        logs = [math.log(value) for value in _rising([max(value, _LEAST_KL) for value in self.kl])]
        here = self._size(kept)
        start = max(0, min(bisect.bisect_left(sizes, here), len(sizes) - 1) - 1)
        power = self._power(logs, start)
        if here <= sizes[0]:
            power = 1.0 if self.errors else max(1.0, power)
        return math.exp(logs[start] + power * math.log(here / sizes[start]))

    def _power(self, logs: list[float], start: int) -> float:
        """Return the slope between the measured points `start` and the next, in logarithms."""
        if len(logs) < 2:
            return 1.0
        low, high = self._size(self.counts[start]), self._size(self.counts[start + 1])
        return (logs[start + 1] - logs[start]) / math.log(high / low)

    def _size(self, kept: float) -> float:
        """Return how large a cut is: positive, rising as less is kept."""
        if not self.errors:
            return self.most - kept
        below = min(math.floor(kept), self.most - 1)
        share = kept - below
        error = (1 - share) * self.errors[below] + share * self.errors[below + 1]
        # Directions that carry nothing have no error; a billionth of the whole error keeps the sizes apart.
        return error + (self.most - kept) * max(self.errors[0], _LEAST_KL) * 1e-9


def _rising(values: list[float]) -> list[float]:
    """Return the largest value so far at each place: noise must not make a larger cut the cheaper one."""
    return [max(values[: place + 1]) for place in range(len(values))]


@dataclass(frozen=True)
class Sensitivity:
    """What was measured of a model: for each block, a curve for each kind that can be cut there."""

    blocks: tuple[tuple[Curve, ...], ...]
    images: int
    """Those that cuts were recovered by and those that KL was taken on, together."""

    def curve(self, block: int, kind: Kind) -> Curve | None:
        """Return the curve of a kind of cut in a block; None where that cannot be cut."""
        return next((curve for curve in self.blocks[block] if curve.kind == kind), None)


def sensitivity_text(sensitivity: Sensitivity) -> str:
    """Write it as JSON text."""
    return json.dumps({"schema": SCHEMA, **asdict(sensitivity)}) + "\n"


def sensitivity_of(text: str) -> Sensitivity:
    """Read what `sensitivity_text` wrote.

    Raises:
        ValueError: text of another schema.
    """
    data = json.loads(text)
    if data.get("schema") != SCHEMA:
        raise ValueError(f"expected sensitivities of schema {SCHEMA}, got {data.get('schema')!r}")
    return Sensitivity(tuple(curves_of(block) for block in data["blocks"]), int(data["images"]))


def curves_of(block: list[dict[str, Any]]) -> tuple[Curve, ...]:
    """Read the curves of one block from JSON data."""
    return tuple(
        Curve(data["kind"], data["most"], tuple(data["counts"]), tuple(data["kl"]), tuple(data["errors"]))
        for data in block
    )
