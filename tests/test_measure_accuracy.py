from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_backend import FakeClock, FakeSession
from small_onnx import classify, draw_images, write_classifier

from edgevit.backends import get_backend
from edgevit.errors import BackendError, ImagesError
from edgevit.measure.accuracy import (
    agreement,
    correct,
    expected_drop,
    mean_kl,
    paired_bootstrap,
    predict,
    top1,
)
from edgevit.target import Runtime, Target

LOGITS = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 5], [9, 1, 1]], np.float32)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [1, 4, "batch"])
def test_predict_gives_every_image_its_logits_in_order(
    tmp_path: Path, runtime: Runtime, size: int | str
) -> None:
    images = draw_images(11)
    backend, target = get_backend(runtime), Target(name="test", runtime=runtime, threads=1)
    onnx = write_classifier(tmp_path / "m.onnx", batch=size)
    done: list[int] = []
    with backend.load(backend.build(onnx, target, "fp32", tmp_path / "built"), target, "fp32") as session:
        logits = predict(session, [images[:6], images[6:7], images[7:]], progress=done.append)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, classify(images), atol=1e-5)
    assert done[-1] == 11


def test_predict_without_images_is_refused() -> None:
    with pytest.raises(ImagesError, match="at least one image to predict, got none"):
        predict(FakeSession(FakeClock()), [])


def test_predict_of_nan_names_the_image() -> None:
    batch = np.ones((3, 4), np.float32)
    batch[2, 1] = np.nan
    with pytest.raises(BackendError, match=r"NaN or infinity for image 5 "):
        predict(FakeSession(FakeClock(), input_shape=(None, 4)), [np.ones((3, 4), np.float32), batch])


def test_predict_of_feature_maps_is_refused() -> None:
    session = FakeSession(FakeClock(), logits=lambda batch: batch.reshape(1, 2, 2))
    with pytest.raises(BackendError, match=r"logits of shape \[1, classes\] .* got \[1, 2, 2\]"):
        predict(session, [np.ones((1, 4), np.float32)])


def test_top1_counts_the_right_ones() -> None:
    assert top1(LOGITS, np.array([0, 1, 2, 1])) == 0.75
    assert correct(LOGITS, np.array([0, 1, 2, 1])).tolist() == [True, True, True, False]


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, -1, 2, 1]])
def test_top1_with_labels_outside_the_head_names_the_range(labels: list[int]) -> None:
    with pytest.raises(ImagesError, match=r"do not fit the head: expected 0\.\.2 for its 3 classes, got "):
        top1(LOGITS, np.array(labels))


def test_top1_with_too_few_labels_is_refused() -> None:
    with pytest.raises(ImagesError, match=r"one label for each of 4 images, got \[3\]"):
        top1(LOGITS, np.array([0, 1, 2]))


def test_agreement_needs_only_the_same_top1() -> None:
    assert agreement(LOGITS, 2 * LOGITS + 1) == 1.0
    assert agreement(LOGITS, np.roll(LOGITS, 1, axis=0)) == 0.25


def test_agreement_of_other_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"same shape, got \[4, 3\] and \[3, 3\]"):
        agreement(LOGITS, LOGITS[:3])


def test_mean_kl_of_equal_distributions_is_zero() -> None:
    assert mean_kl(LOGITS, LOGITS + 100.0) == pytest.approx(0.0, abs=1e-12)


def test_mean_kl_equals_its_formula_and_is_not_symmetric() -> None:
    dense, slim = np.log(np.float32([[0.5, 0.5]])), np.log(np.float32([[0.9, 0.1]]))
    assert mean_kl(dense, slim) == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1), rel=1e-6)
    assert mean_kl(slim, dense) == pytest.approx(0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5), rel=1e-6)


def test_mean_kl_of_huge_logits_is_finite() -> None:
    assert np.isfinite(mean_kl(1e4 * LOGITS, LOGITS))


def test_paired_bootstrap_equals_resampling_the_images() -> None:
    rng = np.random.default_rng(0)
    dense, slim = rng.random(650) < 0.8, rng.random(650) < 0.75
    rows = rng.integers(0, 650, (4000, 650))
    drops = 100 * (dense[rows].mean(axis=1) - slim[rows].mean(axis=1))
    low, high = np.percentile(drops, [2.5, 97.5])
    found = paired_bootstrap(dense, slim, seed=0)
    assert found.low == pytest.approx(low, abs=0.35)
    assert found.high == pytest.approx(high, abs=0.35)


def test_paired_bootstrap_is_narrower_when_the_models_agree() -> None:
    rng = np.random.default_rng(0)
    dense = rng.random(650) < 0.8
    like_it = dense.copy()
    like_it[:13] = ~like_it[:13]
    other = rng.permutation(dense)
    near, far = paired_bootstrap(dense, like_it, seed=0), paired_bootstrap(dense, other, seed=0)
    assert near.high - near.low < (far.high - far.low) / 3


def test_paired_bootstrap_of_the_same_model_is_exactly_zero() -> None:
    right = np.array([True, False, True])
    found = paired_bootstrap(right, right, seed=0)
    assert (found.low, found.high) == (0.0, 0.0)


def test_paired_bootstrap_of_a_model_that_lost_all_is_a_hundred_points() -> None:
    found = paired_bootstrap(np.full(9, True), np.full(9, False), seed=0)
    assert (found.low, found.high) == (100.0, 100.0)


def test_paired_bootstrap_of_other_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the same images for both, got \[3\] and \[2\]"):
        paired_bootstrap(np.full(3, True), np.full(2, True), seed=0)


def test_expected_drop_is_what_the_reference_thinks_of_the_other_class() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], np.float32)
    other = np.array([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]], np.float32)
    assert expected_drop(np.log(probabilities), other) == pytest.approx(100 * (0.0 + 0.1) / 2, abs=1e-4)
    assert expected_drop(np.log(probabilities), np.log(probabilities)) == 0.0


def test_expected_drop_of_other_images_is_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        expected_drop(np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float32))
