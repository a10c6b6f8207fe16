"""What a recipe may say of a budget: how much the slim model may cost, as a share or a number (data)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from edgevit.schema import Problem, Strict

Unit = Literal["macs", "params", "ms"]
"""In which a budget is counted; both a speed-up and a latency are kept in milliseconds."""

Key = Literal["macs", "params", "speedup", "latency_ms"]
"""What a budget can be of."""

KEYS: tuple[Key, ...] = get_args(Key)
_OF_TIME = ("speedup", "latency_ms")
_BESIDE_TIME = ("target", "precision")
_AMOUNT = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<prefix>[kMG]?)")
_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


def _amount(text: str) -> str:
    match = _AMOUNT.fullmatch(text)
    if match is None or float(match["number"]) <= 0:
        raise ValueError('an absolute number as text, such as "0.68G" or "3.2M"')
    return text


Share = Annotated[float, Field(gt=0, lt=1)]
Amount = Annotated[str, AfterValidator(_amount)]


class BudgetSection(Strict):
    """What the slim model may cost; edgevit decides what is cut for it. One of the first four keys."""

    macs: Share | Amount | None = None
    """MACs of an image: a share of the dense model's, 0..1, or a number as text, such as "0.68G"."""
    params: Share | Amount | None = None
    """Params: a share of the dense model's, 0..1, or a number as text, such as "3.2M"."""
    speedup: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    """How many times as fast as the dense model in the same precision on `target`, > 1."""
    latency_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Median latency on `target` in milliseconds, > 0."""
    target: str | None = Field(default=None, min_length=1)
    """With speedup or latency_ms: which of the recipe's targets is meant; default: its first."""
    precision: str | None = Field(default=None, min_length=1)
    """With speedup or latency_ms: the precision that is planned for; default: the target's first."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse no budget, two at once, and a target where nothing is timed."""
        given = [key for key in KEYS if key in table]
        if not given:
            text = f'missing; a budget is one of {", ".join(KEYS)}. Give macs = 0.6 or "0.68G".'
            return [Problem("macs", text)]
        problems = [Problem(key, f"given beside {given[0]}. Keep one of the two.") for key in given[1:]]
        if not set(given) & set(_OF_TIME):
            text = (
                f"given beside {given[0]}, which is the same on every target. Take it out, or give speedup."
            )
            problems += [Problem(key, text) for key in _BESIDE_TIME if key in table]
        return problems

    @property
    def key(self) -> Key:
        """Return which of the keys the recipe gives."""
        return next(key for key in KEYS if getattr(self, key) is not None)

    @property
    def unit(self) -> Unit:
        """Return what is limited."""
        if self.key in _OF_TIME:
            return "ms"
        return "macs" if self.key == "macs" else "params"

    @property
    def asked(self) -> float | str:
        """Return the limit as it was written."""
        value: float | str = getattr(self, self.key)
        return value

    def limit(self, dense: float) -> float:
        """Return the limit in MACs, params or milliseconds, of a dense model that has `dense` of them."""
        if self.speedup is not None:
            return dense / self.speedup
        if self.latency_ms is not None:
            return self.latency_ms
        if not isinstance(self.asked, str):
            return self.asked * dense
        match = _AMOUNT.fullmatch(self.asked)
        assert match is not None
        return float(match["number"]) * _PREFIXES[match["prefix"]]


def amount_text(amount: float, unit: Unit) -> str:
    """Write what something costs, as a recipe would: "0.68G MACs", "3.2M params", "4 ms"."""
    if unit == "ms":
        return f"{amount:.3g} ms"
    fitting = [prefix for prefix, size in _PREFIXES.items() if amount >= size] or [""]
    what = "MACs" if unit == "macs" else "params"
    return f"{amount / _PREFIXES[fitting[-1]]:.3g}{fitting[-1]} {what}"
