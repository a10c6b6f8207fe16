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

import numpy as np
from numpy.typing import NDArray

from edgevit.backends.base import Session, require_file, require_kind, require_precision
from edgevit.backends.graph_precision import require_graph_precision
from edgevit.backends.preflight import DiedError, ask_process
from edgevit.backends.session import ModelSession, runtime_errors
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
    TensorRTError,
    import_tensorrt,
    require_fit,
    require_memory,
)
from edgevit.errors import BackendError, BackendUnavailableError
from edgevit.target import Precision, Runtime, Target

SIDE_FILE = f"{ENGINE}.json"
"""What an engine was built from and for; beside it."""


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
        with Cuda() as cuda:
            facts = cuda.describe()
    except TensorRTError as error:
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
            with Cuda() as cuda:
                return versions | _gpu_facts(cuda.describe())
        except TensorRTError:  # no usable GPU: whoever needs one says so
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
        with _kernel_times(target, out), _naming_cache(target):
            facts = self._build(onnx, options, out)
        (out / SIDE_FILE).write_text(json.dumps(facts | device, indent=1, sort_keys=True) + "\n")
        return out / ENGINE

    def _device_to_build_on(self, target: Target) -> dict[str, str]:
        """Return what GPU an engine is for; TensorRT-RTX builds for others than this machine's."""
        if self._runtime == "tensorrt-rtx" and target.tensorrt.compute_capabilities:
            return {"compute_capabilities": ", ".join(target.tensorrt.compute_capabilities)}
        _require_gpu_target(self._runtime, target)
        with _open_cuda(self._runtime) as cuda:
            try:
                require_memory(target.tensorrt.workspace_mb, cuda, "tensorrt.workspace_mb")
            except TensorRTError as error:
                raise BackendError(f"{target.name}: {error}.") from error
            return cuda.describe()

    def _build(self, onnx: Path, options: BuildOptions, out: Path) -> dict[str, str]:
        try:
            answer = ask_process(["build", self._runtime, str(onnx), json.dumps(asdict(options)), str(out)])
        except DiedError as error:
            raise BackendError(f"{onnx}: {self._runtime} died while building: {error}") from error
        if answer["answer"] != "built":
            raise BackendError(f"{onnx}: {self._runtime} built no engine. {answer['words']}")
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
        model = self.open_engine(artefact)
        clock = model.gpu_ms
        return ModelSession(artefact, model, self._runtime, self.advice, close=model.close, device_ms=clock)

    def open_engine(self, artefact: Path) -> EngineModel:
        """Load an engine of this version and GPU; `load` is what checks a target first.

        Raises:
            BackendUnavailableError: no TensorRT module, driver or device.
            BackendError: the engine is of another version or GPU, or broken.
        """
        trt, cuda = import_tensorrt(self._runtime), _open_cuda(self._runtime)
        kept = artefact.parent / RUNTIME_CACHE
        try:
            facts = read_side_file(artefact)
            with runtime_errors(self._runtime, artefact, self.advice):
                require_fit(facts, trt, cuda.describe())
                known = kept.read_bytes() if kept.is_file() else b""
                return EngineModel(artefact, Engine(trt, artefact.read_bytes(), cuda, known), cuda, facts)
        except BaseException:
            cuda.close()
            raise

    def advice(self, path: Path, text: str) -> str:
        """Add nothing: what to do stands in engine.py's own errors; see `Backend.advice`."""
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


@contextmanager
def _naming_cache(target: Target) -> Iterator[None]:
    """Say which file a complaint about kernel times is about: a build sees a copy."""
    try:
        yield
    except BackendError as error:
        if target.tensorrt.timing_cache and "timing cache" in str(error):
            raise BackendError(f"{error}\n  The timing cache is {target.tensorrt.timing_cache}") from error
        raise


def batch_range(target: Target) -> tuple[int, int, int]:
    """Return the least, usual and most images per run, for graphs that leave the batch open."""
    return 1, target.batch, max(target.batch, target.tensorrt.max_batch)


def build_options(target: Target, precision: Precision) -> BuildOptions:
    """Return what an engine is built with for a target."""
    wanted = target.tensorrt
    return BuildOptions(
        precision=precision,
        workspace_mb=wanted.workspace_mb,
        batches=batch_range(target),
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
            f"{runtime}: a board's engines are built where they run. `edgevit build` writes a build kit for"
            " it; run it there, and bring its report back with `edgevit report DIR --import FILE`."
        )


def _open_cuda(runtime: Runtime) -> Cuda:
    try:
        return Cuda()
    except NotHereError as error:
        raise BackendUnavailableError(
            f"{runtime}: {error}, or choose a target whose kit is built on the board (`edgevit targets`)."
        ) from error
    except TensorRTError as error:
        raise BackendError(f"{runtime}: {error}.") from error


class EngineModel:
    """An engine as a `board.Model`: arrays in and out, and what the device is."""

    def __init__(self, artefact: Path, engine: Engine, cuda: Cuda, facts: dict[str, str]) -> None:
        self._artefact, self._engine, self._cuda, self._facts = artefact, engine, cuda, facts
        self.input_shape: Shape = engine.input_shape
        self.output_names = engine.output_names

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the engine on `batch`."""
        image = np.ascontiguousarray(batch)
        data = self._engine.run(image.ctypes.data, image.shape)
        return np.frombuffer(data, np.float32).reshape(self._engine.output_shape()).copy()

    def gpu_ms(self, runs: int) -> list[float]:
        """Time runs on the GPU alone, after one `run` that says the shape: no copies, no waiting host."""
        return self._engine.gpu_ms(runs)

    def layer_ms(self, runs: int) -> dict[str, float]:
        """Time each layer, after one `run` that says the shape; in milliseconds, by its name."""
        return self._engine.layer_ms(runs)

    def device(self) -> dict[str, str]:
        """Say what the engine runs on and with."""
        kept = ("version", "precision", "types", "onnx_sha256", "timing_cache_sha256")
        facts = {name: self._facts[name] for name in kept if name in self._facts}
        types = sorted({layer.precision for layer in self._engine.layers() if layer.precision})
        facts |= {"cuda_graph": self._engine.graph_words, "layers_put_out": ", ".join(types)}
        return facts | self._cuda.describe()

    def close(self) -> None:
        """Give back the device's memory and the stream; keep TensorRT-RTX's kernels for the next load."""
        cache = self._engine.runtime_cache()
        if cache:
            (self._artefact.parent / RUNTIME_CACHE).write_bytes(cache)
        self._engine.release()
        self._cuda.close()
