"""A fake session with a settable latency and its clock, to test control flow; it computes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np


class FakeClock:
    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


@dataclass
class FakeSession:
    clock: FakeClock
    latency_ms: Callable[[int], float] = lambda run: 1.0  # of the run with this number
    input_shape: tuple[int | None, ...] = (1, 4)
    logits: Callable[[np.ndarray], np.ndarray] = lambda batch: batch
    output_names: tuple[str, ...] = ("logits",)
    runs: int = 0

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.runs += 1
        self.clock.now_ns += int(self.latency_ms(self.runs) * 1e6)
        return self.logits(batch)

    def device_ms(self, runs: int) -> list[float]:
        return []

    def device(self) -> dict[str, str]:
        return {"device": "fake"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...
