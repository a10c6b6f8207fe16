"""How long a block of any dims takes on a target, from times of single blocks: the latency table.

What a block computes is counted in terms (products, softmax, neurons, weights read ...), each of which grows
with every dim. A table has one time for a unit of each term, found by non-negative least squares over the
relative errors of timed blocks (Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23). So
between and beyond the timed dims a time never falls where a dim grows, and no timed block counts for more
because it is larger.

A part has the caches to itself, which a whole model fills. What that changes is fitted to a few whole models:
one factor on all that parts take, and a surplus for each block, weight, merge and block behind a merge.

Shapes: n timed parts, t terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from edgevit.errors import MeasurementError
from edgevit.models.anatomy import BlockCounts, block_with
from edgevit.models.arch import Arch, BlockDims
from edgevit.target import Precision

_REGISTER = 16  # floats in 512 bits
_TILE = 64  # columns that kernels of matrix products on CPUs take at once
_BESIDE_BLOCKS = ("stem", "head", "part", "copied")
_SURPLUS = ("block", "weights", "merge", "gathering", "sizes")
"""Terms of which a whole model takes more than its parts do."""
_SURPLUS_SHARE = 0.03
"""About how much: a share of the dense model's time for all that it has of a term, or for one whole merge."""
_FACTOR_SPREAD = 0.05
"""About how far from 1 the factor on all parts is."""
_WHOLE_SPREAD = 0.01
"""About how far times of whole models are off, as a share; the dense model's counts ten times as much."""

Terms = Mapping[str, float]
"""What something computes, by term, in millions (the MLP of many tokens in billions); `block` and its like in
pieces."""


def block_terms(arch: Arch, block: BlockDims, *, sized: bool) -> dict[str, float]:
    """Count what a block computes.

    Args:
        arch: the model that it is in.
        block: its dims.
        sized: whether tokens stand for several when they enter, so that logits get their sizes.
    """
    qk, vo = block.heads * block.qk_dim, block.heads * block.vo_dim
    rows = block.queries + block.tokens_in
    pairs = block.queries * block.attended
    terms = {
        "block": 1.0,
        "elements": (rows + block.tokens_out) * block.embed / 1e6,
        "qk projection": rows * block.embed * qk / 1e6,
        "vo projection": rows * block.embed * vo / 1e6,
        "qk product": pairs * qk / 1e6,
        "vo product": pairs * vo / 1e6,
        "qk registers": pairs * block.heads * _whole(block.qk_dim, _REGISTER) / 1e6,
        "vo registers": pairs * block.heads * _whole(block.vo_dim, _REGISTER) / 1e6,
        "softmax": pairs * block.heads / 1e6,
        "mlp": 2 * block.tokens_out * block.embed * block.hidden / 1e6,
        "projection tiles": rows * block.embed * (_whole(qk, _TILE) + _whole(vo, _TILE)) / 1e6,
        "mlp tiles": 2 * block.tokens_out * block.embed * _whole(block.hidden, _TILE) / 1e6,
        "mlp of many tokens": 2 * block.tokens_out**2 * block.embed * block.hidden / 1e9,
        "neurons": block.tokens_out * block.hidden / 1e6,
        "weights": 2 * block.embed * (qk + vo + block.hidden) / 1e6,
    }
    if sized:
        terms |= {"sizes": 1.0, "sized logits": pairs * block.heads / 1e6}
    return terms | _merge_terms(arch, block)


def _whole(dims: int, step: int) -> int:
    """Return the multiple of `step` that `dims` take: some kernels compute nothing less."""
    return -(-dims // step) * step


def _merge_terms(arch: Arch, block: BlockDims) -> dict[str, float]:
    """Count what merging pairs of tokens behind the attention takes."""
    if not block.merged:
        return {}
    patches = block.queries - arch.prefix
    return {
        "merge": 1.0,
        "matching": (patches**2 / 4) * (block.heads * block.qk_dim + 1) / 1e6,
        "pooling": (patches / 2) * block.merged * block.embed / 1e6,
        "gathering": patches * block.embed / 1e6,
    }


def fit_terms(counted: Sequence[Terms], times_ms: NDArray[np.float64]) -> dict[str, float]:
    """Find the time of a unit of each term, >= 0, such that sums over terms are nearest to what was timed.

    Args:
        counted: what each timed part computes, n of them.
        times_ms: how long each took, > 0, [n].

    Returns:
        Milliseconds per unit of each term.
    """
    names = sorted({name for terms in counted for name in terms})
    design = np.array([[terms.get(name, 0.0) for name in names] for terms in counted])
    found, _ = nnls(design / times_ms[:, None], np.ones(len(times_ms)))
    return dict(zip(names, found.tolist(), strict=True))


def _sum(terms: Terms, per_unit: Mapping[str, float]) -> float:
    return sum(count * per_unit.get(name, 0.0) for name, count in terms.items())


def part_terms(arch: Arch, blocks: range) -> dict[str, float]:
    """Count what a part of a model computes, as a graph of its own: some blocks in a row.

    With the first block it has the stem in front of it, with the last one the head behind it.

    Args:
        arch: the model that it is a part of.
        blocks: which blocks.
    """
    first, last = arch.blocks[blocks[0]], arch.blocks[blocks[-1]]
    copied = 0.0
    found: dict[str, float] = {}
    if blocks[0] == 0:
        found["stem"] = 1.0
    else:
        found["part"] = 1.0
        copied += first.tokens_in * first.embed
    if blocks[-1] == len(arch.blocks) - 1:
        found["head"] = 1.0
    else:
        copied += last.tokens_out * last.embed
    found["copied"] = copied / 1e6
    for index in blocks:
        block = arch.blocks[index]
        for name, count in block_terms(arch, block, sized=_is_sized(arch, index)).items():
            found[name] = found.get(name, 0.0) + count
    return found


def _is_sized(arch: Arch, index: int) -> bool:
    """Whether tokens that enter a block stand for several, as pairs were merged before it."""
    before = [(block.merged, block.choice) for block in arch.blocks[:index]]
    return any(count and choice is None for count, choice in before)


@dataclass(frozen=True)
class TableDevice:
    """What the times of a table belong to."""

    runtime: str
    versions: Mapping[str, str]
    """Of the runtime, and of edgevit."""
    device: str
    machine: Mapping[str, str]
    """CPU, cores, and what sets its clocks, as far as the kernel shows them."""
    threads: int
    """0: all cores."""
    precision: Precision
    batch: int


@dataclass(frozen=True)
class TimedPart:
    """A part of a model that was timed."""

    name: str
    terms: Terms
    ms: float
    """Median."""


@dataclass(frozen=True)
class Check:
    """A whole model that was timed beside its prediction."""

    name: str
    measured_ms: float
    predicted_ms: float


@dataclass(frozen=True)
class LatencyTable:
    """Times of blocks on one device in one precision, and what they say about blocks of any dims."""

    on: TableDevice
    drift: float
    """How much slower all parts together ran in the second half of the timing than in the first."""
    parts: tuple[TimedPart, ...]
    ms_per_unit: Mapping[str, float]
    """Of each term, in a part."""
    factor: float = 1.0
    """How many times as long the same takes in a whole model."""
    surplus: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds per unit that some terms take in a whole model beside that."""
    checks: tuple[Check, ...] = ()
    """Models that were timed whole, each beside what a table without it predicts."""

    @property
    def errors(self) -> tuple[float, ...]:
        """Return how far each timed part's prediction is above what was timed, as shares."""
        return tuple(_sum(part.terms, self.ms_per_unit) / part.ms - 1.0 for part in self.parts)

    def rest_ms(self) -> float:
        """Return the time of everything that is no block."""
        return self.factor * (self.ms_per_unit["stem"] + self.ms_per_unit["head"])

    def block_ms(self, arch: Arch, block: BlockDims, *, sized: bool) -> float:
        """Return the time of one block of a whole model; see `block_terms`."""
        return self._whole_ms(block_terms(arch, block, sized=sized))

    def blocks_of_part_ms(self, part: TimedPart) -> float:
        """Return the time that a timed part's blocks take in a whole model.

        It is without what the part took as a graph of its own, and without stem or head.
        """
        beside = {name: count for name, count in part.terms.items() if name in _BESIDE_BLOCKS}
        alone = max(0.0, part.ms - _sum(beside, self.ms_per_unit))
        return self.factor * alone + _sum(part.terms, self.surplus)

    def _whole_ms(self, terms: Terms) -> float:
        return self.factor * _sum(terms, self.ms_per_unit) + _sum(terms, self.surplus)

    def blocks_ms(self, arch: Arch) -> tuple[float, ...]:
        """Return the time of each block of a model."""
        return tuple(
            self.block_ms(arch, block, sized=_is_sized(arch, index))
            for index, block in enumerate(arch.blocks)
        )

    def total_ms(self, arch: Arch) -> float:
        """Return the time of a whole model: its blocks, and the rest."""
        return self.rest_ms() + sum(self.blocks_ms(arch))


def make_table(on: TableDevice, timed: Sequence[TimedPart], drift: float) -> LatencyTable:
    """Fit a table to the parts that were timed."""
    found = fit_terms([part.terms for part in timed], np.array([part.ms for part in timed]))
    return LatencyTable(on, drift, tuple(timed), {"stem": 0.0, "head": 0.0, **found})


@dataclass(frozen=True)
class TimedModel:
    """A model that was timed whole, beside the parts."""

    name: str
    arch: Arch
    ms: float
    """Median."""


def fit_whole(table: LatencyTable, dense: TimedModel, others: Sequence[TimedModel]) -> LatencyTable:
    """Return the table with what parts do not show, found in models that were timed whole.

    Its prediction for the dense model is what that took: speed-ups are against it. The others are also each
    predicted by a table that was fitted without it.

    Args:
        table: fitted to parts.
        dense: the model that is slimmed.
        others: slim ones of it.

    Raises:
        MeasurementError: the parts tell nothing of blocks.
    """
    if table.total_ms(dense.arch) <= 0:
        raise MeasurementError(
            f"{table.on.runtime} {table.on.precision}: expected two blocks to take longer than one, got"
            " times that do not depend on their blocks. Stop other programs and build again."
        )
    checks = []
    for left_out in others:
        fitted = _with_surplus(table, dense, [model for model in others if model is not left_out])
        checks.append(Check(left_out.name, left_out.ms, fitted.total_ms(left_out.arch)))
    return dataclasses.replace(_with_surplus(table, dense, others), checks=tuple(checks))


def _with_surplus(table: LatencyTable, dense: TimedModel, others: Sequence[TimedModel]) -> LatencyTable:
    """Fit the factor and the surplus by non-negative least squares, each held near what is usual."""
    merged = dataclasses.replace(dense.arch.blocks[0], tokens_out=dense.arch.blocks[0].tokens_in - 1)
    one_merge = _merge_terms(dense.arch, merged)
    whole = _model_terms(dense.arch)
    unit = {name: one_merge.get(name) or whole.get(name) or len(dense.arch.blocks) for name in _SURPLUS}
    spread = {name: _SURPLUS_SHARE * dense.ms / amount for name, amount in unit.items()}
    rows, wanted = [], []
    for model, error in ((dense, _WHOLE_SPREAD / 10), *((model, _WHOLE_SPREAD) for model in others)):
        terms = _model_terms(model.arch)
        amounts = [terms.get(name, 0.0) * spread[name] for name in _SURPLUS]
        rows.append(np.array([_sum(terms, table.ms_per_unit), *amounts]) / (error * model.ms))
        wanted.append(1.0 / error)
    rows += list(np.diag([1.0 / _FACTOR_SPREAD, *(1.0 for _ in _SURPLUS)]))
    wanted += [1.0 / _FACTOR_SPREAD, *(0.0 for _ in _SURPLUS)]
    found, _ = nnls(np.array(rows), np.array(wanted))
    factor, *shares = found.tolist()
    surplus = {name: share * spread[name] for name, share in zip(_SURPLUS, shares, strict=True)}
    fitted = dataclasses.replace(table, factor=factor, surplus=surplus)
    rest = dense.ms / fitted.total_ms(dense.arch)  # a thousandth or so
    return dataclasses.replace(
        table, factor=rest * factor, surplus={name: rest * ms for name, ms in surplus.items()}
    )


def _model_terms(arch: Arch) -> dict[str, float]:
    """Count what a whole model computes."""
    return part_terms(arch, range(len(arch.blocks)))


@dataclass(frozen=True)
class LatencyCost:
    """Milliseconds from a table: the `CostModel` of prune/allocate.py."""

    table: LatencyTable
    arch: Arch
    """Of the dense model."""
    dead_tokens: bool

    def block(self, index: int, counts: BlockCounts) -> float:
        """Return the time of one block."""
        dims = block_with(self.arch, index, counts, dead_tokens=self.dead_tokens)
        sized = counts.tokens_in < self.arch.blocks[index].tokens_in or _is_sized(self.arch, index)
        return self.table.block_ms(self.arch, dims, sized=sized)

    def blocks(self, arch: Arch) -> tuple[float, ...]:
        """Return the time of each block of a whole model of these dims."""
        return self.table.blocks_ms(arch)

    def rest(self) -> float:
        """Return the time of everything that is no block."""
        return self.table.rest_ms()

    def total(self, arch: Arch) -> float:
        """Return the time of a whole model of these dims."""
        return self.table.total_ms(arch)
