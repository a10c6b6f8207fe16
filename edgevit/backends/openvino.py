"""Build OpenVINO IR and run it on OpenVINO's CPU plugin in fp32 or bf16.

The IR is one for both precisions: its weights are those of the ONNX file, and the precision is asked of the
plugin when the IR is loaded. Throughput settings are not offered; edgevit times one image stream at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.base import Session, Shape, require_batch, require_file, require_precision
from edgevit.errors import BackendError, BackendUnavailableError
from edgevit.target import Precision, Target

if TYPE_CHECKING:
    import openvino as ov

# What OpenVINO's readers say of a file that was cut short or is no model.
_BROKEN = (
    "can't be parsed",
    "Unable to read the model",
    "tags mismatch",
    "Error parsing",
    "No document element",
)
_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}


class OpenVINO:
    """Backend for OpenVINO."""

    def check(self) -> None:
        """Make sure that OpenVINO is installed; see `Backend.check`."""
        _import_openvino()

    def versions(self) -> dict[str, str]:
        """Return OpenVINO's version; see `Backend.versions`."""
        return {"openvino": str(_import_openvino().__version__)}

    def build(self, onnx: Path, target: Target, precision: Precision, out: Path) -> Path:
        """Write `model.xml` and `model.bin`, weights as they are in `onnx`; see `Backend.build`."""
        require_precision("openvino", precision, tuple(_HINTS))
        require_file("openvino", onnx)
        runtime = _import_openvino()
        artefact = out / "model.xml"
        out.mkdir(parents=True, exist_ok=True)
        with _mapped_errors(runtime, onnx):
            model = runtime.Core().read_model(onnx)
            _rename_layers_(model)
            runtime.save_model(model, artefact, compress_to_fp16=False)
        return artefact

    def load(self, artefact: Path, target: Target, precision: Precision) -> Session:
        """Compile the IR (or an ONNX file) for one request at a time; see `Backend.load`."""
        require_precision("openvino", precision, tuple(_HINTS))
        require_file("openvino", artefact)
        runtime = _import_openvino()
        core = runtime.Core()
        device = target.device.upper()
        require_device(device, core.available_devices)
        if precision == "bf16":
            with _mapped_errors(runtime, artefact):
                name = str(core.get_property(device, "FULL_DEVICE_NAME"))
                capabilities = list(core.get_property(device, "OPTIMIZATION_CAPABILITIES"))
            require_bf16(name, capabilities)
        config: dict[str, str | int] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
        }
        if target.threads:
            config["INFERENCE_NUM_THREADS"] = target.threads
        with _mapped_errors(runtime, artefact):
            compiled = core.compile_model(core.read_model(artefact), device, config)
            return _Session(runtime, artefact, compiled)


class _Session:
    """One compiled model with one infer request, which every run uses again."""

    def __init__(self, runtime: ModuleType, artefact: Path, compiled: ov.CompiledModel) -> None:
        if len(compiled.inputs) != 1:
            names = ", ".join(port.any_name for port in compiled.inputs)
            raise BackendError(
                f"{artefact}: expected a model with one input, got {len(compiled.inputs)}: {names}"
            )
        self._runtime = runtime
        self._artefact = artefact
        self._request: ov.InferRequest | None = compiled.create_infer_request()
        self._input_shape: Shape = tuple(
            None if size.is_dynamic else size.get_length() for size in compiled.input(0).partial_shape
        )
        self._output_names = tuple(port.any_name for port in compiled.outputs)
        self._input = np.empty(0, np.float32)  # the request's own input tensor, once its shape is known

    @property
    def input_shape(self) -> Shape:
        """Shape of the input; see `Session.input_shape`."""
        return self._input_shape

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs; see `Session.output_names`."""
        return self._output_names

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Copy `batch` into the request's tensor, infer, and copy the first output; see `Session.run`."""
        request = self._open()
        if batch.shape != self._input.shape or batch.dtype != self._input.dtype:
            self._fit_input_(request, batch)
        # Small models run in 0.1 ms: the way here and back is kept to a few microseconds.
        try:
            self._input[:] = batch
            request.infer()
            return np.array(request.get_output_tensor(0).data, dtype=np.float32)
        except Exception as exc:
            raise _as_backend_error(self._runtime, self._artefact, exc) from exc

    def _fit_input_(self, request: ov.InferRequest, batch: NDArray[np.float32]) -> None:
        """Give the request's input tensor the shape of `batch`, if the model takes it."""
        require_batch(self._artefact, batch, self._input_shape)
        with _mapped_errors(self._runtime, self._artefact):
            tensor = request.get_input_tensor()
            if None in self._input_shape:
                tensor.shape = batch.shape
            if tensor.data.dtype != np.float32:
                raise BackendError(f"{self._artefact}: expected a float32 input, got {tensor.data.dtype}")
            self._input = tensor.data

    def _open(self) -> ov.InferRequest:
        if self._request is None:
            raise ValueError(f"{self._artefact}: this session was left; load the artefact again")
        return self._request

    def device(self) -> dict[str, str]:
        """Read the compiled model's own settings; see `Session.device`."""
        request = self._open()
        with _mapped_errors(self._runtime, self._artefact):
            compiled = request.get_compiled_model()
            device = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
            return {
                "device": device,
                "name": str(self._runtime.Core().get_property(device, "FULL_DEVICE_NAME")),
                "threads": str(compiled.get_property("INFERENCE_NUM_THREADS")),
                "streams": str(compiled.get_property("NUM_STREAMS")),
                "precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
                "pinning": str(compiled.get_property("ENABLE_CPU_PINNING")).lower(),
            }

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the request, and with it the compiled model, which frees their memory and threads."""
        self._input = np.empty(0, np.float32)
        self._request = None


def require_device(device: str, available: list[str]) -> None:
    """Refuse a device that OpenVINO does not see.

    Raises:
        BackendUnavailableError: `device` is not among `available` (`GPU` also fits `GPU.0`).
    """
    if not any(device in (seen, seen.split(".")[0]) for seen in available):
        raise BackendUnavailableError(
            f"openvino: expected the device {device}, found {', '.join(available) or 'none'}."
            " Install the device's driver, or choose a target whose device is here."
        )


def require_bf16(name: str, capabilities: list[str]) -> None:
    """Refuse bf16 where OpenVINO would quietly compute in fp32.

    Raises:
        BackendUnavailableError: `capabilities` (OPTIMIZATION_CAPABILITIES) lacks BF16.
    """
    if "BF16" not in capabilities:
        raise BackendUnavailableError(
            f"openvino: bf16 needs a CPU with the flag avx512_bf16 or amx_bf16; {name} has neither and offers"
            f' {", ".join(capabilities)}. Use precisions = ["fp32"], or a target with such a CPU.'
        )


def _import_openvino() -> ModuleType:
    try:
        import openvino
    except ImportError as exc:
        raise BackendUnavailableError(
            f"openvino: not installed here ({exc}). Get it with: pip install openvino"
        ) from exc
    runtime: ModuleType = openvino
    return runtime


@contextmanager
def _mapped_errors(runtime: ModuleType, path: Path) -> Iterator[None]:
    """Turn whatever OpenVINO raises into a BackendError; it raises RuntimeError for most things."""
    try:
        yield
    except BackendError:
        raise
    except Exception as exc:
        raise _as_backend_error(runtime, path, exc) from exc


def _as_backend_error(runtime: ModuleType, path: Path, exc: Exception) -> BackendError:
    text = " ".join(line.strip() for line in str(exc).splitlines() if line.strip())
    return BackendError(
        f"{path}: OpenVINO {runtime.__version__} failed. Its own words: {text}{_advice(path, text)}"
    )


def _advice(path: Path, text: str) -> str:
    """Say what the known texts mean: a model file that was cut short or is none."""
    if any(sign in text for sign in _BROKEN):
        return f" The file ({path.stat().st_size} bytes) is truncated or no model: build it again."
    if "bin file" in text:
        return f" {path.with_suffix('.bin').name} is missing or truncated: build it again."
    return ""


def _rename_layers_(model: ov.Model) -> None:
    """Name the layers that have no name in the ONNX file by their order in the graph.

    OpenVINO numbers them with a counter of the process, so the second IR written by one process would differ
    from the first.
    """
    layers = model.get_ordered_ops()
    unnamed = [layer for layer in layers if layer.get_friendly_name() == layer.get_name()]
    taken = {layer.get_friendly_name() for layer in layers}
    taken -= {layer.get_friendly_name() for layer in unnamed}
    numbers: Counter[str] = Counter()
    for layer in unnamed:
        kind = layer.get_type_name()
        while (name := f"{kind}.{numbers[kind]}") in taken:
            numbers[kind] += 1
        numbers[kind] += 1
        layer.set_friendly_name(name)
