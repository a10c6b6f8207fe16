"""What runs where an artefact runs: load it, time it in bursts, read the machine. One file, for Python 3.8.

`edgevit measure --host` sends this file to a board, which needs NumPy and the runtime and nothing of edgevit.
On this machine the backends load and run artefacts through it, and the timing protocol takes its samples by
it, so a board runs the code that would run here. It decides nothing: a backend gives the options, the host
judges the samples. It is long because a board gets one file.

Shapes: B batch, C channels, H and W height and width of the image.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Callable, Mapping, Optional, Protocol, Sequence, Tuple

try:
    import numpy as np
except ImportError as exc:
    if __name__ != "__main__":
        raise
    sys.stdout.write(json.dumps({"answer": "missing", "module": "numpy", "words": str(exc)}) + "\n")
    sys.exit()

if TYPE_CHECKING:
    import onnxruntime as ort
    import openvino as ov
    from numpy.typing import NDArray

Shape = Tuple[Optional[int], ...]
"""Sizes of a tensor; None where the artefact leaves the size to each run (dynamic batch)."""
GRAPH_PRECISION = "edgevit.precision"
"""A setting that ONNX Runtime is not told: the graph's precision, which it does not report itself."""
Clock = Callable[[], int]
"""Nanoseconds from any start, never going back."""


# Loading and running


@dataclass(frozen=True)
class Options:
    """What a runtime is told when it loads an artefact."""

    runtime: str
    device: str
    """The runtime's own name of the device."""
    settings: Mapping[str, str | int]
    """The runtime's own names and values."""


@dataclass(frozen=True)
class Installed:
    """A runtime as it is installed on a machine."""

    version: str
    devices: tuple[str, ...]
    """Every device that the runtime sees."""
    name: str | None
    """Full name of the device asked for; None when the runtime does not see it, or gives no name."""
    capabilities: tuple[str, ...]
    """What that device computes with, in the runtime's words; empty where it says nothing of it."""


class RefusedError(Exception):
    """A model that edgevit does not run, as a bare fact; a runtime's own exceptions pass as they are."""


class Model(Protocol):
    """An artefact that a runtime has loaded; see `Session` in backends/base.py for what its names mean."""

    input_shape: Shape
    output_names: tuple[str, ...]

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the first output for `batch`."""
        ...

    def device(self) -> dict[str, str]:
        """Say what the runtime really uses, as it reports it."""
        ...


class OpenVINOModel:
    """A compiled model with one infer request, which every run uses again."""

    def __init__(self, path: Path, options: Options) -> None:
        import openvino

        core = openvino.Core()
        compiled = core.compile_model(core.read_model(path), options.device, dict(options.settings))
        _require_one_input([port.any_name for port in compiled.inputs])
        self._core = core
        self._request: ov.InferRequest = compiled.create_infer_request()
        self.input_shape: Shape = tuple(
            None if size.is_dynamic else size.get_length() for size in compiled.input(0).partial_shape
        )
        _require_sizes(self.input_shape)
        self.output_names = tuple(port.any_name for port in compiled.outputs)
        self._input = np.empty(0, np.float32)  # the request's own input tensor, once its shape is known

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Copy `batch` into the request's tensor, infer, and copy the first output."""
        # Small models run in 0.1 ms: the way here and back is kept to a few microseconds.
        if batch.shape != self._input.shape:
            self._fit_input_(batch.shape)
        self._input[:] = batch
        self._request.infer()
        return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)

    def _fit_input_(self, shape: tuple[int, ...]) -> None:
        tensor = self._request.get_input_tensor()
        if None in self.input_shape:
            tensor.shape = shape
        if tensor.data.dtype != np.float32:
            raise RefusedError(f"expected a float32 input, got {tensor.data.dtype}")
        self._input = tensor.data

    def device(self) -> dict[str, str]:
        """Read the compiled model's own settings."""
        compiled = self._request.get_compiled_model()
        device = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
        return {
            "device": device,
            "name": str(self._core.get_property(device, "FULL_DEVICE_NAME")),
            "threads": str(compiled.get_property("INFERENCE_NUM_THREADS")),
            "streams": str(compiled.get_property("NUM_STREAMS")),
            "precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
            "pinning": str(compiled.get_property("ENABLE_CPU_PINNING")).lower(),
        }


class OnnxRuntimeModel:
    """An inference session of ONNX Runtime; every run gets a new output array from it."""

    def __init__(self, path: Path, options: Options) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        enums = {
            "execution_mode": onnxruntime.ExecutionMode,
            "graph_optimization_level": onnxruntime.GraphOptimizationLevel,
        }
        for name, value in options.settings.items():
            if name == GRAPH_PRECISION:
                continue
            if "." in name:
                settings.add_session_config_entry(name, str(value))
            else:
                setattr(settings, name, getattr(enums[name], str(value)) if name in enums else value)
        session = onnxruntime.InferenceSession(str(path), settings, providers=[options.device])
        inputs = session.get_inputs()
        _require_one_input([port.name for port in inputs])
        self._session: ort.InferenceSession = session
        self._threads = int(options.settings.get("intra_op_num_threads", 0))
        self._precision = options.settings.get(GRAPH_PRECISION, "f32")
        self._input_name = str(inputs[0].name)
        self.input_shape: Shape = tuple(size if isinstance(size, int) else None for size in inputs[0].shape)
        _require_sizes(self.input_shape)
        self.output_names = tuple(str(port.name) for port in session.get_outputs())

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the graph on `batch`."""
        (output,) = self._session.run([self.output_names[0]], {self._input_name: batch})
        return np.asarray(output, dtype=np.float32)

    def device(self) -> dict[str, str]:
        """Say what the session was given, as ONNX Runtime reports no more."""
        return {
            "device": "CPU",
            "providers": ", ".join(self._session.get_providers()),
            "threads": str(self._threads) if self._threads else f"all of {os.cpu_count()}",
            "precision": str(self._precision),
        }


def load_model(path: Path, options: Options) -> Model:
    """Load an artefact; whatever the runtime raises passes, and `describe` puts it in words."""
    return _runtime(options.runtime).load(path, options)


def read_installed(runtime: str, device: str) -> Installed:
    """Read what `runtime` has here, of its devices most of all `device`.

    Raises:
        ImportError: the runtime is not installed.
    """
    return _runtime(runtime).read(device)


def _read_onnxruntime(device: str) -> Installed:
    import onnxruntime

    return Installed(str(onnxruntime.__version__), tuple(onnxruntime.get_available_providers()), None, ())


def _read_openvino(device: str) -> Installed:
    import openvino

    core = openvino.Core()
    devices = tuple(core.available_devices)
    if not has_device(device, devices):
        return Installed(str(openvino.__version__), devices, None, ())
    return Installed(
        str(openvino.__version__),
        devices,
        str(core.get_property(device, "FULL_DEVICE_NAME")),
        tuple(core.get_property(device, "OPTIMIZATION_CAPABILITIES")),
    )


def has_device(device: str, available: Sequence[str]) -> bool:
    """Say whether OpenVINO sees a device; `GPU` also fits `GPU.0`."""
    return any(device in (seen, seen.split(".")[0]) for seen in available)


def describe(error: Exception, runtime: str) -> str:
    """Put in words why a model was not loaded or run: edgevit's own reason, or what the runtime says."""
    if isinstance(error, RefusedError):
        return str(error)
    version = getattr(sys.modules.get(runtime), "__version__", "")
    title = _RUNTIMES[runtime].title if runtime in _RUNTIMES else runtime
    return f"{title} {version} failed. Its own words: {' '.join(str(error).split())}"


def _require_one_input(names: Sequence[str]) -> None:
    if len(names) != 1:
        raise RefusedError(f"expected a model with one input, got {len(names)}: {', '.join(names)}")


def _require_sizes(shape: Shape) -> None:
    """Refuse a file from elsewhere whose images may be of any size: none to time it at is the right one."""
    if None in shape[1:]:
        sizes = ", ".join("?" if size is None else str(size) for size in shape)
        raise RefusedError(
            f"expected an input whose sizes are known but for the batch, got [{sizes}]."
            " Export it for images of one size"
        )


@dataclass(frozen=True)
class _Runtime:
    """What this file knows of a runtime."""

    title: str
    load: Callable[[Path, Options], Model]
    read: Callable[[str], Installed]


_RUNTIMES = {
    "onnxruntime": _Runtime("ONNX Runtime", OnnxRuntimeModel, _read_onnxruntime),
    "openvino": _Runtime("OpenVINO", OpenVINOModel, _read_openvino),
}


def _runtime(name: str) -> _Runtime:
    if name not in _RUNTIMES:
        raise ValueError(f"runtime: expected one of {', '.join(_RUNTIMES)}, got {name}")
    return _RUNTIMES[name]


# Taking samples

LEAD_RUNS = 2
LEAD_S = 0.002
"""A burst begins with at least that many untimed runs, for at least that long. Measured on OpenVINO with a
ViT of 0.17 ms: its first run after the other artefact takes twice as long; 2 % are still left after 1 ms."""
BURST_RUNS = 10
BURST_S = 0.005
"""A burst has that many timed runs, more when they are over sooner than that, fewer when the time budget has
no room for `MIN_BURSTS` such bursts."""
MIN_BURSTS = 10
"""Fewer independent bursts say nothing about how sure the medians are."""
OVERTIME = 10
"""How many times the time budget may be spent to reach the wanted samples."""


@dataclass(frozen=True)
class TimeBudget:
    """How long to time, in the words of a target's `[timing]`."""

    warmup_s: float
    seconds: float
    min_samples: int
    max_samples: int


@dataclass(frozen=True)
class Taken:
    """Times as they were taken, in nanoseconds, of each artefact."""

    first_ns: list[int]
    """The very first run after loading, which no burst includes."""
    bursts_ns: list[list[list[int]]]
    """Runs of every burst; burst k of one artefact lies beside burst k of the other."""
    runs_per_burst: int


class Runnable(Protocol):
    """What can be timed: a model, or a session around it."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the first output for `batch`, complete when it returns."""
        ...


def timed_shape(shape: Shape, batch: int) -> tuple[int, ...]:
    """Return the shape of the sample for an input; `batch` where it is dynamic."""
    return tuple(batch if size is None else size for size in shape)


def draw_sample(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw the numbers that every run gets: a ViT takes as long for them as for an image."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def take_samples(
    models: Sequence[Runnable],
    sample: NDArray[np.float32],
    budget: TimeBudget,
    *,
    clock: Clock = time.perf_counter_ns,
    progress: Callable[[float], None] = lambda share: None,
) -> Taken:
    """Time one model, or two in bursts side by side; measure/protocol.py says why so.

    Timing ends when `budget.seconds` are spent and each model has `min_samples`, when each has `max_samples`,
    or after `OVERTIME` times the budget, whichever comes first. Warm-up comes on top.

    Args:
        models: one or two, on the same device with the same threads.
        sample: one batch that all take; every run gets it.
        budget: how long to time.
        clock: what to time with.
        progress: called after every burst with the share of the time that is over, 0..1.
    """
    warm = [_warm_up(model, sample, budget.warmup_s, clock) for model in models]
    runs = plan_burst(sum(run_s for _, run_s in warm), budget)
    order = np.random.default_rng(0)
    taken: list[list[list[int]]] = [[] for _ in models]
    begin = clock()
    share = 0.0
    while share < 1.0:
        for index in order.permutation(len(models)):
            taken[index].append(_time_burst(models[index], sample, runs, clock))
        share = _share_done(len(taken[0]), runs, (clock() - begin) / 1e9, budget)
        progress(share)
    return Taken([first_ns for first_ns, _ in warm], taken, runs)


def plan_burst(run_s: float, budget: TimeBudget) -> int:
    """Return how many timed runs a burst has, where one run of every model takes `run_s` > 0 together."""
    wanted = max(BURST_RUNS, math.ceil(BURST_S / run_s))
    room = math.floor(budget.seconds / MIN_BURSTS / run_s) - LEAD_RUNS
    fewest = math.ceil(budget.min_samples / MIN_BURSTS)
    most = budget.max_samples // MIN_BURSTS
    return min(max(min(wanted, room), fewest), most)


def _warm_up(model: Runnable, sample: NDArray[np.float32], seconds: float, clock: Clock) -> tuple[int, float]:
    """Run for `seconds`, at least LEAD_RUNS + 1 times; return the first run in ns, a typical one in s."""
    begin = clock()
    times: list[int] = []
    while len(times) <= LEAD_RUNS or clock() - begin < seconds * 1e9:
        times.append(_time_run(model, sample, clock))
    return times[0], max(1.0, statistics.median(times[1:])) / 1e9  # a clock may be too coarse for one run


def _time_burst(model: Runnable, sample: NDArray[np.float32], runs: int, clock: Clock) -> list[int]:
    begin, lead = clock(), 0
    while lead < LEAD_RUNS or clock() - begin < LEAD_S * 1e9:
        model.run(sample)
        lead += 1
    return [_time_run(model, sample, clock) for _ in range(runs)]


def _time_run(model: Runnable, sample: NDArray[np.float32], clock: Clock) -> int:
    begin = clock()
    model.run(sample)
    return clock() - begin


def _share_done(bursts: int, runs: int, spent_s: float, budget: TimeBudget) -> float:
    """Return how much of the timing is over, 1.0 when it ends."""
    enough = min(spent_s / budget.seconds, bursts * runs / budget.min_samples, bursts / MIN_BURSTS)
    most = bursts * runs >= budget.max_samples
    return 1.0 if most else min(1.0, max(enough, spent_s / (OVERTIME * budget.seconds)))


# The machine and its state, as far as the kernel shows them. What cannot be read is None; nothing is guessed.

ROOT = Path("/")
"""Where /proc and /sys are, other than `/` only for a copy of another machine's files."""

# Substrings of the kernel's flag names that decide which kernels a runtime picks.
_SPEED_FLAGS = ("avx2", "avx512", "avx_vnni", "avx10", "amx", "fma", "f16c", "asimd", "sve", "i8mm", "bf16")


@dataclass(frozen=True)
class Machine:
    """What does not change during a measurement."""

    cpu: str | None
    flags: tuple[str, ...]
    """Vector and matrix extensions of the CPU, sorted; empty when the kernel does not list them."""
    cores: int | None
    affinity: tuple[int, ...] | None
    """The cores that this process may use."""
    governor: str | None
    turbo: bool | None
    power_profile: str | None
    kernel: str
    python: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Conditions:
    """What may change during a measurement: read it before and after."""

    load_1min: float | None
    frequency_mhz: float | None
    """Mean over the cores, right now."""
    temperature_c: float | None
    """The hottest thermal zone."""
    throttle_count: int | None
    """Throttle events of all cores since boot."""


def read_machine(versions: Mapping[str, str], root: Path = ROOT) -> Machine:
    """Read what the machine is; `versions` are those of the libraries that computed, by name."""
    cpuinfo = _read_cpuinfo(root)
    flags = (cpuinfo.get("flags") or cpuinfo.get("Features") or "").split()
    cpufreq = root / "sys/devices/system/cpu/cpu0/cpufreq"
    return Machine(
        cpu=cpuinfo.get("model name") or _read(root / "proc/device-tree/model"),
        flags=tuple(sorted({flag for flag in flags if any(part in flag for part in _SPEED_FLAGS)})),
        cores=os.cpu_count(),
        affinity=tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None,
        governor=_read(cpufreq / "scaling_governor"),
        turbo=_read_turbo(root),
        power_profile=_read(root / "sys/firmware/acpi/platform_profile"),
        kernel=platform.release(),
        python=platform.python_version(),
        versions=dict(versions),
    )


def read_conditions(root: Path = ROOT) -> Conditions:
    """Read the machine's state now."""
    cpus = root / "sys/devices/system/cpu"
    load = _read(root / "proc/loadavg")
    clocks_khz = _read_numbers(cpus, "cpu[0-9]*/cpufreq/scaling_cur_freq")
    heat_millic = _read_numbers(root / "sys/class/thermal", "thermal_zone*/temp")
    throttles = _read_numbers(cpus, "cpu[0-9]*/thermal_throttle/core_throttle_count")
    return Conditions(
        load_1min=float(load.split()[0]) if load else None,
        frequency_mhz=round(sum(clocks_khz) / len(clocks_khz) / 1000, 1) if clocks_khz else None,
        temperature_c=max(heat_millic) / 1000 if heat_millic else None,
        throttle_count=sum(throttles) if throttles else None,
    )


def _read(path: Path) -> str | None:
    """Return a file's text without its end, None when it is missing, unreadable or empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _read_numbers(folder: Path, pattern: str) -> list[int]:
    texts = (_read(path) for path in sorted(folder.glob(pattern)))
    return [int(text) for text in texts if text and text.lstrip("-").isdigit()]


def _read_cpuinfo(root: Path) -> dict[str, str]:
    """Return the entries of the first core in /proc/cpuinfo."""
    text = _read(root / "proc/cpuinfo") or ""
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _read_turbo(root: Path) -> bool | None:
    cpus = root / "sys/devices/system/cpu"
    boost, no_turbo = _read(cpus / "cpufreq/boost"), _read(cpus / "intel_pstate/no_turbo")
    if boost is not None:
        return boost == "1"
    return no_turbo == "0" if no_turbo is not None else None


# Answering a host


@dataclass(frozen=True)
class Job:
    """What a host wants timed; the bytes of `files` follow in their order."""

    artefacts: Sequence[str]
    """The files to load, one or two, below the folder that all files go to."""
    files: Sequence[tuple[str, int]]
    """Names and sizes in bytes."""
    batch: int
    """Images per run where an input leaves that open."""
    budget: TimeBudget


def main(source: BinaryIO) -> None:
    """Answer one host: say what is here, take the artefacts, time them, give the samples.

    Host and board speak in lines of JSON. The board's have an `answer`; whatever else it prints is not meant
    for the host. Nothing is left behind, also when the host goes away in the middle.

    Args:
        source: what the host sends. Not `sys.stdin`: OpenVINO's telemetry forks, and the child, which closes
            `sys.stdin`, would wait forever for the lock that a reading thread holds.
    """
    tell = _open_answers()
    with tempfile.TemporaryDirectory(prefix="edgevit-") as folder:
        os.environ["TMPDIR"] = folder  # for what runtimes leave there, such as ONNX Runtime's file `.ses`
        _answer(source, Path(folder), tell)


Tell = Callable[[str, Mapping[str, object]], None]


def _open_answers() -> Tell:
    """Keep stdout for the answers alone: what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(kind: str, facts: Mapping[str, object]) -> None:
        answers.write(json.dumps({"answer": kind, **facts}) + "\n")
        answers.flush()

    return tell


def _answer(source: BinaryIO, folder: Path, tell: Tell) -> None:
    asked = json.loads(source.readline())
    options = Options(asked["runtime"], asked["device"], asked["settings"])
    try:
        installed = read_installed(options.runtime, options.device)
    except ImportError as exc:
        tell("missing", {"module": options.runtime, "words": str(exc)})
        return
    machine = read_machine({options.runtime: installed.version, "numpy": np.__version__})
    tell("installed", {"installed": asdict(installed), "machine": asdict(machine)})
    line = source.readline()
    if line:  # nothing, where the host will not have this device
        job = _read_job(line)
        for name, size_bytes in job.files:
            _receive(source, folder / name, size_bytes)
        _answer_job(job, folder, options, tell)


def _read_job(line: bytes) -> Job:
    job = json.loads(line)
    return Job(job["artefacts"], job["files"], job["batch"], TimeBudget(**job["budget"]))


def _answer_job(job: Job, folder: Path, options: Options, tell: Tell) -> None:
    models: list[Model] = []
    try:
        for name in job.artefacts:
            models.append(load_model(folder / name, options))
        shapes = [timed_shape(model.input_shape, job.batch) for model in models]
        tell("loaded", {"shapes": shapes})
        if len(set(shapes)) > 1:
            return  # the host says so
        before = read_conditions()
        taken = take_samples(models, draw_sample(shapes[0]), job.budget, progress=_each_second(tell))
    except Exception as exc:
        # They are loaded one by one; a run that fails may be of either.
        which = len(models) if len(models) < len(job.artefacts) else None
        tell("failed", {"artefact": which, "words": describe(exc, options.runtime)})
        raise SystemExit(1) from exc
    conditions = [asdict(before), asdict(read_conditions())]
    tell("taken", {"taken": asdict(taken), "device": models[-1].device(), "conditions": conditions})


def _receive(source: BinaryIO, path: Path, size_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        while size_bytes:
            chunk = source.read(min(size_bytes, 2**20))
            if not chunk:
                sys.exit("the host went away")
            file.write(chunk)
            size_bytes -= len(chunk)


def _each_second(tell: Tell) -> Callable[[float], None]:
    """Tell the progress, but seldom: sending it takes time from what is timed."""
    last = time.monotonic()

    def progress(share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= 1.0:
            last = time.monotonic()
            tell("progress", {"share": share})

    return progress
