"""TensorRT 8.5 to 11 and TensorRT-RTX behind one interface: parse, build, run. One file, for Python 3.8.

It needs TensorRT's Python module and the standard library, nothing of edgevit. It is run three ways:
a preflight runs it in a process of its own (`version`, `parse`), because a parser may die; a build does, too
(`build`); and a build kit takes it along as its runner, so a board runs the code that would run here. It is
long because a board gets one file.

Only what TensorRT has from 8.5 on is used, and of later versions what this file asks for by name: tensors go
by name, a network is strongly typed where the version knows that (10.0), else flags say which precisions the
graph may compute in. No calibrator, no plugin. Memory and streams are the CUDA driver's (`libcuda.so.1`),
through ctypes: that library is wherever an NVIDIA GPU is, on a board as on a server, and no package needs to
be installed for it.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from array import array
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Sequence

FILE = Path(__file__).resolve()
"""This file, which other processes run and kits take along."""
MODULES = {
    "tensorrt": ("tensorrt_bindings", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx"),
}
"""What each runtime's Python module may be called: `tensorrt` on a board, both where pip installed it."""
LOG_LINES = 30
"""Lines of TensorRT's own log that an error shows."""
CPU_ONLY = {"TRT_INTERNAL_OPTIONS": "--cpu_only=1"}
"""Lets the parsers of 10.x and 11.x work without a GPU. The option is internal to TensorRT, its own trtexec
sets it: good for a preflight, and nothing else may depend on it."""


class TensorRTError(Exception):
    """TensorRT refused or failed; says what it logged."""


class NotHereError(TensorRTError):
    """No TensorRT module, no CUDA driver, or no device."""


_REMEDIES = {
    "Free memory: lower workspace_mb or the batch, close other programs, add swap": (
        "out of memory", "outofmemory", "requested amount of gpu memory", "insufficient memory",
    ),
    "Install or update NVIDIA's driver: this TensorRT finds none that is new enough": (
        "cuda initialization failure with error: 35", "driver version is insufficient",
        "unsupported by the driver",
    ),
    "Check with nvidia-smi that a GPU is there and that this user may see it (CUDA_VISIBLE_DEVICES)": (
        "cuda initialization failure with error: 100", "no cuda-capable device",
    ),
}  # fmt: skip
"""What to do, and the words of TensorRT or of the CUDA driver that call for it, in lower case."""


def remedy(text: str) -> str:
    """Return what to do about a failure, a sentence behind a full stop; empty where its words say nothing."""
    lower = text.lower()
    found = [what for what, signs in _REMEDIES.items() if any(sign in lower for sign in signs)]
    return "".join(f". {what}" for what in found)


# TensorRT's module, its log


def import_tensorrt(runtime: str) -> ModuleType:
    """Import the Python module of a runtime under whichever name it has here.

    Raises:
        NotHereError: none of the names can be imported; says why for each.
    """
    reasons = []
    for name in MODULES[runtime]:
        try:
            return importlib.import_module(name)
        except Exception as exc:  # noqa: BLE001 - a module whose libraries are missing raises what it likes
            reasons.append(f"{name}: {' '.join(str(exc).split())}")
    raise NotHereError("; ".join(reasons))


def version_of(trt: ModuleType) -> tuple[int, ...]:
    """Return the version as numbers, for example (10, 15, 1)."""
    return tuple(int(part) for part in str(trt.__version__).split(".")[:3])


def is_rtx(trt: ModuleType) -> bool:
    """Say whether a module is TensorRT-RTX."""
    return trt.__name__ in MODULES["tensorrt-rtx"]


class Log:
    """The last lines that TensorRT logged, of warnings and worse, and the node that it parsed last."""

    def __init__(self, trt: ModuleType) -> None:
        self.node = ("", "")
        """Name and operator. Some of TensorRT-RTX's errors name no node, its log always does."""
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        whole, lines, worst = self, self.lines, int(trt.ILogger.WARNING)

        class _Logger(trt.ILogger):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: int, message: str) -> None:
                if int(severity) <= worst:
                    lines.append(message.strip())
                elif "arsing node: " in message:
                    name, _, operator = message.partition("arsing node: ")[2].rpartition(" [")
                    whole.node = (name, operator.rstrip("]"))

        self.logger = _Logger()

    def failure(self, what: str) -> TensorRTError:
        """Return an error with what was logged last."""
        said = "\n  ".join(self.lines) or "(it logged nothing)"
        return TensorRTError(f"{what}{remedy(what + said)}. TensorRT's log:\n  {said}")


# Parsing


@dataclass(frozen=True)
class Refusal:
    """What a parser said of one node."""

    node: str
    """Name of the node, which has the block in it; empty where the parser names none."""
    operator: str
    words: str


@dataclass(frozen=True)
class Parsed:
    """What a parser made of a graph."""

    version: str
    module: str
    layers: int
    refusals: list[Refusal] = field(default_factory=list)


def open_network(trt: ModuleType, log: Log) -> tuple[Any, Any]:
    """Return a builder and an empty network, strongly typed where this version can.

    Raises:
        TensorRTError: no builder; without a GPU that is what 8.x says.
    """
    try:
        builder = trt.Builder(log.logger)
    except Exception as exc:
        raise log.failure(f"{trt.__name__} {trt.__version__} gives no builder here ({exc})") from exc
    return builder, builder.create_network(network_flags(trt))


def network_flags(trt: ModuleType) -> int:
    """Return the flags of a new network: strongly typed from 10.0 on, explicit batch in 8.x."""
    known = trt.NetworkDefinitionCreationFlag.__members__
    name = "STRONGLY_TYPED" if is_strongly_typed(trt) else "EXPLICIT_BATCH"
    return 1 << int(known[name]) if name in known else 0


def is_strongly_typed(trt: ModuleType) -> bool:
    """Say whether networks take their precisions from the graph alone."""
    return "STRONGLY_TYPED" in trt.NetworkDefinitionCreationFlag.__members__ or version_of(trt)[0] >= 11


def parse(trt: ModuleType, network: Any, log: Log, onnx: Path) -> tuple[Any, list[Refusal]]:
    """Parse an ONNX file into a network; return the parser, which owns the weights, and what it refused."""
    parser = trt.OnnxParser(network, log.logger)
    if parser.parse_from_file(str(onnx)):
        return parser, []
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    found = [
        Refusal(
            _said(one, "node_name") or log.node[0], _said(one, "node_operator") or log.node[1], one.desc()
        )
        for one in errors
    ]
    return parser, found or [Refusal(*log.node, " ".join(log.lines) or "the parser said nothing")]


def _said(error: Any, what: str) -> str:
    """Return what a parser's error tells, where this version's errors tell it (10.0)."""
    tell = getattr(error, what, None)
    return str(tell()) if tell else ""


# Building


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built with."""

    precision: str
    """Of the graph: fp32, fp16, bf16 or int8. What 8.x may use; later versions read it in the graph."""
    workspace_mb: int = 0
    """Most scratch memory that a layer may take, in MiB; 0: TensorRT's own limit."""
    batches: tuple[int, int, int] = (1, 1, 1)
    """Least, usual and most images per run, where the graph leaves that open."""
    version_compatible: bool = False
    """Let later versions of the same major load the engine (8.6)."""
    hardware_compatible: str = "none"
    """none, ampere+ or same-compute-capability: which other GPUs may load the engine (8.6, the last 10.x)."""
    compute_capabilities: tuple[str, ...] = ()
    """TensorRT-RTX: for which GPUs, for example 8.6; empty: those that it takes by itself."""
    pinned: bool = False
    """Fail where the timing cache lacks a layer, in place of timing it anew (10.0)."""


@dataclass(frozen=True)
class Built:
    """An engine and what it came from."""

    engine: bytes
    timing_cache: bytes
    """Empty where the runtime has none (TensorRT-RTX)."""
    facts: dict[str, str]


def build(trt: ModuleType, onnx: Path, options: BuildOptions, timing_cache: bytes = b"") -> Built:
    """Build an engine from an ONNX file.

    Raises:
        TensorRTError: the parser refuses the graph, an option is unknown to this version, or the build gives
            nothing; with TensorRT's log.
    """
    log = Log(trt)
    builder, network = open_network(trt, log)
    parser, refusals = parse(trt, network, log, onnx)
    if refusals:
        raise TensorRTError(refusal_text(onnx, refusals))
    config = configure(trt, builder, network, options)
    # TensorRT-RTX times nothing while it builds: it chooses its kernels on the card, when it loads.
    cache = None if is_rtx(trt) else _set_timing_cache(config, timing_cache, log)
    made = builder.build_serialized_network(network, config)
    del parser  # it owns weights that the build reads
    if made is None:
        raise log.failure(f"{onnx}: the build gave no engine")
    kept = bytes(config.get_timing_cache().serialize()) if cache is not None else b""
    return Built(bytes(made), kept, _build_facts(trt, onnx, options, kept))


def refusal_text(onnx: Path, refusals: Sequence[Refusal]) -> str:
    """Put in words what a parser refused: the first node and operator, and how many more."""
    first = refusals[0]
    where = f" at {first.node} ({first.operator})" if first.node or first.operator else ""
    more = f" and {len(refusals) - 1} more" if len(refusals) > 1 else ""
    return f"{onnx}: the parser refuses the graph{where}: {' '.join(first.words.split())}{more}"


def configure(trt: ModuleType, builder: Any, network: Any, options: BuildOptions) -> Any:
    """Return a builder configuration with the options that this version knows.

    Raises:
        TensorRTError: this version lacks something that was asked for.
    """
    config = builder.create_builder_config()
    if options.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * 2**20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector has names alone
    if options.precision == "fp32":  # TF32 rounds factors to 10 bits: no parity with ONNX
        config.clear_flag(trt.BuilderFlag.TF32)
    for name in builder_flags(trt, options):
        if name not in trt.BuilderFlag.__members__:
            raise TensorRTError(f"{trt.__name__} {trt.__version__} has no builder flag {name}. {_FLAG_HELP}")
        config.set_flag(trt.BuilderFlag.__members__[name])
    _set_compatibility(trt, config, options)
    _add_profile(builder, network, config, options.batches)
    if options.compute_capabilities:
        _set_compute_capabilities(trt, config, options.compute_capabilities)
    return config


_FLAG_HELP = "Leave the option out, or use a newer TensorRT."
WEAK_FLAGS = {"fp32": (), "fp16": ("FP16",), "bf16": ("BF16",), "int8": ("FP16", "INT8")}
"""What TensorRT may compute in beside fp32, where types do not decide: its builder's flags, and in lower case
trtexec's options."""


def builder_flags(trt: ModuleType, options: BuildOptions) -> list[str]:
    """Return the names of the flags to set; those of precisions only where types do not decide."""
    flags = [] if is_strongly_typed(trt) else list(WEAK_FLAGS[options.precision])
    if options.version_compatible:
        flags.append("VERSION_COMPATIBLE")
    if options.pinned:
        flags.append("ERROR_ON_TIMING_CACHE_MISS")
    return flags


_HARDWARE = {"ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}


def _set_compatibility(trt: ModuleType, config: Any, options: BuildOptions) -> None:
    if options.hardware_compatible == "none":
        return
    name, levels = _HARDWARE[options.hardware_compatible], getattr(trt, "HardwareCompatibilityLevel", None)
    if levels is None or name not in levels.__members__:
        raise TensorRTError(f"{trt.__name__} {trt.__version__} has no hardware level {name}. {_FLAG_HELP}")
    config.hardware_compatibility_level = levels.__members__[name]


def _add_profile(builder: Any, network: Any, config: Any, batches: tuple[int, int, int]) -> None:
    """Say which batches an engine has to take, where the graph leaves that open."""
    image = network.get_input(0)
    if image.shape[0] != -1:
        return
    rest = tuple(image.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(image.name, *((size, *rest) for size in batches))
    config.add_optimization_profile(profile)


def _set_compute_capabilities(trt: ModuleType, config: Any, capabilities: Sequence[str]) -> None:
    """TensorRT-RTX alone: say for which GPUs, so that none needs to be here."""
    known = trt.ComputeCapability.__members__
    for one in capabilities:
        if sm_name(one) not in known:
            offered = ", ".join(name for name in known if name.startswith("SM"))
            raise TensorRTError(
                f"{trt.__name__} {trt.__version__} builds for {offered}, not for compute capability {one}."
                " Take it out of the target's compute_capabilities, or use a newer version"
            )
    config.num_compute_capabilities = len(capabilities)
    for index, one in enumerate(capabilities):
        config.set_compute_capability(known[sm_name(one)], index)


def sm_name(capability: str) -> str:
    """Return TensorRT's name for a compute capability: SM86 for 8.6."""
    return "SM" + capability.replace(".", "")


def _set_timing_cache(config: Any, known: bytes, log: Log) -> Any:
    """Give a build the times that an earlier one took."""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        raise log.failure(
            f"the timing cache ({len(known)} bytes) is truncated, or of another GPU or version. Remove it:"
            " the build then times its kernels anew"
        )
    return cache


def _build_facts(trt: ModuleType, onnx: Path, options: BuildOptions, cache: bytes) -> dict[str, str]:
    facts = {
        "runtime": trt.__name__,
        "version": str(trt.__version__),
        "onnx_sha256": sha256_of(onnx.read_bytes()),
        "precision": options.precision,
        "types": "the graph's" if is_strongly_typed(trt) else "the graph's, as far as the flags allow",
        "options": json.dumps(asdict(options), sort_keys=True),
    }
    if cache:
        facts["timing_cache_sha256"] = sha256_of(cache)
    return facts


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


# The CUDA driver


_VERSIONED = {
    "cuMemAlloc": "cuMemAlloc_v2",
    "cuMemFree": "cuMemFree_v2",
    "cuMemAllocHost": "cuMemAllocHost_v2",
    "cuMemcpyHtoDAsync": "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync": "cuMemcpyDtoHAsync_v2",
    "cuMemGetInfo": "cuMemGetInfo_v2",
    "cuStreamBeginCapture": "cuStreamBeginCapture_v2",
    "cuEventDestroy": "cuEventDestroy_v2",
    "cuStreamDestroy": "cuStreamDestroy_v2",
    "cuGraphInstantiate": "cuGraphInstantiateWithFlags",
}
"""Names that the driver exports for what its header calls otherwise."""
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_CAPTURE_THIS_THREAD = 1


class Cuda:
    """The first CUDA device, one stream on it, and the driver's functions that running an engine takes.

    A context manager, or `close` it: that gives back the stream. The device's primary context stays with the
    process, as CUDA's own runtime keeps it: TensorRT works in it, too.
    """

    def __init__(self, library: str = "libcuda.so.1") -> None:
        try:
            self._driver = ctypes.CDLL(library)
        except OSError as exc:
            raise NotHereError(f"no CUDA driver here ({exc}). Install NVIDIA's driver") from exc
        self._call("cuInit", ctypes.c_uint(0))
        self._device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(0))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        self.stream = ctypes.c_void_p()
        self._call(
            "cuStreamCreate", ctypes.byref(self.stream), ctypes.c_uint(1)
        )  # not tied to the default one

    def __enter__(self) -> Cuda:
        """Return the device itself."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Give back the stream."""
        self.close()

    def close(self) -> None:
        """Give back the stream; twice does nothing."""
        if self.stream.value is not None:
            self._call("cuStreamDestroy", self.stream)
            self.stream = ctypes.c_void_p()

    def _call(self, name: str, *arguments: Any) -> None:
        """Call the driver; every argument is a ctypes value, as a bare int would be cut to 32 bits."""
        exported = _VERSIONED.get(name, name)
        try:
            function = getattr(self._driver, exported)
        except AttributeError as exc:
            raise NotHereError(f"the CUDA driver has no {exported}: it is too old. Update NVIDIA's") from exc
        code = function(*arguments)
        if code:
            words = ctypes.c_char_p()
            self._driver.cuGetErrorString(ctypes.c_int(code), ctypes.byref(words))
            said = (words.value or b"unknown error").decode()
            kind = NotHereError if name in ("cuInit", "cuDeviceGet") else TensorRTError
            raise kind(f"CUDA driver: {name} failed with {code} ({said}){remedy(said)}")

    def describe(self) -> dict[str, str]:
        """Say what device and driver these are."""
        name, version = ctypes.create_string_buffer(256), ctypes.c_int()
        self._call("cuDeviceGetName", name, ctypes.c_int(256), self._device)
        self._call("cuDriverGetVersion", ctypes.byref(version))
        capability = [self._attribute(_CAPABILITY_MAJOR), self._attribute(_CAPABILITY_MINOR)]
        return {
            "name": name.value.decode(),
            "compute_capability": ".".join(map(str, capability)),
            "cuda_driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
        }

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), self._device)
        return value.value

    def memory_mb(self) -> tuple[int, int]:
        """Return how much of the device's memory is free, and all of it, in MiB."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value // 2**20, total.value // 2**20

    def synchronise(self) -> None:
        """Wait until the stream is done."""
        self._call("cuStreamSynchronize", self.stream)

    def capture(self, launch: Callable[[], None]) -> ctypes.c_void_p:
        """Record what `launch` puts on the stream as a CUDA graph."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture", self.stream, ctypes.c_int(_CAPTURE_THIS_THREAD))
        try:
            launch()
        finally:
            self._call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        self._call("cuGraphInstantiate", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        self._call("cuGraphDestroy", graph)
        return ready

    def launch(self, graph: ctypes.c_void_p) -> None:
        """Put a recorded graph on the stream."""
        self._call("cuGraphLaunch", graph, self.stream)

    def forget(self, graph: ctypes.c_void_p) -> None:
        """Free a recorded graph."""
        self._call("cuGraphExecDestroy", graph)

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        """Put work on the stream between two events, wait, and return the device's time between them."""
        marks = ctypes.c_void_p(), ctypes.c_void_p()
        for mark in marks:
            self._call("cuEventCreate", ctypes.byref(mark), ctypes.c_uint(0))
        self._call("cuEventRecord", marks[0], self.stream)
        work()
        self._call("cuEventRecord", marks[1], self.stream)
        self._call("cuEventSynchronize", marks[1])
        elapsed = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(elapsed), *marks)
        for mark in marks:
            self._call("cuEventDestroy", mark)
        return elapsed.value

    def buffer(self, size_bytes: int) -> Buffer:
        """Return memory on the device and page-locked memory beside it on the host."""
        host, device = ctypes.c_void_p(), ctypes.c_ulonglong()
        self._call("cuMemAllocHost", ctypes.byref(host), ctypes.c_size_t(size_bytes))
        self._call("cuMemAlloc", ctypes.byref(device), ctypes.c_size_t(size_bytes))
        return Buffer(size_bytes, host, device)

    def free(self, buffer: Buffer) -> None:
        """Give back both memories."""
        self._call("cuMemFree", buffer.device)
        self._call("cuMemFreeHost", buffer.host)

    def upload(self, buffer: Buffer) -> None:
        """Put on the stream: host to device."""
        size = ctypes.c_size_t(buffer.size_bytes)
        self._call("cuMemcpyHtoDAsync", buffer.device, buffer.host, size, self.stream)

    def download(self, buffer: Buffer) -> None:
        """Put on the stream: device to host."""
        size = ctypes.c_size_t(buffer.size_bytes)
        self._call("cuMemcpyDtoHAsync", buffer.host, buffer.device, size, self.stream)


@dataclass(frozen=True)
class Buffer:
    """Memory of one tensor, on the host and on the device."""

    size_bytes: int
    host: ctypes.c_void_p
    device: ctypes.c_ulonglong


# Running


@dataclass(frozen=True)
class Layer:
    """One layer of an engine, as the engine inspector tells."""

    name: str
    kind: str
    precision: str
    """Of what it puts out."""


class Engine:
    """An engine on the first CUDA device, with one execution context, run through a CUDA graph."""

    def __init__(self, trt: ModuleType, data: bytes, cuda: Cuda, runtime_cache: bytes = b"") -> None:
        self._trt, self._cuda, self._log = trt, cuda, Log(trt)
        self._runtime = trt.Runtime(self._log.logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise self._log.failure(f"the engine ({len(data)} bytes) does not load with {trt.__version__}")
        self._cache: Any = None
        """Of TensorRT-RTX: the kernels for this card."""
        self._context = self._open_context(runtime_cache)
        if self._context is None:
            raise self._log.failure("no execution context")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1:
            raise TensorRTError(f"expected an engine with one input, got {len(inputs)}: {', '.join(inputs)}")
        wrong = [name for name in names if self._engine.get_tensor_dtype(name) != trt.DataType.FLOAT]
        if wrong:
            raise TensorRTError(f"expected float32 in and out, got other types at {', '.join(wrong)}")
        self.input_name, self._names = inputs[0], names
        self.output_names = tuple(name for name in names if name not in inputs)
        sizes = self._engine.get_tensor_shape(self.input_name)
        self.input_shape = tuple(None if size < 0 else int(size) for size in sizes)
        self._fits: tuple[int, ...] | None = None
        self._buffers: dict[str, Buffer] = {}
        self._graph: ctypes.c_void_p | None = None
        self.graph_words = "not yet"
        """Whether runs go through a CUDA graph, and why not."""

    def _open_context(self, runtime_cache: bytes) -> Any:
        """Open a context; TensorRT-RTX chooses its kernels here, and keeps them in a cache for later."""
        if not hasattr(self._engine, "create_runtime_config"):
            return self._engine.create_execution_context()
        settings = self._engine.create_runtime_config()
        if hasattr(settings, "create_runtime_cache"):
            self._cache = settings.create_runtime_cache()
            if runtime_cache:
                self._cache.deserialize(runtime_cache)
            settings.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(settings)

    def runtime_cache(self) -> bytes:
        """Return TensorRT-RTX's kernels for this card; empty for TensorRT."""
        return bytes(self._cache.serialize()) if self._cache is not None else b""

    def run(self, address: int, shape: tuple[int, ...]) -> bytes:
        """Compute the first output for the float32 tensor at `address`; complete when it returns."""
        if shape != self._fits:
            self._fit(shape)
        image, output = self._buffers[self.input_name], self._buffers[self.output_names[0]]
        ctypes.memmove(image.host, address, image.size_bytes)
        self._cuda.upload(image)
        self._launch()
        self._cuda.download(output)
        self._cuda.synchronise()
        return ctypes.string_at(output.host, output.size_bytes)

    def gpu_ms(self, runs: int) -> list[float]:
        """Time `runs` runs on the GPU alone, without the copies; the shape is that of the last run."""
        return [self._cuda.elapsed_ms(self._launch) for _ in range(runs)]

    def output_shape(self) -> tuple[int, ...]:
        """Return the shape of the first output for the last input."""
        return tuple(int(size) for size in self._context.get_tensor_shape(self.output_names[0]))

    def _launch(self) -> None:
        if self._graph is not None:
            self._cuda.launch(self._graph)
        else:
            self._execute(self._context)

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(int(self._cuda.stream.value or 0)):
            raise self._log.failure("the engine did not run")

    def _bind(self, context: Any, shape: tuple[int, ...]) -> None:
        """Tell a context the input's shape and where the tensors lie, as far as there is room for them."""
        if not context.set_input_shape(self.input_name, shape):
            raise self._log.failure(f"the engine takes no input of shape {list(shape)}")
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, int(buffer.device.value))

    def _fit(self, shape: tuple[int, ...]) -> None:
        """Make room for inputs of another shape, and record the run as a CUDA graph."""
        self.release()
        self._bind(self._context, shape)
        for name in self._names:
            count = math.prod(int(size) for size in self._context.get_tensor_shape(name))
            self._buffers[name] = self._cuda.buffer(4 * count)
        self._bind(self._context, shape)
        # TensorRT sets up what depends on shapes in the first run, which no graph may hold.
        self._execute(self._context)
        self._cuda.synchronise()
        try:
            self._graph = self._cuda.capture(lambda: self._execute(self._context))
            self.graph_words = "yes"
        except TensorRTError as error:
            self.graph_words = f"no: {error}"
        self._fits = shape

    def release(self) -> None:
        """Give back the device's memory of the tensors, and the graph that reads them."""
        if self._graph is not None:
            self._cuda.forget(self._graph)
        for buffer in self._buffers.values():
            self._cuda.free(buffer)
        self._graph, self._fits = None, None
        self._buffers.clear()

    def layers(self) -> list[Layer]:
        """Return the engine's layers and their precisions, in the order in which they run."""
        inspector = self._engine.create_engine_inspector()
        return read_layers(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def layer_ms(self, runs: int) -> dict[str, float]:
        """Return the mean time of each layer in milliseconds; the layers run one by one for it.

        The shape is that of the last run. TensorRT never lets go of a profiler, and a profiled context is
        slower: so this is a context of its own, gone afterwards.
        """
        times: dict[str, float] = {}

        class _Profiler(self._trt.IProfiler):  # type: ignore[name-defined, misc]
            def report_layer_time(self, name: str, ms: float) -> None:
                times[name] = times.get(name, 0.0) + ms / runs

        context = self._open_context(self.runtime_cache())
        if context is None:
            raise self._log.failure("no second execution context for the times of layers")
        context.profiler = _Profiler()
        self._bind(context, self._fits or ())
        for _ in range(runs):
            self._execute(context)
            self._cuda.synchronise()
        return times


def read_layers(text: str) -> list[Layer]:
    """Read the engine inspector's JSON of 8.x, 10.x and 11.x.

    An engine built without details has only names. Up to 10.x a tensor has `Format/Datatype`, in 11.x
    `Format` and `Datatype` apart.
    """
    found = []
    for entry in json.loads(text).get("Layers", []):
        if isinstance(entry, str):
            found.append(Layer(entry, "", ""))
            continue
        outputs = [_tensor_type(tensor) for tensor in entry.get("Outputs", [])]
        types = ", ".join(sorted(set(outputs)))
        found.append(Layer(entry.get("Name", ""), entry.get("LayerType", ""), types))
    return found


_TYPE_WORDS = {
    "fp32": ("FP32", "Float"), "fp16": ("FP16", "Half"), "bf16": ("BF16", "BFloat16"), "int8": ("INT8",),
    "fp8": ("FP8",), "int32": ("INT32",), "int64": ("INT64",), "bool": ("BOOL",),
}  # fmt: skip


def _tensor_type(tensor: dict[str, Any]) -> str:
    """Return the type in our words; the whole text where it has none that is known."""
    text = str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")
    words = {word.upper() for word in text.replace(",", " ").replace(":", " ").split()}
    for name, spellings in _TYPE_WORDS.items():
        if words & {spelling.upper() for spelling in spellings}:
            return name
    return text


# Engines on disk

GRAPH = "model.onnx"
ENGINE = "model.engine"
TIMING_CACHE = "timing.cache"
RUNTIME_CACHE = "runtime.cache"
"""Of TensorRT-RTX: the kernels that it chose on the card."""


def require_fit(facts: dict[str, str], trt: ModuleType, device: dict[str, str]) -> None:
    """Refuse an engine of another version or GPU, before TensorRT calls it broken.

    Args:
        facts: the engine's side file.
        trt: the module that is to load it.
        device: what `Cuda.describe` says.

    Raises:
        TensorRTError: says what was expected, what is here, and what to do.
    """
    options = json.loads(facts.get("options", "{}"))
    built, here = facts.get("version"), str(trt.__version__)
    if built is None:
        raise TensorRTError(
            f"the engine has no side file that says which TensorRT built it, here is {here}: build it anew"
        )
    same = built.split(".")[0] == here.split(".")[0] if options.get("version_compatible") else built == here
    if not same:
        raise TensorRTError(f"the engine was built by TensorRT {built}, here is {here}: build it anew here")
    # TensorRT builds for the GPU that is there, TensorRT-RTX for all that its target names.
    told = facts.get("compute_capabilities") or facts.get("compute_capability")
    mine = device["compute_capability"]
    portable = options.get("hardware_compatible", "none") == "ampere+" and float(mine) >= 8.0
    if told is not None and mine not in told.split(", ") and not portable:
        anew = f"add {mine} to the target's compute_capabilities and build" if is_rtx(trt) else "build"
        raise TensorRTError(
            f"the engine was built for compute capability {told}; this GPU ({device['name']}) has {mine}:"
            f" {anew} it anew{'' if is_rtx(trt) else ' on a GPU of this kind'}"
        )


# A kit, on its board

KIT = "kit.json"
REPORT = "board-report.json"
SCHEMA = 2
"""Of both files."""
SIDES = ("dense", "slim")
"""The two models of a kit."""
LEAD_RUNS, LEAD_S = 2, 0.002
BURST_RUNS, BURST_S, MIN_BURSTS, OVERTIME = 10, 0.005, 10, 10
"""As in edgevit's board.py, which says why: bursts of two engines side by side, each after untimed runs."""


@dataclass(frozen=True)
class Allowed:
    """How far an engine's answers may be from its graph's: what edgevit asks of every artefact."""

    relative: float
    """Largest difference of a logit, as a share of the largest logit where that is above 1."""
    outliers: float = 0.0
    """Share of images that may exceed it, 0..1; above 0 where images choose tokens or neurons."""
    agreement: float | None = None
    """Share of images with the same top-1 that is asked for in place of a largest difference, 0..1. For int8,
    where a sum that rounds otherwise moves an activation by a whole step."""


@dataclass(frozen=True)
class Compared:
    """How far an engine's answers are from the stored ones of its graph."""

    images: int
    max_abs: float
    """Largest difference of a logit; infinite where the engine gave NaN or infinity."""
    largest: float
    """Largest stored logit, by its absolute value."""
    beyond: int
    """Images with a logit beyond what is allowed."""
    top1_agreement: float
    """Share of images with the same top-1."""


def allowed_difference(largest: float, allowed: Allowed) -> float:
    """Return how far a logit may be off where the largest stored one is `largest`."""
    return allowed.relative * max(1.0, largest)


def most_beyond(share: float, images: int) -> int:
    """Return how many images may exceed a tolerance: at least one where a share may, however few."""
    return max(1, math.floor(share * images)) if share else 0


def objection(found: Compared, allowed: Allowed) -> str:
    """Return what is wrong with an engine's answers, to stand behind "the engine"; empty where nothing is."""
    same = f"{found.top1_agreement:.1%} of {found.images} images"
    apart = f"logits are up to {found.max_abs:.3g} from those of its graph"
    if allowed.agreement is not None:
        if math.isfinite(found.max_abs) and found.top1_agreement >= allowed.agreement:
            return ""
        return f"has its graph's top-1 on {same}, expected {allowed.agreement:.0%}; its {apart}"
    most = most_beyond(allowed.outliers, found.images)
    if math.isfinite(found.max_abs) and found.beyond <= most:
        return ""
    limit = f"allowed {allowed_difference(found.largest, allowed):.3g}"
    exceptions = f" on all but {most}, {found.beyond} images are beyond" if most else ""
    return f"gives other outputs: its {apart}, {limit}{exceptions}; top-1 is the same on {same}"


def run_kit(folder: Path, say: Callable[[str], None]) -> dict[str, object]:
    """Build, compare and time what a kit holds; return what the host is to be told.

    Args:
        folder: the kit.
        say: told of each step.

    Raises:
        TensorRTError: no TensorRT or device here, a file that is not the kit's, or too little memory.
    """
    text = (folder / KIT).read_bytes()
    kit = _read_kit(folder / KIT, text)
    trt = import_tensorrt(kit["runtime"])
    with Cuda() as cuda:
        require_memory(kit["options"]["workspace_mb"], cuda, f"workspace_mb in {KIT}")
        images = _read_tensor(folder, kit["images"])
        return {
            "schema": SCHEMA,
            "kit_sha256": sha256_of(text),
            "version": str(trt.__version__),
            "expected_versions": kit["versions"],
            "device": cuda.describe(),
            "board": read_board(),
            "candidates": [
                _run_candidate(folder, kit, one, (trt, cuda), images, say) for one in kit["candidates"]
            ],
        }


def _read_kit(path: Path, text: bytes) -> dict[str, Any]:
    try:
        kit = json.loads(text)
    except ValueError as exc:
        raise TensorRTError(f"{path}: damaged ({exc}). Copy the whole kit anew") from exc
    if not isinstance(kit, dict) or kit.get("schema") != SCHEMA:
        raise TensorRTError(f"{path}: expected a kit of schema {SCHEMA}. Copy the whole kit anew")
    return kit


def require_memory(workspace_mb: int, cuda: Cuda, setting: str) -> None:
    """Refuse to begin a build that a device has no room for.

    Raises:
        TensorRTError: less memory is free than the workspace that a layer may take; `setting` says where.
    """
    free_mb, total_mb = cuda.memory_mb()
    if workspace_mb > free_mb:
        raise TensorRTError(
            f"expected {workspace_mb} MiB of memory for the workspace, of {total_mb} MiB are {free_mb} free."
            f" Close other programs, add swap, or lower {setting}"
        )


def _run_candidate(
    folder: Path,
    kit: dict[str, Any],
    candidate: dict[str, Any],
    here: tuple[ModuleType, Cuda],
    images: bytes,
    say: Callable[[str], None],
) -> dict[str, object]:
    """Build and load both sides of one precision, compare and time them; a failure is part of the answer."""
    precision, shape = candidate["precision"], tuple(kit["images"]["batch"])
    answer: dict[str, object] = {"precision": precision}
    engines: dict[str, Engine] = {}
    facts: dict[str, dict[str, str]] = {}
    try:
        for side in SIDES:
            say(f"{precision}, {side}: building")
            where = folder / candidate[side]["folder"]
            engines[side], facts[side] = _open_engine(where, kit, candidate, side, here)
        answer["engines"] = facts
        say(f"{precision}: comparing with the stored outputs")
        answer["parity"], answer["objections"] = _compare_sides(
            folder, candidate, engines, (images, shape), say
        )
        say(f"{precision}: timing")
        pair = [engines[side] for side in SIDES]
        answer["taken"] = take_times(pair, images, shape, kit["timing"])
        answer["gpu_ms"] = {side: engine.gpu_ms(100) for side, engine in engines.items()}
        answer["cuda_graph"] = {side: engine.graph_words for side, engine in engines.items()}
        answer["layers"] = {
            side: [asdict(one) for one in engine.layers()] for side, engine in engines.items()
        }
        answer["layer_ms"] = {side: engine.layer_ms(10) for side, engine in engines.items()}
        for side, engine in engines.items():
            _keep(folder / candidate[side]["folder"] / RUNTIME_CACHE, engine.runtime_cache())
    except TensorRTError as error:
        answer["failed"] = str(error)
    finally:
        for engine in engines.values():
            engine.release()
    return answer


def _open_engine(
    where: Path, kit: dict[str, Any], candidate: dict[str, Any], side: str, here: tuple[ModuleType, Cuda]
) -> tuple[Engine, dict[str, str]]:
    """Load the engine that the kit brought, or build it; the timing cache is one for all engines of a kit."""
    trt, cuda = here
    file, cache = where / ENGINE, where.parent.parent / TIMING_CACHE
    if candidate[side].get("engine_sha256"):
        data = _read_checked(file, candidate[side]["engine_sha256"])
        facts = dict(candidate[side]["facts"])
    else:
        onnx = where / GRAPH
        _read_checked(onnx, candidate[side]["onnx_sha256"])
        options = _options({**kit["options"], "precision": candidate["precision"]})
        built = build(trt, onnx, options, cache.read_bytes() if cache.is_file() else b"")
        data, facts = built.engine, built.facts
        file.write_bytes(data)
        _keep(cache, built.timing_cache)
    require_fit(facts, trt, cuda.describe())
    kept = where / RUNTIME_CACHE
    loaded = Engine(trt, data, cuda, kept.read_bytes() if kept.is_file() else b"")
    return loaded, {**facts, "sha256": sha256_of(data), "bytes": str(len(data))}


def _keep(path: Path, data: bytes) -> None:
    if data:
        path.write_bytes(data)


def _read_checked(path: Path, sha256: str) -> bytes:
    data = path.read_bytes() if path.is_file() else b""
    if sha256_of(data) != sha256:
        found = f"got {len(data)} other bytes" if path.is_file() else "found none"
        raise TensorRTError(
            f"{path}: expected the kit's file ({sha256[:12]}), {found}. Copy the whole kit anew"
        )
    return data


def _read_tensor(folder: Path, entry: dict[str, Any]) -> bytes:
    return _read_checked(folder / entry["file"], entry["sha256"])


def _compare_sides(
    folder: Path,
    candidate: dict[str, Any],
    engines: dict[str, Engine],
    stored: tuple[bytes, tuple[int, ...]],
    say: Callable[[str], None],
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Compare both sides with their stored outputs; return what was found, and what is wrong with it."""
    found, wrong = {}, []
    for side, engine in engines.items():
        allowed = Allowed(**candidate[side]["allowed"])
        compared = _compare(engine, stored, _read_tensor(folder, candidate[side]["outputs"]), allowed)
        words = objection(compared, allowed)
        if words:
            wrong.append(f"the {side} engine {words}")
        else:
            say(
                f"{candidate['precision']}, {side}: top-1 is the graph's on {compared.top1_agreement:.1%} of"
                f" {compared.images} images, logits are up to {compared.max_abs:.3g} from its own"
            )
        found[side] = asdict(compared)
    return found, wrong


def _compare(
    engine: Engine, stored: tuple[bytes, tuple[int, ...]], expected: bytes, allowed: Allowed
) -> Compared:
    """Run all images, batch by batch, and say how far the logits are from the stored ones."""
    images, shape = stored
    size, got = 4 * math.prod(shape), array("f")
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        got.frombytes(engine.run(_address(batch), shape))
    wanted = array("f")
    wanted.frombytes(expected)
    if len(wanted) != len(got):
        raise TensorRTError(
            f"expected {len(wanted)} logits as stored, the engine gave {len(got)}: one is of another model."
            " Copy the whole kit anew"
        )
    classes = engine.output_shape()[-1]
    rows = [slice(start, start + classes) for start in range(0, len(got), classes)]
    broken = any(math.isnan(one) or math.isinf(one) for one in got)
    differences = [max(abs(a - b) for a, b in zip(wanted[row], got[row])) for row in rows]
    largest = max(map(abs, wanted))
    limit = allowed_difference(largest, allowed)
    return Compared(
        images=len(rows),
        max_abs=math.inf if broken else max(differences),
        largest=largest,
        beyond=sum(not one <= limit for one in differences),
        top1_agreement=sum(_top(wanted[row]) == _top(got[row]) for row in rows) / len(rows),
    )


def _top(logits: Sequence[float]) -> int:
    return max(range(len(logits)), key=lambda index: logits[index])


def _address(data: bytes) -> int:
    """Return where bytes lie; they must stay referenced."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def take_times(
    engines: Sequence[Engine], images: bytes, shape: tuple[int, ...], timing: dict[str, Any]
) -> dict[str, object]:
    """Time engines in bursts side by side, in random order; nanoseconds of whole runs, copies included."""
    first = images[: 4 * math.prod(shape)]
    address, order = _address(first), random.Random(0)
    firsts, typical = zip(*(_warm_up(one, address, shape, timing["warmup_s"]) for one in engines))
    runs = plan_burst(sum(typical) / 1e9, timing)
    taken: list[list[list[int]]] = [[] for _ in engines]
    begin = time.perf_counter_ns()
    while not is_enough(len(taken[0]), runs, (time.perf_counter_ns() - begin) / 1e9, timing):
        for index in order.sample(range(len(engines)), len(engines)):
            taken[index].append(_time_burst(engines[index], address, shape, runs))
    return {"first_ns": list(firsts), "bursts_ns": taken, "runs_per_burst": runs}


def _warm_up(engine: Engine, address: int, shape: tuple[int, ...], seconds: float) -> tuple[int, float]:
    """Return the first run and a typical one, in ns."""
    begin = time.perf_counter_ns()
    times: list[int] = []
    while len(times) <= LEAD_RUNS or time.perf_counter_ns() - begin < seconds * 1e9:
        times.append(_time_run(engine, address, shape))
    return times[0], max(1.0, statistics.median(times[1:]))


def plan_burst(run_s: float, timing: dict[str, Any]) -> int:
    """Return how many timed runs a burst has; as in board.py."""
    wanted = max(BURST_RUNS, math.ceil(BURST_S / run_s))
    room = math.floor(timing["seconds"] / MIN_BURSTS / run_s) - LEAD_RUNS
    fewest, most = math.ceil(timing["min_samples"] / MIN_BURSTS), timing["max_samples"] // MIN_BURSTS
    return int(min(max(min(wanted, room), fewest), most))


def is_enough(bursts: int, runs: int, spent_s: float, timing: dict[str, Any]) -> bool:
    """Say whether timing ends; as in board.py."""
    count, seconds = bursts * runs, timing["seconds"]
    done = spent_s >= seconds and count >= timing["min_samples"] and bursts >= MIN_BURSTS
    return bool(done or count >= timing["max_samples"] or spent_s >= OVERTIME * seconds)


def _time_burst(engine: Engine, address: int, shape: tuple[int, ...], runs: int) -> list[int]:
    begin, lead = time.perf_counter_ns(), 0
    while lead < LEAD_RUNS or time.perf_counter_ns() - begin < LEAD_S * 1e9:
        engine.run(address, shape)
        lead += 1
    return [_time_run(engine, address, shape) for _ in range(runs)]


def _time_run(engine: Engine, address: int, shape: tuple[int, ...]) -> int:
    begin = time.perf_counter_ns()
    engine.run(address, shape)
    return time.perf_counter_ns() - begin


def read_board() -> dict[str, str]:
    """Say what the board is and in which power mode, as far as it tells."""
    facts = {"kernel": platform.release(), "python": platform.python_version()}
    for name, path in (("model", "/proc/device-tree/model"), ("l4t", "/etc/nv_tegra_release")):
        try:
            facts[name] = Path(path).read_text(errors="replace").strip("\0\n ")
        except OSError:
            continue
    if shutil.which("nvpmodel"):
        done = subprocess.run(
            ["nvpmodel", "-q"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        facts["power_mode"] = " ".join(done.stdout.decode(errors="replace").split())
    return facts


def _kit_command(folder: Path) -> int:
    """Run the kit beside this file, as a person does on a board."""

    def say(words: str) -> None:
        sys.stderr.write(words + "\n")

    try:
        report = run_kit(folder, say)
        (folder / REPORT).write_text(json.dumps(report) + "\n")
    except TensorRTError as error:
        say(f"run.py: {error}")
        return 6 if isinstance(error, NotHereError) else 1
    except OSError as error:
        say(f"run.py: {error}. The kit needs a folder that can be written, with room for its engines")
        return 1
    candidates: Any = report["candidates"]
    failed = [one for one in candidates if "failed" in one]
    for one in failed:
        say(f"{one['precision']} failed: {one['failed']}")
    refused = [(one, words) for one in candidates for words in one.get("objections", ())]
    for one, words in refused:
        say(f"{one['precision']}: {words}. It is not to be used")
    say(f"{folder / REPORT} is written: bring it back with `edgevit report DIR --import {REPORT}`")
    return 1 if failed or refused else 0


# Answering a process


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one thing and say in a line of JSON, the last on stdout, what came of it."""
    line = argparse.ArgumentParser(description="Parse or build ONNX files with TensorRT.")
    commands = line.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        command = commands.add_parser(name)
        command.add_argument("runtime", choices=sorted(MODULES))
        if name != "version":
            command.add_argument("onnx", type=Path)
    command.add_argument("options", help="as JSON")
    command.add_argument("out", type=Path, help="folder")
    asked = line.parse_args(arguments)
    tell = _open_answers()
    try:
        answer = COMMANDS[asked.command](asked)
    except NotHereError as error:
        tell({"answer": "missing", "words": str(error)})
    except TensorRTError as error:
        tell({"answer": "failed", "words": str(error)})
    else:
        tell(answer)
    return 0


def _version_command(asked: argparse.Namespace) -> dict[str, object]:
    trt = import_tensorrt(asked.runtime)
    return {"answer": "here", "module": trt.__name__, "version": str(trt.__version__)}


def _parse_command(asked: argparse.Namespace) -> dict[str, object]:
    trt = import_tensorrt(asked.runtime)
    log = Log(trt)
    _, network = open_network(trt, log)
    _, refusals = parse(trt, network, log, asked.onnx)
    parsed = Parsed(str(trt.__version__), trt.__name__, network.num_layers, refusals)
    return {"answer": "parsed", **asdict(parsed)}


def _build_command(asked: argparse.Namespace) -> dict[str, object]:
    trt = import_tensorrt(asked.runtime)
    options = json.loads(asked.options)
    cache = asked.out / TIMING_CACHE
    built = build(trt, asked.onnx, _options(options), cache.read_bytes() if cache.is_file() else b"")
    (asked.out / ENGINE).write_bytes(built.engine)
    if built.timing_cache:
        cache.write_bytes(built.timing_cache)
    return {"answer": "built", "facts": built.facts}


COMMANDS: dict[str, Callable[[argparse.Namespace], dict[str, object]]] = {
    "version": _version_command,
    "parse": _parse_command,
    "build": _build_command,
}


def _options(table: dict[str, Any]) -> BuildOptions:
    """Make options of JSON, whose lists are tuples here."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    return BuildOptions(**values)


def _open_answers() -> Callable[[dict[str, object]], None]:
    """Keep stdout for the answer alone: what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(answer: dict[str, object]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    return tell


if __name__ == "__main__":
    _here = Path(__file__).resolve().parent
    sys.exit(_kit_command(_here) if len(sys.argv) == 1 and (_here / KIT).is_file() else main())
