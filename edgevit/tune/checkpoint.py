"""Keep a training where it stands, in one file that is written whole or not at all.

The file is safetensors: weights, optimiser and moving average by name, the counters as JSON in its header.
Nothing else is needed to go on to the last bit: order, augmentation, learning rate and every other random
number follow from the seed and the step.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
from safetensors.torch import load, save
from torch import Tensor

from edgevit.disk import atomic_write
from edgevit.errors import WeightsError


@dataclass(frozen=True)
class CheckpointFile:
    """Where a training is kept, and what it must be a training of to go on."""

    path: Path
    belongs_to: str
    """Hash of what the training depends on and the loop cannot see: models, images, code."""


@dataclass
class Counters:
    """How far a training is."""

    step: int = 0
    """Steps that are done."""
    seconds: float = 0.0
    """Time they took, over all interruptions."""
    epoch_losses: tuple[float, ...] = ()
    """Mean loss of each whole epoch."""
    scores: tuple[float, ...] = ()
    """Of each whole epoch on samples that were held out, where some are."""
    loss_sum: float = 0.0
    """Of the steps of the epoch that has begun."""


def write_checkpoint(
    file: CheckpointFile, identity: str, counters: Counters, state: dict[str, Tensor]
) -> None:
    """Replace the checkpoint by the training's state.

    Args:
        file: where it is kept.
        identity: hash of what the training depends on, to be compared when it goes on.
        counters: how far it is.
        state: tensors by name.

    Raises:
        DiskFullError: no space left; the checkpoint before is still there.
        OutputError: the folder cannot be written.
    """
    header = {"identity": identity, "counters": asdict(counters)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    atomic_write(file.path, save(tensors, {"training": json.dumps(header)}))


def read_checkpoint(file: CheckpointFile, identity: str) -> tuple[Counters, dict[str, Tensor]] | None:
    """Return the counters and tensors of a checkpoint, or None where there is none.

    Args:
        file: where it is kept.
        identity: what the checkpoint must have been written for; names and shapes of tensors are part of it.

    Raises:
        WeightsError: the file is damaged, or of another model, recipe, image set or version.
    """
    if not file.path.exists():
        return None
    remedy = f"Remove {file.path} to train from the start."
    try:
        raw = file.path.read_bytes()
        header = json.loads(_metadata(raw)["training"])
        tensors = load(raw)
        found, counters = header["identity"], Counters(**header["counters"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise WeightsError(f"checkpoint {file.path}: damaged ({error}). {remedy}") from error
    if found != identity:
        raise WeightsError(
            f"checkpoint {file.path}: of another training: its model, options, images or version differ"
            f" ({counters.step} steps of it are done). {remedy}"
        )
    counters.epoch_losses = tuple(counters.epoch_losses)
    counters.scores = tuple(counters.scores)
    return counters, tensors


def _metadata(raw: bytes) -> dict[str, str]:
    """Return the header's free text: 8 bytes of length, then JSON."""
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    metadata: dict[str, str] = header["__metadata__"]
    return metadata
