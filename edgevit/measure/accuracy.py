"""Accuracy of an artefact, computed through the session that was timed.

Shapes: n images, classes C; logits are float32 [n, C].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.base import Session
from edgevit.errors import BackendError, ImagesError
from edgevit.images import check_labels
from edgevit.measure.statistics import Interval, interval_of

Logits = NDArray[np.float32]

_REPLICATES = 10_000


def predict(
    session: Session,
    batches: Iterable[NDArray[np.float32]],
    *,
    progress: Callable[[int], None] = lambda images: None,
) -> Logits:
    """Compute the logits of all images, [n, C], in their order.

    An artefact of fixed batch size gets what it takes: larger batches are split, and a short one is filled up
    with its last image, whose surplus logits are dropped.

    Args:
        session: the loaded artefact.
        batches: preprocessed images, each [B, channels, height, width] with any B >= 1.
        progress: called with the number of images done so far.

    Raises:
        BackendError: a run failed, or an output is no finite [B, C] matrix.
        ImagesError: there is no image.
    """
    parts: list[Logits] = []
    done = 0
    for batch in batches:
        for chunk in _chunks(batch, session.input_shape[0]):
            logits = _predict_chunk(session, chunk)
            _require_logits(logits, len(chunk), done)
            parts.append(logits)
            done += len(chunk)
            progress(done)
    if not parts:
        raise ImagesError("expected at least one image to predict, got none. Check the image set.")
    return np.concatenate(parts)


def correct(logits: Logits, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say for each image whether its top-1 class is its label.

    Raises:
        ImagesError: not one label per image, or a label that is no class of the head.
    """
    count, classes = logits.shape
    if labels.shape != (count,):
        raise ImagesError(f"expected one label for each of {count} images, got {list(labels.shape)}.")
    check_labels(labels, classes)
    hits: NDArray[np.bool_] = logits.argmax(axis=1) == labels
    return hits


def top1(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Return the share of images whose top-1 class is their label, 0..1.

    Raises:
        ImagesError: not one label per image, or a label that is no class of the head.
    """
    return float(correct(logits, labels).mean())


def agreement(dense: Logits, slim: Logits) -> float:
    """Return the share of images for which both give the same top-1 class, 0..1.

    Raises:
        ValueError: the two differ in shape.
    """
    _require_same_shape(dense, slim)
    return float((dense.argmax(axis=1) == slim.argmax(axis=1)).mean())


def mean_kl(dense: Logits, slim: Logits) -> float:
    """Return the mean over images of KL(softmax(dense) || softmax(slim)) in nats, computed in float64.

    Raises:
        ValueError: the two differ in shape.
    """
    _require_same_shape(dense, slim)
    log_dense, log_slim = _log_softmax(dense), _log_softmax(slim)
    return float((np.exp(log_dense) * (log_dense - log_slim)).sum(axis=1).mean())


def expected_drop(reference: Logits, candidate: Logits) -> float:
    """Return the points of top-1 that the reference, by its own probabilities, expects the candidate to lose.

    Where both give one class, nothing is lost; elsewhere the reference takes its own class to be right with
    probability p and the candidate's with q, and expects to lose p - q >= 0. No labels are needed, and the
    figure is steadier than with them: of 256 images at an agreement of 0.98 five differ, and labels put
    whole images of 0.4 points on either side.

    Raises:
        ValueError: the two differ in shape.
    """
    _require_same_shape(reference, candidate)
    rows, own, other = np.arange(len(reference)), reference.argmax(axis=1), candidate.argmax(axis=1)
    probabilities = np.exp(_log_softmax(reference))
    return 100.0 * float((probabilities[rows, own] - probabilities[rows, other]).mean())


def paired_bootstrap(
    correct_dense: NDArray[np.bool_], correct_slim: NDArray[np.bool_], seed: int
) -> Interval:
    """Estimate the 95 % interval of the drop, top-1 of dense minus that of slim, in percentage points.

    Images are drawn with replacement and both models are scored on the same draw. An image adds -1, 0 or 1 to
    the drop, so a draw is one multinomial count of the three, cheap however many images there are.

    Args:
        correct_dense: whether each image was right, [n].
        correct_slim: the same of the slim model, same images in the same order.
        seed: of the draws.

    Raises:
        ValueError: the two differ in shape, or are empty.
    """
    if correct_dense.shape != correct_slim.shape or correct_dense.ndim != 1 or not correct_dense.size:
        raise ValueError(
            "expected the same images for both,"
            f" got {list(correct_dense.shape)} and {list(correct_slim.shape)}"
        )
    lost = np.mean(correct_dense & ~correct_slim)
    won = np.mean(~correct_dense & correct_slim)
    count = correct_dense.size
    draws = np.random.default_rng(seed).multinomial(count, [lost, won, 1.0 - lost - won], size=_REPLICATES)
    return interval_of(100.0 * (draws[:, 0] - draws[:, 1]) / count)


def _chunks(batch: NDArray[np.float32], size: int | None) -> Iterable[NDArray[np.float32]]:
    step = size or len(batch)
    return (batch[start : start + step] for start in range(0, len(batch), step or 1))


def _predict_chunk(session: Session, chunk: NDArray[np.float32]) -> Logits:
    missing = (session.input_shape[0] or len(chunk)) - len(chunk)
    if not missing:
        return session.run(chunk)
    filled = np.concatenate([chunk, np.repeat(chunk[-1:], missing, axis=0)])
    return session.run(filled)[: len(chunk)]


def _require_logits(logits: Logits, count: int, first: int) -> None:
    if logits.ndim != 2 or len(logits) != count:
        raise BackendError(
            f"expected logits of shape [{count}, classes] from the first output, got {list(logits.shape)}."
            " Only classifiers have an accuracy; leave out [evaluation] for other heads."
        )
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if broken.size:
        raise BackendError(
            f"expected finite logits, got NaN or infinity for image {first + broken[0]} (counted from 0)."
            " The artefact overflows in this precision: use fp32, or look at the preprocessing."
        )


def _require_same_shape(dense: Logits, slim: Logits) -> None:
    if dense.shape != slim.shape:
        raise ValueError(f"expected logits of the same shape, got {list(dense.shape)} and {list(slim.shape)}")


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
