"""What a recipe may say of a budget: how much the slim model may cost, as a share or a number (data)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from edgevit.schema import Problem, Strict

Unit = Literal["macs", "params"]

_UNITS: tuple[Unit, ...] = ("macs", "params")
_AMOUNT = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<prefix>[kMG]?)")
_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_NO_TABLE = "not in this version, which counts and does not time blocks. Give macs or params."


def _amount(text: str) -> str:
    match = _AMOUNT.fullmatch(text)
    if match is None or float(match["number"]) <= 0:
        raise ValueError('an absolute number as text, such as "0.68G" or "3.2M"')
    return text


Share = Annotated[float, Field(gt=0, lt=1)]
Amount = Annotated[str, AfterValidator(_amount)]


class BudgetSection(Strict):
    """What the slim model may cost; edgevit decides what is cut for it. Exactly one key."""

    unknown_key_notes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("speedup", "latency_ms", "target"), _NO_TABLE
    )

    macs: Share | Amount | None = None
    """MACs of an image: a share of the dense model's, 0..1, or a number as text, such as "0.68G"."""
    params: Share | Amount | None = None
    """Params: a share of the dense model's, 0..1, or a number as text, such as "3.2M"."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse no budget, and two at once."""
        given = [unit for unit in _UNITS if unit in table]
        if not given:
            return [
                Problem("macs", 'missing; a budget is one of macs or params. Give macs = 0.6 or "0.68G".')
            ]
        return [Problem(unit, f"given beside {given[0]}. Keep one of the two.") for unit in given[1:]]

    @property
    def unit(self) -> Unit:
        """Return what is limited."""
        return "params" if self.macs is None else "macs"

    @property
    def asked(self) -> float | str:
        """Return the limit as it was written."""
        value = self.params if self.macs is None else self.macs
        assert value is not None
        return value

    def limit(self, dense: int) -> float:
        """Return the limit in MACs or params, of a dense model that has `dense` of them."""
        if not isinstance(self.asked, str):
            return self.asked * dense
        match = _AMOUNT.fullmatch(self.asked)
        assert match is not None
        return float(match["number"]) * _PREFIXES[match["prefix"]]
