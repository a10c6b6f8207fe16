"""The seam to foreign runtimes: what a backend and a loaded artefact can do.

Shapes: B batch, C channels, H and W height and width of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from edgevit.board import Installed, Options, Shape
from edgevit.errors import BackendError
from edgevit.target import Precision, Target


class Session(Protocol):
    """An artefact loaded on its device, as a context manager; leaving it frees the device's memory."""

    @property
    def input_shape(self) -> Shape:
        """Shape of the one input, [B, C, H, W] for images; B is None when the batch is dynamic."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs in the artefact's order; `run` returns the first."""
        ...

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the first output for `batch`.

        Synchronous: it returns when the output is complete. The input is copied before the computation and
        the returned array is the caller's own; no later run writes into it. One thread at a time.

        Raises:
            BackendError: the batch has another shape or type than the artefact takes, or the runtime failed.
        """
        ...

    def device_ms(self, runs: int) -> list[float]:
        """Time runs on the device alone, in ms, without copies and without the host; after a `run`.

        Empty where the runtime times nothing apart from the host, as on every CPU.

        Raises:
            BackendError: the runtime failed.
        """
        ...

    def device(self) -> dict[str, str]:
        """Say what the runtime really uses: device, threads, precision and the like, as it reports them."""
        ...

    def __enter__(self) -> Self:
        """Return the session itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free what the runtime holds."""
        ...


class Backend(Protocol):
    """Code that builds and runs artefacts for one runtime."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions that the runtime computes in; a device may lack some of them."""
        ...

    def check(self) -> None:
        """Make sure that the runtime is installed.

        Raises:
            BackendUnavailableError: it is not; the message has the command that installs it.
        """
        ...

    def versions(self) -> dict[str, str]:
        """Return the runtime's versions by name.

        Raises:
            BackendUnavailableError: the runtime is not installed.
        """
        ...

    def build(self, onnx: Path, target: Target, precision: Precision, out: Path) -> Path:
        """Write the artefact for `onnx` into the folder `out` and return the file that `load` takes.

        The same ONNX file and runtime version give byte-identical files, wherever they lie.

        Raises:
            BackendUnavailableError: the runtime is not installed.
            BackendError: the runtime does not run this precision, or cannot read the ONNX file.
        """
        ...

    def options(self, target: Target, precision: Precision) -> Options:
        """Decide what the runtime is told when it loads an artefact, here or on a board; imports no runtime.

        Raises:
            BackendUnavailableError: the runtime never runs on the device.
            BackendError: the runtime does not run this precision.
        """
        ...

    def require(self, installed: Installed, target: Target, precision: Precision) -> None:
        """Refuse an installation, here or on a board, that lacks the device or the precision.

        Raises:
            BackendUnavailableError: it does.
        """
        ...

    def advice(self, path: Path, text: str) -> str:
        """Say what a failure of the runtime means for the file `path`, where its `text` is a known one."""
        ...

    def load(self, artefact: Path, target: Target, precision: Precision) -> Session:
        """Load an artefact on the target's device with the target's threads.

        Raises:
            BackendUnavailableError: the runtime or the device is not there, or it lacks the precision.
            BackendError: the file is broken, or the runtime refuses it.
        """
        ...


def require_precision(runtime: str, precision: Precision, offered: Sequence[Precision]) -> None:
    """Refuse a precision that a backend does not run.

    Raises:
        BackendError: `precision` is not among `offered`.
    """
    if precision not in offered:
        raise BackendError(
            f"{runtime}: expected a precision among {', '.join(offered)}, got {precision}."
            " Take it out of `precisions`, or choose a target whose runtime offers it."
        )


def require_kind(runtime: str, artefact: Path, suffixes: Sequence[str]) -> None:
    """Refuse an artefact that was built for another runtime, before this one calls it broken.

    Raises:
        BackendError: `artefact` ends in none of `suffixes`.
    """
    if artefact.suffix not in suffixes:
        raise BackendError(
            f"{artefact}: expected {' or '.join(suffixes)}, which is what {runtime} loads."
            " Give the target that it was built for, or the file of this one."
        )


def require_file(runtime: str, path: Path) -> None:
    """Refuse a model file that is missing or empty, before a runtime calls it a parse error.

    Raises:
        BackendError: `path` is no file, or has no bytes.
    """
    if not path.is_file():
        raise BackendError(f"{path}: expected a model file for {runtime}, found none. Build it first.")
    if path.stat().st_size == 0:
        raise BackendError(f"{path}: expected a model file for {runtime}, got 0 bytes. Build it again.")


def require_batch(where: Path, batch: NDArray[np.float32], expected: Shape) -> None:
    """Refuse a batch that the artefact's input does not take; a runtime may broadcast it silently.

    Raises:
        BackendError: another shape than `expected` (None takes any size >= 1), or not float32.
    """
    fits = len(batch.shape) == len(expected) and all(
        got == want or (want is None and got >= 1) for got, want in zip(batch.shape, expected, strict=True)
    )
    if not fits or batch.dtype != np.float32:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise BackendError(
            f"{where}: expected a float32 batch of shape [{wanted}], got {batch.dtype} {list(batch.shape)}."
            " Preprocess the images with the model's own settings, or export with another batch size."
        )
