"""Which blocks a latency table is made of: one long model, a part of which is timed at a time.

All parts come from one model, so that it is exported and quantised once: the dense block, the same with fewer
heads, dims and neurons, then blocks that merge tokens and some behind them, and last one that computes only
the tokens that the head reads. A part is a few blocks in a row, and each block is in as many parts: a block
takes longer between others than alone (docs/methods.md). Beside the parts, a few whole models of the dense
one's depth are timed, which show what parts do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgevit.errors import UnsupportedModelError
from edgevit.models.anatomy import read_anatomy, slim_arch, with_counts
from edgevit.models.arch import Arch, BlockDims
from edgevit.plan import Anatomy, Counts, Kind, fewest_merged, plan_from_counts

_WINDOW = 2
_WIDTHS: tuple[Kind, ...] = ("qk_dim", "vo_dim", "hidden")
_STEPS: dict[Kind, int] = {"heads": 1, "qk_dim": 8, "vo_dim": 8, "hidden": 32}


@dataclass(frozen=True)
class TimedShares:
    """Which dims are timed, as shares of the dense block's."""

    widths: tuple[float, ...] = (0.75, 0.625, 0.5, 0.25)
    """Of QK dims, VO dims and hidden neurons, each alone; one that is no multiple of what kernels like."""
    steps_down: tuple[float, ...] = (0.96, 0.8)
    """To which tokens fall on the way to the first of `levels`, as a merge has a price of its own."""
    levels: tuple[float, ...] = (0.6, 0.33)
    """Of tokens, at which widths are timed again."""
    whole: int = 6
    """How many of `make_whole_models` are timed."""


TIMED_SHARES = TimedShares()
"""31 blocks for a plain ViT."""


@dataclass(frozen=True)
class LongModel:
    """Blocks in a row, of which parts are timed."""

    arch: Arch
    parts: dict[str, range]
    """Which blocks each part has."""


@dataclass
class _Row:
    arch: Arch
    tokens: int
    names: list[str] = field(default_factory=list)
    blocks: list[BlockDims] = field(default_factory=list)

    def add(self, name: str, dims: BlockDims) -> None:
        """Append a block of these widths at the tokens that are left."""
        self.names.append(name)
        self.blocks.append(
            dataclasses.replace(dims, tokens_in=self.tokens, tokens_out=self.tokens, queries=self.tokens)
        )

    def merge(self, name: str, dims: BlockDims, share: float, full: int) -> None:
        """Append a block that merges tokens down to a share of `full`, as far as one block can."""
        left = max(fewest_merged(self.tokens, self.arch.prefix), round(share * full))
        if left < self.tokens:
            self.add(name, dims)
            self.blocks[-1] = dataclasses.replace(self.blocks[-1], tokens_out=left)
            self.tokens = left

    def parts(self) -> dict[str, range]:
        """Return the parts, each named after its last block: two single blocks, then `_WINDOW` at a time."""
        alone = {f"{name} alone": range(index, index + 1) for index, name in enumerate(self.names[:2])}
        last = range(_WINDOW - 1, len(self.names))
        return alone | {self.names[index]: range(index + 1 - _WINDOW, index + 1) for index in last}


def make_long_model(arch: Arch, shares: TimedShares = TIMED_SHARES) -> LongModel:
    """Return the long model for a dense one.

    Raises:
        UnsupportedModelError: its blocks are not those of a plain ViT.
    """
    full = arch.blocks[0]
    plain = dataclasses.replace(full, tokens_out=full.tokens_in, queries=full.tokens_in)
    if any(block != plain for block in arch.blocks) or full.window or full.per_image or arch.merged:
        raise UnsupportedModelError(
            "budget: a latency table needs blocks that are all alike, without windows, merging or a choice"
            " per image, and this model's are not. Give the budget as macs or params, which need no table."
        )
    refused = read_anatomy(arch).refused
    row = _Row(arch, full.tokens_in)
    for name in ("first", "second", "third"):
        row.add(name, full)
    for name, dims in _narrow(full, refused, shares):
        row.add(name, dims)
    if "tokens" not in refused:
        _add_levels(row, full, refused, shares)
    if arch.read_tokens is not None:
        row.add("read", full)
        row.blocks[-1] = dataclasses.replace(
            row.blocks[-1], queries=arch.read_tokens, tokens_out=arch.read_tokens
        )
    return LongModel(dataclasses.replace(arch, blocks=tuple(row.blocks)), row.parts())


def _narrow(
    full: BlockDims, refused: dict[Kind, str], shares: TimedShares
) -> Iterator[tuple[str, BlockDims]]:
    """Yield blocks with less of one kind, and with less of several."""
    for kind in _WIDTHS:
        for share in shares.widths if kind not in refused else ():
            count = _count(int(getattr(full, kind)), share, _STEPS[kind])
            yield f"{kind} {count}", with_counts(full, {kind: count})
    halves = _narrower(full, refused, 0.5)
    yield "half of heads", with_counts(full, {"heads": halves["heads"]})
    yield "half of dims", with_counts(full, {k: halves[k] for k in ("qk_dim", "vo_dim") if k in halves})
    yield "half of all", with_counts(full, halves)


def _narrower(full: BlockDims, refused: Mapping[Kind, str], share: float) -> dict[Kind, int]:
    """Return a share of each width that can be cut."""
    return {
        kind: _count(int(getattr(full, kind)), share, step)
        for kind, step in _STEPS.items()
        if kind not in refused
    }


def _add_levels(row: _Row, full: BlockDims, refused: dict[Kind, str], shares: TimedShares) -> None:
    halves = _narrower(full, refused, 0.5)
    dense = full.tokens_in
    for share in shares.steps_down:
        row.merge(f"merge to {share:.0%}", full, share, dense)
    for share in shares.levels:
        row.merge(f"merge to {share:.0%}", full, share, dense)
        row.add(f"full at {share:.0%}", full)
        row.add(
            f"half of dims at {share:.0%}", with_counts(full, {k: v for k, v in halves.items() if "dim" in k})
        )
        row.add(f"half of heads at {share:.0%}", with_counts(full, {"heads": halves["heads"]}))
        row.add(f"half of hidden at {share:.0%}", with_counts(full, {"hidden": halves["hidden"]}))


def make_whole_models(arch: Arch, shares: TimedShares = TIMED_SHARES) -> dict[str, Arch]:
    """Return models that are timed whole beside the parts of the long one, by name.

    They are as plans make them: narrower ones, and some that merge tokens in one block, in two or in many.

    Args:
        arch: of the dense model, one that `make_long_model` takes.
        shares: how many.
    """
    anatomy, full = read_anatomy(arch), arch.blocks[0]
    most = full.tokens_in
    early, third, half = (max(0, min(len(arch.blocks) // part, len(arch.blocks) - 2)) for part in (4, 3, 2))
    narrow = {share: Counts(**_narrower(full, anatomy.refused, share)) for share in (0.75, 0.5)}
    found = {"half of all widths": narrow[0.5]}
    if "tokens" not in anatomy.refused and len(arch.blocks) > 1:
        once = _falling(anatomy, {third: round(0.7 * most)})
        found["merged once to 60 %"] = Counts(tokens=_falling(anatomy, {third: round(0.6 * most)}))
        found["merged once to 85 %"] = Counts(tokens=_falling(anatomy, {third: round(0.85 * most)}))
        found["merged twice to 50 %"] = Counts(
            tokens=_falling(anatomy, {early: round(0.8 * most), half: round(0.5 * most)})
        )
        found["merged once to 70 %, narrower"] = dataclasses.replace(narrow[0.75], tokens=once)
        found["merged step by step to 40 %"] = Counts(tokens=_falling(anatomy, _by_steps(anatomy, early)))
    dead = arch.read_tokens is not None
    return {
        name: slim_arch(arch, plan_from_counts(anatomy, counts, dead_tokens=dead))
        for name, counts in list(found.items())[: shares.whole]
    }


def _falling(anatomy: Anatomy, counts: dict[int, int]) -> list[int]:
    """Return the tokens behind each block where some blocks merge down to a count, as far as one can."""
    left, found = anatomy.blocks[0].tokens, []
    for index in range(len(anatomy.blocks)):
        left = max(fewest_merged(left, anatomy.prefix), min(left, counts.get(index, left)))
        found.append(left)
    return found


def _by_steps(anatomy: Anatomy, first: int) -> dict[int, int]:
    """Return tokens that fall by a tenth of all in each of some blocks in a row, down to two fifths."""
    most = anatomy.blocks[0].tokens
    left = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    blocks = range(first, len(anatomy.blocks) - 1)
    return {index: round(share * most) for index, share in zip(blocks, left, strict=False)}


def _count(most: int, share: float, step: int) -> int:
    """Return a share of `most`, in steps where they are no more than an eighth of it."""
    step = step if step * 8 <= most else 1
    return max(step, round(share * most / step) * step)
