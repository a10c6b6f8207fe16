"""Run ONNX files as they are with ONNX Runtime on the CPU, in the precision that the graph has.

The artefact is the ONNX file itself: ONNX Runtime optimises it for the CPU at hand when it is loaded, and a
graph that it had saved after that would run on this kind of CPU only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.base import Session, Shape, require_batch, require_file, require_precision
from edgevit.errors import BackendError, BackendUnavailableError
from edgevit.target import Precision, Target

if TYPE_CHECKING:
    import onnxruntime as ort

_OFFERED: tuple[Precision, ...] = ("fp32",)
_PROVIDER = "CPUExecutionProvider"


class OnnxRuntime:
    """Backend for ONNX Runtime's CPU execution provider."""

    def check(self) -> None:
        """Make sure that ONNX Runtime is installed; see `Backend.check`."""
        _import_onnxruntime()

    def versions(self) -> dict[str, str]:
        """Return ONNX Runtime's version; see `Backend.versions`."""
        return {"onnxruntime": str(_import_onnxruntime().__version__)}

    def build(self, onnx: Path, target: Target, precision: Precision, out: Path) -> Path:
        """Copy `onnx` to `model.onnx`, its external data along with it; see `Backend.build`."""
        require_precision("onnxruntime", precision, _OFFERED)
        require_file("onnxruntime", onnx)
        runtime = _import_onnxruntime()
        artefact = out / "model.onnx"
        out.mkdir(parents=True, exist_ok=True)
        with _mapped_errors(runtime, onnx):
            locations = _external_files(onnx)
        for location in locations:
            require_file("onnxruntime", onnx.parent / location)
            (out / location).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(onnx.parent / location, out / location)
        shutil.copyfile(onnx, artefact)
        return artefact

    def load(self, artefact: Path, target: Target, precision: Precision) -> Session:
        """Optimise the graph for this CPU and keep it ready to run; see `Backend.load`."""
        require_precision("onnxruntime", precision, _OFFERED)
        require_file("onnxruntime", artefact)
        if target.device != "cpu":
            raise BackendUnavailableError(
                f"onnxruntime: expected the device cpu, got {target.device}. Choose another runtime for it."
            )
        runtime = _import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = target.threads  # 0 is ONNX Runtime's word, too, for all cores
        options.inter_op_num_threads = 1
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Threads of a session that just ran would spin on and slow the next session's first milliseconds:
        # 1.58 instead of 1.32 ms for a small ViT timed beside another. Within a run they spin as by default.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3  # errors only: warnings would run into the progress bars
        with _mapped_errors(runtime, artefact):
            session = runtime.InferenceSession(artefact, options, providers=[_PROVIDER])
            return _Session(runtime, artefact, session, target.threads)


class _Session:
    """One inference session; every run gets a new output array from ONNX Runtime."""

    def __init__(
        self, runtime: ModuleType, artefact: Path, session: ort.InferenceSession, threads: int
    ) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1:
            names = ", ".join(port.name for port in inputs)
            raise BackendError(f"{artefact}: expected a model with one input, got {len(inputs)}: {names}")
        self._runtime = runtime
        self._artefact = artefact
        self._session: ort.InferenceSession | None = session
        self._threads = threads
        self._input_name = str(inputs[0].name)
        self._input_shape: Shape = tuple(size if isinstance(size, int) else None for size in inputs[0].shape)
        self._output_names = tuple(str(port.name) for port in outputs)

    @property
    def input_shape(self) -> Shape:
        """Shape of the input; see `Session.input_shape`."""
        return self._input_shape

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs; see `Session.output_names`."""
        return self._output_names

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the graph on `batch`; see `Session.run`."""
        require_batch(self._artefact, batch, self._input_shape)
        session = self._open()
        with _mapped_errors(self._runtime, self._artefact):
            (output,) = session.run([self._output_names[0]], {self._input_name: batch})
            return np.asarray(output, dtype=np.float32)

    def device(self) -> dict[str, str]:
        """Say what the session was given, as ONNX Runtime reports no more; see `Session.device`."""
        providers = self._open().get_providers()
        return {
            "device": "CPU",
            "providers": ", ".join(providers),
            "threads": str(self._threads) if self._threads else f"all of {os.cpu_count()}",
            "precision": "f32",
        }

    def _open(self) -> ort.InferenceSession:
        if self._session is None:
            raise ValueError(f"{self._artefact}: this session was left; load the artefact again")
        return self._session

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the inference session, which frees its memory and threads."""
        self._session = None


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as exc:
        raise BackendUnavailableError(
            f"onnxruntime: not installed here ({exc}). Get it with: pip install onnxruntime"
        ) from exc
    runtime: ModuleType = onnxruntime
    return runtime


@contextmanager
def _mapped_errors(runtime: ModuleType, path: Path) -> Iterator[None]:
    """Turn whatever ONNX Runtime or onnx raises into a BackendError; their classes share only Exception."""
    try:
        yield
    except BackendError:
        raise
    except Exception as exc:
        text = " ".join(str(exc).split())
        raise BackendError(
            f"{path}: ONNX Runtime {runtime.__version__} failed. Its own words: {text}{_advice(path, text)}"
        ) from exc


def _advice(path: Path, text: str) -> str:
    """Say what the known texts mean: a model file that was cut short or is none."""
    if any(sign in text for sign in ("parsing", "INVALID_PROTOBUF", "No graph was found")):
        return f" The file ({path.stat().st_size} bytes) is truncated or no model: build it again."
    if "external" in text.lower():
        return " A file with the model's external data is missing or truncated: keep it beside the .onnx."
    return ""


def _external_files(onnx: Path) -> list[PurePosixPath]:
    """Return the files, relative to the model's folder, that hold weights outside the ONNX file, sorted."""
    from onnx import TensorProto, load

    graph = load(onnx, load_external_data=False).graph
    locations = {
        PurePosixPath(entry.value)
        for tensor in graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in locations:
        if location.is_absolute() or ".." in location.parts:
            raise BackendError(
                f"{onnx}: expected external data beside the file, got {location}. Export it again."
            )
    return sorted(locations)
