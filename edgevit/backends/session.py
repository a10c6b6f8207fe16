"""Artefacts as `board.py` loads and runs them, with errors that name the file and say what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.base import Session, require_batch
from edgevit.board import Model, Options, Shape, describe, load_model
from edgevit.engine import TensorRTError
from edgevit.errors import BackendError

Advice = Callable[[Path, str], str]
"""`Backend.advice` of the runtime at hand."""


def open_session(artefact: Path, options: Options, advice: Advice) -> Session:
    """Load an artefact with the options that its backend decided.

    Raises:
        BackendError: the runtime refuses it, or it has not one input.
    """
    with runtime_errors(options.runtime, artefact, advice):
        model = load_model(artefact, options)
    return ModelSession(artefact, model, options.runtime, advice)


@contextmanager
def runtime_errors(runtime: str, path: Path, advice: Advice) -> Iterator[None]:
    """Turn whatever a runtime raises into a BackendError; their classes share only Exception."""
    try:
        yield
    except BackendError:
        raise
    except Exception as exc:
        raise _as_backend_error(runtime, path, exc, advice) from exc


def _as_backend_error(runtime: str, path: Path, error: Exception, advice: Advice) -> BackendError:
    if isinstance(error, TensorRTError):  # engine.py's own words, which say what to do
        return BackendError(f"{path}: {error}")
    text = describe(error, runtime)
    return BackendError(f"{path}: {text}{advice(path, text)}")


def _nothing() -> None:
    """Free nothing more: most models go when the last reference does."""


def _untimed(runs: int) -> list[float]:
    """Time nothing: most runtimes have no clock of the device's own."""
    return []


class ModelSession:
    """A loaded model that refuses a batch that it does not take; see `Session`."""

    def __init__(
        self,
        artefact: Path,
        model: Model,
        runtime: str,
        advice: Advice,
        *,
        close: Callable[[], None] = _nothing,
        device_ms: Callable[[int], list[float]] = _untimed,
    ) -> None:
        """Take over a model.

        Args:
            artefact: what it was loaded from.
            model: what runs.
            runtime: whose model it is, for errors.
            advice: what the runtime's texts mean.
            close: frees what the model holds besides its memory.
            device_ms: times so many runs on the device alone; see `Session.device_ms`.
        """
        self._artefact = artefact
        self._model: Model | None = model
        self._runtime, self._advice = runtime, advice
        self._close, self._device_ms = close, device_ms
        self._fits: tuple[int, ...] | None = None

    @property
    def input_shape(self) -> Shape:
        """Shape of the input; see `Session.input_shape`."""
        return self._open().input_shape

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs; see `Session.output_names`."""
        return self._open().output_names

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the model on `batch`; see `Session.run`."""
        model = self._open()
        if batch.shape != self._fits or batch.dtype != np.float32:
            require_batch(self._artefact, batch, model.input_shape)
            self._fits = batch.shape
        try:
            return model.run(batch)
        except Exception as exc:
            raise self._failure(exc) from exc

    def device_ms(self, runs: int) -> list[float]:
        """Time runs on the device alone; see `Session.device_ms`."""
        self._open()
        try:
            return self._device_ms(runs)
        except Exception as exc:
            raise self._failure(exc) from exc

    def device(self) -> dict[str, str]:
        """Say what the runtime really uses; see `Session.device`."""
        try:
            return self._open().device()
        except Exception as exc:
            raise self._failure(exc) from exc

    def _failure(self, error: Exception) -> BackendError:
        return _as_backend_error(self._runtime, self._artefact, error, self._advice)

    def _open(self) -> Model:
        if self._model is None:
            raise ValueError(f"{self._artefact}: this session was left; load the artefact again")
        return self._model

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the model, which frees its memory and threads."""
        if self._model is not None:
            self._close()
        self._model = None
