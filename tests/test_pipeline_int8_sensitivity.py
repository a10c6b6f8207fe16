from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pytest

from edgevit.errors import ExportError
from edgevit.export.int8_layers import Int8Layer
from edgevit.export.parity import Batch
from edgevit.measure.accuracy import mean_kl
from edgevit.pipeline.int8_sensitivity import measure_layers

LAYERS = [Int8Layer("exact", 10), Int8Layer("noisy", 20)]
IMAGES = [np.array([[1.0, 2.0]], np.float32), np.array([[2.0, -1.0]], np.float32)]


class FakeRunner:
    """A model of two layers: one loses nothing in int8, the other a tenth of all it puts out."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    def run(self, image: Batch, in_int8: Collection[str], outputs: Sequence[str] = ()) -> list[Batch]:
        noisy = image * np.float32(0.9 if "noisy" in in_int8 else 1.0)
        if self.broken in in_int8:
            noisy = noisy * np.float32(np.nan)
        return [noisy, *({"exact": image, "noisy": noisy}[name] for name in outputs)]


def test_sensitivity_is_noise_at_the_layer_and_kl_of_the_answers() -> None:
    exact, noisy = measure_layers(LAYERS, FakeRunner(), IMAGES)
    assert [one.layer for one in (exact, noisy)] == LAYERS
    assert noisy.sqnr_db == pytest.approx(20.0, abs=1e-4)
    logits = np.concatenate(IMAGES)
    assert noisy.kl == pytest.approx(mean_kl(logits, logits * np.float32(0.9)))


def test_sensitivity_of_a_layer_that_loses_nothing_is_finite() -> None:
    exact, _ = measure_layers(LAYERS, FakeRunner(), IMAGES)
    assert (exact.sqnr_db, exact.kl) == (200.0, 0.0)


def test_sensitivity_of_nothing_but_zeros_is_finite() -> None:
    zeros = [np.zeros((1, 2), np.float32)]
    assert [one.sqnr_db for one in measure_layers(LAYERS, FakeRunner(), zeros)] == [0.0, 0.0]


def test_sensitivity_names_a_layer_that_computes_nan() -> None:
    with pytest.raises(ExportError, match=r"noisy: NaN or infinity in int8, on calibration image 0"):
        measure_layers(LAYERS, FakeRunner("noisy"), IMAGES)


def test_sensitivity_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="one image or more"):
        measure_layers(LAYERS, FakeRunner(), [])
