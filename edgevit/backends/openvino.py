"""Build OpenVINO IR and run it on OpenVINO's CPU plugin in fp32, fp16, bf16 or int8.

The IR has the precision of the ONNX file: fp32, fp16 or int8. What the plugin computes in is asked of it when
the IR is loaded, as it would compute an fp16 graph in fp32, too. Throughput settings are not offered; edgevit
times one image stream at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgevit.backends.base import Session, require_file, require_kind, require_precision
from edgevit.backends.session import open_session, runtime_errors
from edgevit.board import Installed, Options, has_device, read_installed
from edgevit.errors import BackendUnavailableError
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
_HINTS: dict[Precision, str] = {
    "fp32": "f32",
    "fp16": "f16",
    "bf16": "bf16",
    "int8": "f32",
    "int8-bf16": "bf16",
}
_HARDWARE = {
    "bf16": "of x86 CPUs, one with avx512_bf16 or amx_bf16",
    "f16": "an Arm CPU, or of x86 CPUs one with avx512_fp16 or amx_fp16",
}
"""Of each hint that the plugin would quietly answer with fp32: devices that follow it."""


class OpenVINO:
    """Backend for OpenVINO."""

    precisions: tuple[Precision, ...] = tuple(_HINTS)

    def check(self) -> None:
        """Make sure that OpenVINO is installed; see `Backend.check`."""
        _import_openvino()

    def versions(self) -> dict[str, str]:
        """Return OpenVINO's version; see `Backend.versions`."""
        return {"openvino": str(_import_openvino().__version__)}

    def build(self, onnx: Path, target: Target, precision: Precision, out: Path) -> Path:
        """Write `model.xml` and `model.bin`, weights as they are in `onnx`; see `Backend.build`."""
        require_precision("openvino", precision, self.precisions)
        require_file("openvino", onnx)
        runtime = _import_openvino()
        artefact = out / "model.xml"
        out.mkdir(parents=True, exist_ok=True)
        with runtime_errors("openvino", onnx, self.advice):
            model = runtime.Core().read_model(onnx)
            _rename_layers_(model)
            runtime.save_model(model, artefact, compress_to_fp16=False)
        return artefact

    def options(self, target: Target, precision: Precision) -> Options:
        """Ask for one request at a time, in the target's threads; see `Backend.options`."""
        require_precision("openvino", precision, self.precisions)
        settings: dict[str, str | int] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
        }
        if target.threads:
            settings["INFERENCE_NUM_THREADS"] = target.threads
        return Options("openvino", target.device.upper(), settings)

    def require(self, installed: Installed, target: Target, precision: Precision) -> None:
        """Refuse a device that OpenVINO does not see, or that lacks bf16 or fp16; see `Backend.require`."""
        device = target.device.upper()
        require_device(device, installed.devices)
        if _HINTS[precision] in _HARDWARE:
            require_capability(_HINTS[precision], installed.name or device, installed.capabilities)

    def load(self, artefact: Path, target: Target, precision: Precision) -> Session:
        """Compile the IR (or an ONNX file) for one request at a time; see `Backend.load`."""
        options = self.options(target, precision)
        require_file("openvino", artefact)
        require_kind("openvino", artefact, (".xml", ".onnx"))
        _import_openvino()
        with runtime_errors("openvino", artefact, self.advice):
            installed = read_installed("openvino", options.device)
        self.require(installed, target, precision)
        return open_session(artefact, options, self.advice)

    def advice(self, path: Path, text: str) -> str:
        """Say what the known texts mean: a model file that was cut short or is none; see `Backend.advice`."""
        if any(sign in text for sign in _BROKEN):
            return f" The file ({path.stat().st_size} bytes) is truncated or no model: build it again."
        if "bin file" in text:
            return f" {path.with_suffix('.bin').name} is missing or truncated: build it again."
        return ""


def require_device(device: str, available: Sequence[str]) -> None:
    """Refuse a device that OpenVINO does not see.

    Raises:
        BackendUnavailableError: `device` is not among `available` (`GPU` also fits `GPU.0`).
    """
    if not has_device(device, available):
        raise BackendUnavailableError(
            f"openvino: expected the device {device}, found {', '.join(available) or 'none'}."
            " Install the device's driver, or choose a target whose device is here."
        )


def require_capability(hint: str, name: str, capabilities: Sequence[str]) -> None:
    """Refuse bf16 or fp16 where OpenVINO would quietly compute in fp32.

    Args:
        hint: "bf16" or "f16", in OpenVINO's words.
        name: of the device.
        capabilities: what it computes in (OPTIMIZATION_CAPABILITIES).

    Raises:
        BackendUnavailableError: `capabilities` lacks the type.
    """
    wanted = "fp16" if hint == "f16" else hint
    if wanted.upper() not in capabilities:
        raise BackendUnavailableError(
            f"openvino: expected a device that computes in {wanted}, {name} offers {', '.join(capabilities)}."
            f' Use "fp32" or "int8", or another device: {_HARDWARE[hint]}.'
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
