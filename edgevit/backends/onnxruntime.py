"""Run ONNX files with ONNX Runtime on the CPU, in the precision that the graph has.

The artefact is the ONNX file itself, an int8 one in the form that the integer kernels take: ONNX Runtime
optimises it for the CPU at hand when it is loaded, and a graph that it had saved after that would run on this
kind of CPU only.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

from edgevit.backends.base import Session, require_file, require_kind, require_precision
from edgevit.backends.files import external_files
from edgevit.backends.integer_form import write_integer_form
from edgevit.backends.session import open_session
from edgevit.board import GRAPH_PRECISION, Installed, Options
from edgevit.errors import BackendUnavailableError
from edgevit.target import Precision, Target

_PROVIDER = "CPUExecutionProvider"
_NAMES: dict[Precision, str] = {"fp32": "f32", "fp16": "f16"}
"""As OpenVINO calls them, so that reports have one word for each."""


class OnnxRuntime:
    """Backend for ONNX Runtime's CPU execution provider."""

    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")

    def check(self) -> None:
        """Make sure that ONNX Runtime is installed; see `Backend.check`."""
        _import_onnxruntime()

    def versions(self) -> dict[str, str]:
        """Return ONNX Runtime's version; see `Backend.versions`."""
        return {"onnxruntime": str(_import_onnxruntime().__version__)}

    def build(self, onnx: Path, target: Target, precision: Precision, out: Path) -> Path:
        """Copy `onnx` and external data to `model.onnx`, int8 in its integer form; see `Backend.build`."""
        require_precision("onnxruntime", precision, self.precisions)
        require_file("onnxruntime", onnx)
        _import_onnxruntime()
        artefact = out / "model.onnx"
        out.mkdir(parents=True, exist_ok=True)
        if precision == "int8":
            write_integer_form(onnx, artefact)
            return artefact
        for location in external_files(onnx):
            require_file("onnxruntime", onnx.parent / location)
            (out / location).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(onnx.parent / location, out / location)
        shutil.copyfile(onnx, artefact)
        return artefact

    def options(self, target: Target, precision: Precision) -> Options:
        """Ask for every optimisation, and one operator at a time; see `Backend.options`."""
        require_precision("onnxruntime", precision, self.precisions)
        if target.device != "cpu":
            raise BackendUnavailableError(
                f"onnxruntime: expected the device cpu, got {target.device}. Choose another runtime for it."
            )
        settings: dict[str, str | int] = {
            "intra_op_num_threads": target.threads,  # 0 is ONNX Runtime's word, too, for all cores
            "inter_op_num_threads": 1,
            "execution_mode": "ORT_SEQUENTIAL",
            "graph_optimization_level": "ORT_ENABLE_ALL",
            # Threads of a session that just ran would spin on and slow the next session's first milliseconds:
            # 1.58 instead of 1.32 ms for a small ViT timed beside another. Within a run they spin by default.
            "session.force_spinning_stop": "1",
            # Without VNNI, sums of u8 by s8 products saturate at 16 bits; with weights in u8 none does.
            "session.x64quantprecision": "1",
            "log_severity_level": 3,  # errors only: warnings would run into the progress bars
            GRAPH_PRECISION: _NAMES.get(precision, precision),
        }
        return Options("onnxruntime", _PROVIDER, settings)

    def require(self, installed: Installed, target: Target, precision: Precision) -> None:
        """Accept any installation: each has the CPU; see `Backend.require`."""

    def load(self, artefact: Path, target: Target, precision: Precision) -> Session:
        """Optimise the graph for this CPU and keep it ready to run; see `Backend.load`."""
        options = self.options(target, precision)
        require_file("onnxruntime", artefact)
        require_kind("onnxruntime", artefact, (".onnx",))
        _import_onnxruntime()
        return open_session(artefact, options, self.advice)

    def advice(self, path: Path, text: str) -> str:
        """Say what the known texts mean: a model file that was cut short or is none; see `Backend.advice`."""
        if any(sign in text for sign in ("parsing", "INVALID_PROTOBUF", "No graph was found")):
            return f" The file ({path.stat().st_size} bytes) is truncated or no model: build it again."
        if "external" in text.lower():
            return " A file with the model's external data is missing or truncated: keep it beside the .onnx."
        return ""


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as exc:
        raise BackendUnavailableError(
            f"onnxruntime: not installed here ({exc}). Get it with: pip install onnxruntime"
        ) from exc
    runtime: ModuleType = onnxruntime
    return runtime
