"""Ask whether ToaSt's accuracy depends on which images share a batch: the same weights, in four orders.

    python tools/bench/toast_batch_effect.py [--models cifar10 imagenette]

The published code scores channels on the batch that it is given, in evaluation too, and its validation images
come sorted by class. Here is that selection in a masked form of our own, as the code does it: before fc1 the
residual stream loses channels (before the norm, and for good), before fc2 the hidden neurons do; scores are
means over the batch of the class token's and of a random few patches' magnitudes, those weighted by the class
token's attention. Attention stays dense, nothing is trained. The masks are those of

- sorted: batches of 128 in the order of the labels, as the published evaluation has them;
- shuffled: batches of 128 in random order, the mean of three orders;
- alone: each image by itself;
- static: one mask from calibration images, for all.

Patches are drawn anew for each batch from a seeded generator, but for "static", which takes all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import record
import torch
from numpy.typing import NDArray
from record import Figure, Notebook, Row
from subjects import TOLD, labels_of, load_deit_tiny, load_deit_tiny_cifar, open_set, use_threads
from torch import Tensor

from edgevit.images import Images
from edgevit.measure.accuracy import Logits, correct, paired_bootstrap, top1
from edgevit.models.layers import SlimBlock, SlimViT
from edgevit.models.load import LoadedModel

BATCH = 128  # of the published evaluation
SHUFFLES = 3
CLASS_WEIGHT = 2.0  # published
SAMPLED = 0.02  # share of the patches that are scored, published
_PIECE = 32


@dataclass(frozen=True)
class Shares:
    """Shares of fc1's inputs and of fc2's that go, from a block on to the last."""

    name: str
    first: int
    inputs: tuple[float, ...]
    neurons: tuple[float, ...]


SHARES = {
    "0.9": Shares("published for 0.9 G: half of the last block's neurons", 11, (0.0,), (0.5,)),
    "0.8": Shares(
        "published for 0.8 G: 0.9 of the last block's neurons, 0.3 of its inputs", 11, (0.3,), (0.9,)
    ),
    "0.76": Shares(
        "published for 0.76 G: 0.5, 0.6, 0.9, 0.9 of the last blocks' neurons, 0.3 of the inputs of two",
        8,
        (0.0, 0.0, 0.3, 0.3),
        (0.5, 0.6, 0.9, 0.9),
    ),
    "0.76 fc2": Shares("the same without the inputs", 8, (0.0, 0.0, 0.0, 0.0), (0.5, 0.6, 0.9, 0.9)),
}


@dataclass(frozen=True)
class Subject:
    """A model with the sets that it is calibrated and evaluated on."""

    name: str
    load: Callable[[], LoadedModel]
    calibration: str
    evaluation: str


SUBJECTS = {
    "cifar10": Subject("DeiT-T on CIFAR-10", load_deit_tiny_cifar, "cifar10_train", "cifar10_val"),
    "imagenette": Subject(
        "DeiT-T on 10 classes of ImageNet", load_deit_tiny, "imagenet_train1000", "imagenette160_val1500"
    ),
}


@dataclass(frozen=True)
class Masks:
    """Where masks come from: a given pair for each block, or the batch itself (`generator` draws patches)."""

    given: list[tuple[Tensor, Tensor]] | None = None
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class Scored:
    """What a block's channels and neurons are scored by: their magnitudes and the attention to patches."""

    values: Tensor  # [B, N, C]
    attention: Tensor  # of the class token to all tokens, mean of the heads, [B, N]


def main() -> None:
    """Evaluate every model with every schedule in every order."""
    arguments = parse_arguments()
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    for key in arguments.models:
        subject = SUBJECTS[key]
        bench = Bench.open(subject, quick=arguments.quick)
        for name in arguments.shares:
            TOLD.say(f"{subject.name}, {SHARES[name].name}")
            row = bench.at(SHARES[name].first).measure(subject, SHARES[name])
            notebook.write("toast-batch-effect", [row])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--shares", nargs="+", choices=list(SHARES), default=list(SHARES))
    record.add_options(parser)
    return parser.parse_args()


@dataclass(frozen=True)
class Bench:
    """A model, its labels, its own answers, and the streams that enter one of its blocks."""

    model: SlimViT
    labels: NDArray[np.int64]
    dense: Logits
    streams: Tensor  # [n, N, D], of the evaluation
    calibration: Tensor  # likewise
    place: int  # the block that they enter

    @classmethod
    def open(cls, subject: Subject, *, quick: bool) -> Bench:
        """Load and run everything that all orders have in common."""
        loaded = subject.load()
        first = min(shares.first for shares in SHARES.values())
        sets = (subject.evaluation, 64 if quick else None), (subject.calibration, 32 if quick else 1000)
        images, calibration = (open_set(name, loaded.preprocess, count) for name, count in sets)
        model = loaded.model.eval().requires_grad_(False)
        streams = [_streams(model, part, first) for part in (images, calibration)]
        ends = _run_in_pieces(model, streams[0], first, len(model.blocks))
        dense = torch.cat([model.classify(x, None) for x in ends.split(_PIECE)]).numpy()
        return cls(model, labels_of(images), dense, *streams, first)

    def at(self, place: int) -> Bench:
        """Return the same with the streams in front of a later block."""
        moved = [_run_in_pieces(self.model, x, self.place, place) for x in (self.streams, self.calibration)]
        return dataclasses.replace(self, streams=moved[0], calibration=moved[1], place=place)

    def measure(self, subject: Subject, shares: Shares) -> Row:
        """Evaluate one schedule in all orders."""
        every = torch.arange(len(self.labels))
        by_class = torch.from_numpy(np.argsort(self.labels, kind="stable"))
        given = self._static(shares)
        found: dict[str, Logits] = {
            "dense": self.dense,
            "sorted": self._logits(shares, by_class.split(BATCH), Masks(generator=_seeded(0))),
            "alone": self._logits(shares, every.split(1), Masks(generator=_seeded(0))),
            "static": self._logits(shares, every.split(BATCH), Masks(given)),
        }
        shuffled = [
            self._logits(
                shares,
                torch.randperm(len(every), generator=_seeded(s)).split(BATCH),
                Masks(generator=_seeded(s)),
            )
            for s in range(SHUFFLES)
        ]
        percent = {name: Figure(100 * top1(logits, self.labels), ".2f") for name, logits in found.items()}
        accuracies = [100 * top1(logits, self.labels) for logits in shuffled]
        right = [correct(logits, self.labels) for logits in (found["sorted"], shuffled[0])]
        interval = paired_bootstrap(*right, seed=0)
        return Row(
            f"{subject.name}: {shares.name}",
            {
                "dense, top-1 %": percent["dense"],
                "sorted": percent["sorted"],
                "shuffled": Figure(float(np.mean(accuracies)), ".2f"),
                "shuffled, least to most": f"{min(accuracies):.2f} to {max(accuracies):.2f}",
                "alone": percent["alone"],
                "static": percent["static"],
                "sorted over shuffled, points": Figure(
                    percent["sorted"].value - accuracies[0], ".2f", (interval.low, interval.high)
                ),
            },
        )

    def _static(self, shares: Shares) -> list[tuple[Tensor, Tensor]]:
        """Return the masks of calibration images: scores of each image by itself, averaged."""
        given: list[tuple[Tensor, Tensor]] = []
        x = self.calibration
        for block, inputs, neurons in _cut_blocks(self.model, shares):
            middle, attention = _attend(block, x)
            of_inputs = _mask(_scores(Scored(middle, attention), None), inputs)
            middle = middle * of_inputs
            hidden = block.mlp.neurons(block.norm2(middle))
            of_neurons = _mask(_scores(Scored(hidden, attention), None), neurons)
            x = middle + block.mlp.fc2(hidden * of_neurons)
            given.append((of_inputs, of_neurons))
        return given

    def _logits(self, shares: Shares, batches: tuple[Tensor, ...], masks: Masks) -> Logits:
        """Run batches of images, given by their numbers; return logits in the order of the images."""
        logits = np.zeros((len(self.labels), self.model.arch.classes), np.float32)
        for done, batch in enumerate(batches):
            logits[batch.numpy()] = self._batch(shares, self.streams[batch], masks).numpy()
            TOLD("evaluating", done + 1, len(batches))
        return logits

    @torch.no_grad()
    def _batch(self, shares: Shares, x: Tensor, masks: Masks) -> Tensor:
        for place, (block, inputs, neurons) in enumerate(_cut_blocks(self.model, shares)):
            middle, attention = _attend(block, x)
            own = None if masks.given is None else masks.given[place]
            middle = middle * (
                own[0] if own else _mask(_scores(Scored(middle, attention), masks.generator), inputs)
            )
            hidden = block.mlp.neurons(block.norm2(middle))
            mask = own[1] if own else _mask(_scores(Scored(hidden, attention), masks.generator), neurons)
            x = middle + block.mlp.fc2(hidden * mask)
        return self.model.classify(x, None)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def _streams(model: SlimViT, images: Images, first: int) -> Tensor:
    """Return the streams that enter block `first`, [n, N, D]."""
    parts = []
    for batch in images.batches(_PIECE):
        x, _ = model.enter(torch.from_numpy(batch))
        parts.append(_run_to(model, x, 0, first))
        TOLD("running the dense blocks", sum(map(len, parts)), len(images))
    return torch.cat(parts)


def _run_in_pieces(model: SlimViT, x: Tensor, start: int, stop: int) -> Tensor:
    """Run the dense blocks from `start` to `stop` over all images."""
    return torch.cat([_run_to(model, piece, start, stop) for piece in x.split(_PIECE)])


@torch.no_grad()
def _run_to(model: SlimViT, x: Tensor, start: int, stop: int) -> Tensor:
    """Run the dense blocks from `start` to `stop`."""
    for block in list(model.blocks)[start:stop]:
        x, _ = block(x, None)
    return x


def _cut_blocks(model: SlimViT, shares: Shares) -> Iterator[tuple[SlimBlock, float, float]]:
    """Yield the blocks that a schedule cuts, with the shares of inputs and of neurons that go."""
    yield from zip(list(model.blocks)[shares.first :], shares.inputs, shares.neurons, strict=True)


@torch.no_grad()
def _attend(block: SlimBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stream behind the attention, [B, N, D], and the class token's attention, [B, N]."""
    y = block.norm1(x)
    maps = block.attn.logits(y, block.attn.keys(y), y.shape[1], None).softmax(dim=-1)  # [B, H, N, N]
    mixed = (maps @ block.attn.values(y)).transpose(1, 2).flatten(2)
    return x + block.attn.proj(mixed), maps[:, :, 0].mean(dim=1)


def _scores(scored: Scored, generator: torch.Generator | None) -> Tensor:
    """Score channels by their magnitudes, [C]; patches are drawn by `generator`, or all taken (None)."""
    magnitudes, patches = scored.values.abs(), scored.values.shape[1] - 1
    if generator is None:
        drawn = torch.arange(1, patches + 1)
        weighted = (magnitudes[:, drawn] * scored.attention[:, drawn].unsqueeze(-1)).mean(dim=(0, 1))
    else:
        drawn = torch.randint(1, patches + 1, (max(1, int(patches * SAMPLED)),), generator=generator)
        weights = scored.attention[:, drawn].mean(dim=0)  # over the batch, as published
        weighted = (magnitudes[:, drawn] * weights.view(1, -1, 1)).mean(dim=(0, 1))
    return CLASS_WEIGHT * magnitudes[:, 0].mean(dim=0) / (1 + patches) + weighted * patches / (1 + patches)


def _mask(scores: Tensor, drop: float) -> Tensor:
    """Return 1 for the channels that stay and 0 for the others, [C]."""
    kept = scores.topk(max(1, int(len(scores) * (1 - drop)))).indices
    return torch.zeros_like(scores).scatter(0, kept, 1.0)


if __name__ == "__main__":
    main()
