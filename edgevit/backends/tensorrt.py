"""Build and run engines with TensorRT 8.5 to 11 on this machine's GPU, and with TensorRT-RTX for chosen ones.

`engine.py` is the adapter to all versions. A build is a process of its own, so that a build that dies tells
its log; running is in this process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.base import Session, require_batch, require_file, require_kind, require_precision
from edgevit.backends.graph_precision import require_graph_precision
from edgevit.backends.preflight import DiedError, ask_process
from edgevit.backends.session import runtime_errors
from edgevit.board import Installed, Options, Shape
from edgevit.disk import atomic_write
from edgevit.engine import (
    ENGINE,
    RUNTIME_CACHE,
    TIMING_CACHE,
    BuildOptions,
    Cuda,
    Engine,
    NotHereError,
    import_tensorrt,
    require_fit,
)
from edgevit.errors import BackendError, BackendUnavailableError
from edgevit.target import Precision, Runtime, Target

SIDE_FILE = "model.engine.json"
"""What an engine was built from and for; beside it."""
_MEMORY_SIGNS = ("out of memory", "OutOfMemory", "CUDA_ERROR_OUT_OF_MEMORY", "Requested amount of GPU memory")


def read_gpu(runtime: Runtime) -> Installed:
    """Read what TensorRT has here: the GPU's name, and why there is none where there is none.

    Raises:
        ImportError: the runtime is not installed.
    """
    try:
        version = str(import_tensorrt(runtime).__version__)
    except NotHereError as error:
        raise ImportError(str(error)) from error
    try:
        facts = Cuda().describe()
    except NotHereError as error:
        return Installed(version, (), None, (str(error),))
    capability = facts["compute_capability"]
    return Installed(version, ("gpu",), facts["name"], (f"compute capability {capability}",))


class TensorRT:
    """Backend for TensorRT, or for TensorRT-RTX, which has the same interface."""

    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")

    def __init__(self, runtime: Runtime) -> None:
        self._runtime: Runtime = runtime

    def check(self) -> None:
        """Make sure that the Python module and its libraries are here; see `Backend.check`."""
        self.versions()

    def versions(self) -> dict[str, str]:
        """Return the version, and what an engine is built for besides; see `Backend.versions`."""
        try:
            versions: dict[str, str] = {self._runtime: str(import_tensorrt(self._runtime).__version__)}
        except NotHereError as error:
            raise BackendUnavailableError(
                f"{self._runtime}: not installed here ({error})."
                f" Get it with: pip install 'edgevit[{self._runtime}]'"
            ) from error
        try:
            return versions | _gpu_facts(Cuda().describe())
        except NotHereError:
            return versions

    def build(self, onnx: Path, target: Target, precision: Precision, out: Path) -> Path:
        """Write `model.engine`, what it was built from beside it, and the timing cache; see `Backend.build`.

        Engines of one graph differ from build to build: TensorRT chooses kernels by timing them. With the
        target's timing cache it chooses as before.
        """
        require_precision(self._runtime, precision, self.precisions)
        require_file(self._runtime, onnx)
        require_graph_precision(onnx, precision)
        self.check()
        options = build_options(target, precision)
        device = self._device_to_build_on(target)
        out.mkdir(parents=True, exist_ok=True)
        with _kernel_times(target, out):
            facts = self._build(onnx, options, out)
        (out / SIDE_FILE).write_text(json.dumps(facts | device, indent=1, sort_keys=True) + "\n")
        return out / ENGINE

    def _device_to_build_on(self, target: Target) -> dict[str, str]:
        """Return what GPU an engine is for; TensorRT-RTX builds for others than this machine's."""
        if self._runtime == "tensorrt-rtx" and target.tensorrt.compute_capabilities:
            return {"compute_capabilities": ", ".join(target.tensorrt.compute_capabilities)}
        _require_gpu_target(self._runtime, target)
        cuda = _open_cuda(self._runtime)
        _require_memory(target, *cuda.memory_mb())
        return cuda.describe()

    def _build(self, onnx: Path, options: BuildOptions, out: Path) -> dict[str, str]:
        try:
            answer = ask_process(["build", self._runtime, str(onnx), json.dumps(asdict(options)), str(out)])
        except DiedError as error:
            raise BackendError(f"{onnx}: {self._runtime} died while building: {error}") from error
        if answer["answer"] != "built":
            words = str(answer["words"])
            raise BackendError(f"{onnx}: {self._runtime} built no engine. {words}{self.advice(onnx, words)}")
        facts = answer["facts"]
        assert isinstance(facts, dict)
        return {name: str(value) for name, value in facts.items()}

    def options(self, target: Target, precision: Precision) -> Options:
        """Name the device alone: what an engine does was decided when it was built; see `Backend.options`."""
        require_precision(self._runtime, precision, self.precisions)
        _require_gpu_target(self._runtime, target)
        return Options(self._runtime, target.device, {})

    def require(self, installed: Installed, target: Target, precision: Precision) -> None:
        """Refuse a machine without a CUDA device; see `Backend.require`."""
        if not installed.devices:
            ahead = " `edgevit build` builds engines for other cards all the same, into a kit."
            raise BackendUnavailableError(
                f"{self._runtime}: expected a CUDA device, found none: {'; '.join(installed.capabilities)}."
                f"{ahead if self._runtime == 'tensorrt-rtx' else ''}"
            )

    def load(self, artefact: Path, target: Target, precision: Precision) -> Session:
        """Load an engine of this version and GPU on the first CUDA device; see `Backend.load`."""
        self.options(target, precision)
        require_file(self._runtime, artefact)
        require_kind(self._runtime, artefact, (".engine",))
        self.check()
        trt, cuda = import_tensorrt(self._runtime), _open_cuda(self._runtime)
        facts = read_side_file(artefact)
        kept = artefact.parent / RUNTIME_CACHE
        with runtime_errors(self._runtime, artefact, self.advice):
            require_fit(facts, trt, cuda.describe())
            loaded = Engine(trt, artefact.read_bytes(), cuda, kept.read_bytes() if kept.is_file() else b"")
        return _Session(artefact, loaded, cuda, facts)

    def advice(self, path: Path, text: str) -> str:
        """Say what the known texts mean; see `Backend.advice`."""
        if any(sign in text for sign in _MEMORY_SIGNS):
            return " The GPU's memory ran out: lower tensorrt.workspace_mb in the target, or the batch."
        if "timing cache" in text:
            return f" Remove {TIMING_CACHE} beside the engine."
        return ""


@contextmanager
def _kernel_times(target: Target, out: Path) -> Iterator[None]:
    """Lay the target's timing cache beside the engine for a build, and keep what the build adds to it."""
    known = Path(target.tensorrt.timing_cache) if target.tensorrt.timing_cache else None
    if known is not None and known.is_file():
        shutil.copyfile(known, out / TIMING_CACHE)
    yield
    if known is not None and not target.tensorrt.pinned and (out / TIMING_CACHE).is_file():
        atomic_write(known, (out / TIMING_CACHE).read_bytes())


def build_options(target: Target, precision: Precision) -> BuildOptions:
    """Return what an engine is built with for a target."""
    wanted = target.tensorrt
    return BuildOptions(
        precision=precision,
        workspace_mb=wanted.workspace_mb,
        batches=(1, target.batch, max(target.batch, wanted.max_batch)),
        version_compatible=wanted.version_compatible,
        hardware_compatible=wanted.hardware_compatible,
        compute_capabilities=wanted.compute_capabilities if target.runtime == "tensorrt-rtx" else (),
        pinned=wanted.pinned,
    )


def read_side_file(artefact: Path) -> dict[str, str]:
    """Return what is known of an engine; nothing where it was not built by edgevit.

    Raises:
        BackendError: the file beside the engine is damaged.
    """
    path = artefact.parent / SIDE_FILE
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_bytes())
        return {str(name): str(value) for name, value in table.items()}
    except (ValueError, AttributeError) as error:
        raise BackendError(f"{path}: cannot be read ({error}). Build the engine again.") from error


def _gpu_facts(device: dict[str, str]) -> dict[str, str]:
    """Return what decides over an engine besides TensorRT, under names that other versions have not."""
    return {"gpu": f"{device['name']}, {device['compute_capability']}", "cuda_driver": device["cuda_driver"]}


def _require_gpu_target(runtime: Runtime, target: Target) -> None:
    if target.device == "board":
        raise BackendUnavailableError(
            f"{runtime}: {target.name} is a board, and engines are built where they run. `edgevit build`"
            " writes a build kit for it; run it there, and bring its report back with"
            " `edgevit report DIR --import FILE`."
        )


def _open_cuda(runtime: Runtime) -> Cuda:
    try:
        return Cuda()
    except NotHereError as error:
        raise BackendUnavailableError(
            f"{runtime}: {error}, or choose a target whose kit is built on the board (`edgevit targets`)."
        ) from error


def _require_memory(target: Target, free_mb: int, total_mb: int) -> None:
    """Refuse to begin a build that this device has no room for.

    Raises:
        BackendError: less memory is free than the workspace that the target allows a layer.
    """
    if target.tensorrt.workspace_mb > free_mb:
        raise BackendError(
            f"{target.name}: expected {target.tensorrt.workspace_mb} MiB of GPU memory for the workspace, of"
            f" {total_mb} MiB are {free_mb} free. Lower tensorrt.workspace_mb, or close other programs."
        )


class _Session:
    """A loaded engine that refuses a batch that it does not take."""

    def __init__(self, artefact: Path, engine: Engine, cuda: Cuda, facts: dict[str, str]) -> None:
        self._artefact, self._cuda, self._facts = artefact, cuda, facts
        self._engine: Engine | None = engine

    @property
    def input_shape(self) -> Shape:
        """Shape of the input; see `Session.input_shape`."""
        return self._open().input_shape

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs; see `Session.output_names`."""
        return self._open().output_names

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the engine on `batch`; see `Session.run`."""
        engine = self._open()
        require_batch(self._artefact, batch, engine.input_shape)
        image = np.ascontiguousarray(batch)
        with runtime_errors(self._facts.get("runtime", "tensorrt"), self._artefact, lambda path, text: ""):
            data = engine.run(image.ctypes.data, image.shape)
            return np.frombuffer(data, np.float32).reshape(engine.output_shape()).copy()

    def gpu_ms(self, runs: int) -> list[float]:
        """Time runs on the GPU alone, after one `run` that says the shape: no copies, no waiting host."""
        return self._open().gpu_ms(runs)

    def device(self) -> dict[str, str]:
        """Say what the engine runs on and with; see `Session.device`."""
        kept = ("version", "precision", "types", "onnx_sha256", "timing_cache_sha256")
        engine = self._open()
        facts = {name: self._facts[name] for name in kept if name in self._facts}
        types = sorted({layer.precision for layer in engine.layers() if layer.precision})
        facts |= {"cuda_graph": engine.graph_words, "layers_put_out": ", ".join(types)}
        return facts | self._cuda.describe()

    def _open(self) -> Engine:
        if self._engine is None:
            raise ValueError(f"{self._artefact}: this session was left; load the artefact again")
        return self._engine

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back the device's memory; keep TensorRT-RTX's kernels for the next load."""
        if self._engine is not None:
            cache = self._engine.runtime_cache()
            if cache:
                (self._artefact.parent / RUNTIME_CACHE).write_bytes(cache)
            self._engine.release()
        self._engine = None
