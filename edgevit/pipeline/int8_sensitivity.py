"""How much each layer alone costs in int8: at its own output, and in the model's answers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgevit.errors import ExportError
from edgevit.export.int8_layers import Int8Layer
from edgevit.export.parity import Batch
from edgevit.measure.accuracy import mean_kl
from edgevit.progress import Progress, silent

_LEAST_NOISE = 1e-20
"""Of the signal: a layer that loses nothing has 200 dB, as no number is infinite in JSON."""


class LayerRunner(Protocol):
    """A model whose layers can be computed in int8 one by one, such as `export.int8_layers.Switched`."""

    def run(self, image: Batch, in_int8: Collection[str], outputs: Sequence[str] = ()) -> list[Batch]:
        """Return logits of one image, [1, classes], and the outputs of the layers that are named."""
        ...


@dataclass(frozen=True)
class LayerSensitivity:
    """What one layer in int8 costs, while all others are in float."""

    layer: Int8Layer
    sqnr_db: float
    """Signal over quantisation noise at the layer's output: 10 log10(sum y^2 / sum (y_int8 - y)^2)."""
    kl: float
    """Mean over images of KL(fp32 || this layer in int8) of the model's answers, nats."""


def measure_layers(
    layers: Sequence[Int8Layer], runner: LayerRunner, images: Sequence[Batch], progress: Progress = silent
) -> tuple[LayerSensitivity, ...]:
    """Measure every layer by itself; the same inputs give the same numbers.

    Args:
        layers: of the model that `runner` runs.
        runner: runs the model on one image.
        images: [1, C, H, W] each.
        progress: told after each image.

    Raises:
        ExportError: a layer puts out NaN or infinity, in float or in int8; it is named.
        ValueError: there is no image.
    """
    if not images:
        raise ValueError("expected one image or more to measure sensitivity on, got none")
    names = [layer.name for layer in layers]
    found = {name: _Sums([], 0.0, 0.0) for name in names}
    expected = []
    for number, image in enumerate(images):
        logits, *outputs = runner.run(image, (), names)
        expected.append(logits)
        for name, output in zip(names, outputs, strict=True):
            _require_finite(output, name, "fp32", number)
            got, noisy = runner.run(image, (name,), (name,))
            _require_finite(noisy, name, "int8", number)
            found[name].add(got, output, noisy)
        progress("measuring layers in int8", number + 1, len(images))
    reference = np.concatenate(expected)
    return tuple(
        LayerSensitivity(
            layer, found[layer.name].sqnr_db, mean_kl(reference, np.concatenate(found[layer.name].logits))
        )
        for layer in layers
    )


@dataclass
class _Sums:
    """What the images have added up to for one layer."""

    logits: list[Batch]
    signal: float
    noise: float

    def add(self, logits: Batch, output: Batch, noisy: Batch) -> None:
        wide = output.astype(np.float64)
        self.logits.append(logits)
        self.signal += float(np.square(wide).sum())
        self.noise += float(np.square(noisy - wide).sum())

    @property
    def sqnr_db(self) -> float:
        if not self.signal:
            return 0.0
        return -10 * math.log10(max(self.noise / self.signal, _LEAST_NOISE))


def _require_finite(output: Batch, name: str, precision: str, image: int) -> None:
    if not np.isfinite(output).all():
        raise ExportError(
            f"{name}: NaN or infinity in {precision}, on calibration image {image} (counted from 0). The"
            " weights or the preprocessing are at fault where fp32 has it too; else take int8 out of"
            " `precisions`."
        )
