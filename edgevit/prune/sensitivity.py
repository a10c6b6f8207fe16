"""How much each cut of each block changes the model's answers: KL(dense || changed) on unlabelled images.

Each cut is made alone, recovered in closed form as slimming would recover it, and run from its block to the
end: what lies before the block is the same for all its cuts and is kept. What later blocks could repair is
left to them, for every kind of cut alike. The closed form learns from some of the images and KL is taken on
the others: on its own images a fit of many weights looks better than it is, and a merge, which fits nothing,
does not. Between the few counts that are run, the closed form's own error,
which is known for all of them, gives the shape (`curves.py`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from edgevit.disk import atomic_write
from edgevit.models.anatomy import read_anatomy, with_counts
from edgevit.models.arch import BlockDims
from edgevit.models.layers import SlimBlock, SlimViT
from edgevit.plan import Anatomy, Kind
from edgevit.progress import Progress
from edgevit.prune.curves import Curve, Sensitivity, curves_of
from edgevit.slim.closed_form import left_of, order_neurons
from edgevit.slim.fit_attention import attention_errors, fit_attention
from edgevit.slim.fit_mlp import observe_mlp, write_mlp
from edgevit.slim.site import ClosedForm, Site
from edgevit.slim.stream import BATCH, Streams, equal_streams, open_streams
from edgevit.slim.token_weights import BlockWeights
from edgevit.slim.write import cut_block

HELD_OUT = Fraction(1, 3)
"""Share of the images, the last ones, that no cut learns from: KL is taken on them."""
_LEAST_TOKENS = 8  # patches in front of a block in which merging some is worth a measurement


@dataclass(frozen=True)
class CutShares:
    """The cuts that are run, as shares that remain; of tokens, as shares of the patches that go."""

    heads: tuple[float, ...] = (0.75,)
    qk_dim: tuple[float, ...] = (0.5, 0.25)
    vo_dim: tuple[float, ...] = (0.75, 0.5)
    hidden: tuple[float, ...] = (0.67, 0.33)
    tokens: tuple[float, ...] = (0.05, 0.2, 0.4)


@dataclass(frozen=True)
class BlockFile:
    """Where finished blocks are kept, so that an interrupted measurement goes on."""

    path: Path
    belongs_to: str
    """Hash of what the measurement depends on."""


def measure_sensitivity(
    dense: SlimViT,
    batches: Callable[[], Iterator[Tensor]],
    shares: CutShares,
    kept: BlockFile | None,
    progress: Progress,
) -> Sensitivity:
    """Measure the cuts of each block that `shares` names.

    Args:
        dense: the model; stays as it is. Where it is, all is computed.
        batches: gives an iterator over images, float32 [b, C, H, W], where the model is; called anew for each
            pass.
        shares: which cuts.
        kept: where finished blocks are kept; None: nowhere.
        progress: called after each cut.
    """
    dense = dense.eval().requires_grad_(False)
    done = _read(kept)
    streams = open_streams(dense, batches, progress, weighted=True)
    learnt = len(streams.dense) - max(1, int(HELD_OUT * len(streams.dense)))
    streams.weights = [_learnt_alone(weights, learnt) for weights in streams.weights]
    tail = _Tail(dense, streams, learnt)
    cuts = [_cuts(read_anatomy(dense.arch), index, shares) for index in range(len(dense.blocks))]
    total, counted = sum(map(_count, cuts)), 0
    with torch.no_grad():
        for index, wanted in enumerate(cuts):
            place = tail.enter(index)
            if index >= len(done):

                def report(ran: int, before: int = counted) -> None:
                    progress("measuring cuts", before + ran, total)

                done.append(_measure_block(place, wanted, report))
                _write(kept, done)
            counted += _count(wanted)
    return Sensitivity(tuple(done), len(streams.dense))


def _learnt_alone(weights: BlockWeights, learnt: int) -> BlockWeights:
    """Return weights that keep all but the first `learnt` images out of every fit."""

    def masked(values: Tensor) -> Tensor:
        kept = values.clone()
        kept[learnt:] = 0.0
        return kept

    return BlockWeights(*map(masked, weights))


Cuts = Mapping[Kind, tuple[int, ...]]
"""Counts that are run in one block, by kind, each list falling."""


def _count(cuts: Cuts) -> int:
    return sum(map(len, cuts.values()))


def _cuts(anatomy: Anatomy, index: int, shares: CutShares) -> Cuts:
    """Return the counts that are run in one block; kinds of which it can lose nothing are left out."""
    block, last = anatomy.blocks[index], index == len(anatomy.blocks) - 1
    found: dict[Kind, tuple[int, ...]] = {}
    for kind in ("heads", "qk_dim", "vo_dim", "hidden"):
        most = int(getattr(block, kind))
        counts = {max(1, round(share * most)) for share in getattr(shares, kind)} - {most}
        if kind not in anatomy.refused and block.per_image is None and counts:
            found[kind] = tuple(sorted(counts, reverse=True))
    patches = block.tokens - anatomy.prefix
    dead = last and anatomy.read_tokens is not None
    if "tokens" not in anatomy.refused and not dead and patches >= _LEAST_TOKENS:
        gone = {max(1, math.floor(share * patches)) for share in shares.tokens}
        found["tokens"] = tuple(block.tokens - count for count in sorted(gone))
    return found


@dataclass(frozen=True)
class _Place:
    """A block with the dense stream in front of it, behind its attention and behind it."""

    index: int
    full: SlimBlock
    tail: _Tail
    before: Tensor
    middle: Tensor
    after: Tensor

    def site(self, dims: BlockDims) -> Site:
        """Return the block about to be cut to `dims`, on streams of its own."""
        kept = {2 * self.index: self.middle, 2 * self.index + 1: self.after}
        own = equal_streams(self.before.clone(), self.tail.streams.weights, kept)
        weights = own.weights[self.index]
        return Site(self.index, self.full, cut_block(self.full, dims), own, weights, ClosedForm())

    def behind_attention(self, dims: BlockDims) -> Site:
        """Return a site whose streams, which are equal, stand behind the attention."""
        site = self.site(dims)
        site.streams.dense, site.streams.slim = self.middle.clone(), self.middle.clone()
        return site


class _Tail:
    """The dense model from a block on: what changes at that block, it turns into KL."""

    def __init__(self, dense: SlimViT, streams: Streams, learnt: int) -> None:
        self.streams = streams
        starts = range(learnt, len(streams.dense), BATCH)
        self._held_out = [slice(start, min(start + BATCH, len(streams.dense))) for start in starts]
        self._dense = dense
        self._stream = streams.dense
        self._blocks = [*dense.blocks[:-1], _only_read(dense)]
        with torch.no_grad():
            self._answers = [
                self._run(streams.dense[part], None, 0).log_softmax(dim=-1) for part in self._held_out
            ]

    def enter(self, index: int) -> _Place:
        """Move the stream in front of block `index` behind it; blocks are entered in their order."""
        full, before = self._dense.blocks[index], self._stream
        middle = torch.cat([full.attend(before[part], None)[0] for part in self.streams.slices()])
        self._stream = torch.cat([self._mlp(full, middle[part]) for part in self.streams.slices()])
        return _Place(index, full, self, before, middle, self._stream)

    def kl_behind(self, site: Site, mlp: Callable[[Tensor], Tensor] | None = None) -> float:
        """Return KL(dense || changed) of the images held out, from the slim stream behind a site's attention.

        Args:
            site: the changed block.
            mlp: maps what an MLP reads to what it adds; None: the dense one does.
        """
        total, read = 0.0, self._dense.arch.read_tokens
        last = site.index == len(self._blocks) - 1
        for part, answers in zip(self._held_out, self._answers, strict=True):
            x = site.streams.slim[part]
            x = self._mlp(site.full, x[:, :read] if last else x, mlp)
            logits = self._run(x, site.streams.sizes_of(part), site.index + 1)
            total += _sum_kl(answers, logits)
        return max(total / sum(map(len, self._answers)), 0.0)

    @staticmethod
    def _mlp(block: SlimBlock, x: Tensor, mlp: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        x = block.stream(x)
        added: Tensor = (mlp or block.mlp)(block.mlp_input(x))
        return x + added

    def _run(self, x: Tensor, sizes: Tensor | None, first: int) -> Tensor:
        for block in self._blocks[first:]:
            x, sizes = block(x, sizes)
        return self._dense.classify(x, sizes)


def joint_kl(dense: SlimViT, slim: SlimViT, batches: Iterator[Tensor]) -> float:
    """Return KL(dense || slim) over images, float32 [b, C, H, W]: nats, a mean over images.

    Both models and the images are on one device.
    """
    total, seen = 0.0, 0
    with torch.no_grad():
        for images in batches:
            total += _sum_kl(dense(images).log_softmax(dim=-1), slim(images))
            seen += len(images)
    return max(total / seen, 0.0)


def _sum_kl(answers: Tensor, logits: Tensor) -> float:
    """Return the sum over images of KL from the log-probabilities `answers`, [b, classes]."""
    return float(functional.kl_div(logits.log_softmax(dim=-1), answers, reduction="sum", log_target=True))


def _only_read(dense: SlimViT) -> SlimBlock:
    """Return the last block without what it computes for tokens that the head does not read."""
    full, read = dense.blocks[-1], dense.arch.read_tokens
    if read is None:
        return full
    dims = dataclasses.replace(full.dims, queries=read, tokens_out=read)
    alone = SlimBlock(dims, full.arch, last=True).to(dense.device)
    alone.load_state_dict(full.state_dict())
    return alone.eval().requires_grad_(False)


def _measure_block(place: _Place, cuts: Cuts, report: Callable[[int], None]) -> tuple[Curve, ...]:
    """Run all cuts of one block."""
    curves: list[Curve] = []
    qk, vo = attention_errors(place.site(place.full.dims))
    errors: Mapping[Kind, Tensor] = {"qk_dim": qk, "vo_dim": vo}
    ran = 0
    for kind, counts in cuts.items():

        def told(one: int, before: int = ran) -> None:
            report(before + one)

        if kind == "hidden":
            curves.append(_measure_hidden(place, counts, told))
        else:
            known = tuple(errors[kind].tolist()) if kind in errors else ()
            curves.append(_measure_attention(place, kind, counts, told, known))
        ran += len(counts)
    return tuple(curves)


def _measure_attention(
    place: _Place,
    kind: Kind,
    counts: Sequence[int],
    report: Callable[[int], None],
    errors: tuple[float, ...],
) -> Curve:
    """Run cuts of the attention's heads or dims, or of the tokens behind it."""
    dims, found = place.full.dims, []
    for ran, count in enumerate(counts):
        site = place.site(with_counts(dims, {kind: count}))
        reductions = fit_attention(site)
        if reductions:
            site.streams.reduce(reductions)
        found.append(place.tail.kl_behind(site))
        report(ran + 1)
    most = dims.tokens_in if kind == "tokens" else int(getattr(dims, kind))
    return Curve(kind, most, tuple(counts), tuple(found), errors)


def _measure_hidden(place: _Place, counts: Sequence[int], report: Callable[[int], None]) -> Curve:
    """Run cuts of the hidden neurons: one order of elimination and one set of moments serve all of them."""
    full = place.full
    most = full.dims.hidden
    seen = observe_mlp(place.behind_attention(full.dims))
    covariance = seen.moments.covariance
    gone = order_neurons(full.mlp.fc2.weight.double(), covariance, min(counts))
    found = []
    for ran, count in enumerate(counts):
        site = place.behind_attention(with_counts(full.dims, {"hidden": count}))
        write_mlp(site, seen, left_of(gone.order[: most - count], most, covariance.device))
        found.append(place.tail.kl_behind(site, site.cut.mlp))
        report(ran + 1)
    return Curve("hidden", most, tuple(counts), tuple(found), _error_of_each(gone.losses, most))


def _error_of_each(losses: Sequence[float], most: int) -> tuple[float, ...]:
    """Return the squared error by the count that is kept, 0..most; the last loss stands for the unknown."""
    rest = [losses[-1]] * (most - len(losses))
    sums = torch.tensor([0.0, *losses, *rest], dtype=torch.float64).cumsum(0)
    return tuple(float(f"{value:.6g}") for value in sums.flip(0).tolist())


def _read(kept: BlockFile | None) -> list[tuple[Curve, ...]]:
    """Return the blocks that are finished; none where the file is of another measurement."""
    if kept is None or not kept.path.exists():
        return []
    data = json.loads(kept.path.read_bytes())
    return [curves_of(block) for block in data["blocks"]] if data["belongs_to"] == kept.belongs_to else []


def _write(kept: BlockFile | None, done: Sequence[tuple[Curve, ...]]) -> None:
    if kept is None:
        return
    blocks = [[asdict(curve) for curve in block] for block in done]
    atomic_write(kept.path, json.dumps({"belongs_to": kept.belongs_to, "blocks": blocks}))
