"""What a sweep found out, as the data of sweep.json: accuracy against latency of builds with several budgets.

Units and words are those of report.json (`model.py`); each point's own report.json has all that is left out
here, raw times among it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from edgevit.budget import Key
from edgevit.report.model import (
    Drop,
    Facts,
    Fraction,
    Interval,
    Milliseconds,
    ModelSize,
    Part,
    SetFacts,
    SourceFacts,
    Speedup,
)


class SweepLatency(Part):
    """Times of one artefact in milliseconds."""

    median: Milliseconds
    interval: Interval
    """Of the median, at 95 %."""
    p90: Milliseconds
    p99: Milliseconds


class SweepDense(Part):
    """The dense artefact, as it was measured beside the slim one."""

    top1: Fraction | None
    """None where the evaluation set has no labels, or there is none."""
    latency_ms: SweepLatency


class SweepSlim(SweepDense):
    """The slim artefact."""

    agreement: Fraction | None
    """Share of images with the dense model's top-1; None without an evaluation set."""
    interval: Interval | None
    """At 95 %: of top-1, by the paired bootstrap of the drop; where there are no labels of the agreement, by
    Wilson's score."""


class SweepResult(Part):
    """What was measured of one point for one target and precision."""

    target: str
    precision: str
    chosen: bool
    refused: str | None
    """Why this candidate is not offered, although it runs."""
    front: bool
    """No other trusted artefact of this target in the sweep, dense or slim, is faster and as accurate."""
    dense: SweepDense
    slim: SweepSlim
    drop: Drop | None
    speedup: Speedup
    verdict: Literal["trusted", "untrusted"]
    why: str


class SweepPoint(Part):
    """One budget: the build that came of it, or why there is none."""

    asked: float | str
    """The budget's value, as it was given."""
    folder: str
    """Its build directory, below the sweep's."""
    failed: str | None
    """Why it could not be built; null where it was."""
    missed: str | None = None
    """A gate that its build missed, or a timing that cannot be trusted."""
    slim: ModelSize | None = None
    """Null where it was not built, as is what follows."""
    kl: float | None = Field(default=None, ge=0.0)
    """KL(dense || slim) before any training, nats, on the images that its report names."""
    results: tuple[SweepResult, ...] = ()


class Sweep(Part):
    """Everything that sweep.json says."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True, validate_by_alias=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    """The recipe's."""
    recipe_sha256: str
    budget: Key
    """The key of [budget] whose value differs from point to point."""
    source: SourceFacts
    dense: ModelSize
    evaluation: SetFacts | None
    versions: Facts
    machine: Facts
    """The host on which every point was measured."""
    warnings: tuple[str, ...] = ()
    """What a reader must know before trusting the numbers; those of all points, each once."""
    points: tuple[SweepPoint, ...]
    """In the order in which their budgets were given."""


def accuracy_of(dense: SweepDense | SweepSlim) -> float | None:
    """Return what artefacts are ranked by: top-1, else the agreement, which the dense model has wholly."""
    if dense.top1 is not None:
        return dense.top1
    return dense.agreement if isinstance(dense, SweepSlim) else 1.0
