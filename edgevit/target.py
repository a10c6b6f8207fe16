"""What a target file says: the device, the runtime and how to time on it. Data; see docs/targets.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from edgevit.schema import FolderName, Problem, Strict, load_toml, section
from edgevit.shipped import find_shipped

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-bf16"]
"""What is computed in; int8-bf16: matrix products in int8, the rest in bf16 where int8 leaves it in fp32."""
Runtime = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
Multiple = Annotated[int, Field(ge=1)]
Opset = Annotated[int, Field(ge=13, le=23)]

TENSORRT_RUNTIMES: tuple[Runtime, ...] = ("tensorrt", "tensorrt-rtx")
TENSORRT_DEVICES = ("gpu", "board")
DEFAULT_TARGET = "openvino-cpu"


class Rules(Strict):
    """Counts that the device wants to be multiples of something; 1 allows every count."""

    heads: Multiple = 1
    """Kept heads per block are a multiple of this, >= 1."""
    qk_dim: Multiple = 1
    """Kept query/key dims per head are a multiple of this, >= 1."""
    vo_dim: Multiple = 1
    """Kept value/output dims per head are a multiple of this, >= 1."""
    hidden: Multiple = 1
    """Kept hidden neurons per block are a multiple of this, >= 1."""
    tokens: Multiple = 1
    """Tokens that leave a block are a multiple of this, >= 1."""


class FusedAttention(Strict):
    """Attention that the runtime computes as one kernel; of other dims it takes several."""

    precisions: tuple[Precision, ...] = Field(min_length=1)
    """Precisions in which it does."""
    dims: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Query/key and value/output dims of a head that the kernel takes, each >= 1."""
    equal_dims: bool = False
    """Whether query/key and value/output dims have to be equal."""
    max_tokens: int = Field(default=0, ge=0)
    """Most tokens that the kernel takes, >= 1; 0: any number."""

    def takes(self, qk_dim: int, vo_dim: int, tokens: int) -> bool:
        """Say whether an attention of these dims of a head, on so many tokens, is one kernel."""
        if self.max_tokens and tokens > self.max_tokens:
            return False
        return {qk_dim, vo_dim} <= set(self.dims) and (qk_dim == vo_dim or not self.equal_dims)


class Timing(Strict):
    """How dense and slim are timed against each other on the device."""

    warmup_s: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Seconds of untimed runs of each artefact before the first sample, >= 0."""
    seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Time budget in seconds for the samples of one compared pair, > 0."""
    min_samples: int = Field(default=50, ge=10)
    """Samples of each artefact taken even when the time budget is spent, >= 10."""
    max_samples: int = Field(default=2000, ge=10)
    """Samples of each artefact after which timing ends early, >= min_samples."""
    max_interval_ratio: float = Field(default=0.1, gt=0, le=1)
    """Widest 95 % interval of the speed-up that is still trusted, as (high - low) / speed-up, 0..1."""
    attempts: int = Field(default=3, ge=1, le=10)
    """How often a pair is timed at most, anew each time, until its times can be trusted, 1..10."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse fewer samples at most than at least."""
        low = table.get("min_samples", cls.model_fields["min_samples"].default)
        high = table.get("max_samples", cls.model_fields["max_samples"].default)
        if isinstance(low, int) and isinstance(high, int) and high < low:
            return [Problem("max_samples", f"expected at least min_samples = {low}, got {high}")]
        return []


class TensorRTOptions(Strict):
    """What TensorRT and TensorRT-RTX are told, and what the board has; absent for other runtimes."""

    versions: tuple[Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+$")], ...] = ()
    """Versions that a board may have, oldest first, for example "8.6": its build kit serves them all."""
    compute_capabilities: tuple[Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]$")], ...] = ()
    """Of the GPU, for example "8.7". TensorRT-RTX builds one engine for all that are named."""
    memory_mb: int = Field(default=0, ge=0)
    """Memory of the board in MiB, >= 1; 0: not known."""
    workspace_mb: int = Field(default=0, ge=0)
    """Most scratch memory that one layer may take, in MiB, >= 1; 0: TensorRT's own limit, all there is."""
    max_batch: int = Field(default=32, ge=1)
    """Most images per run where the batch is dynamic, >= 1."""
    version_compatible: bool = False
    """Let later versions of the same major load the engine; from 8.6 on."""
    hardware_compatible: Literal["none", "ampere+", "same-compute-capability"] = "none"
    """Which other GPUs may load the engine; "ampere+" from 8.6 on, the other from the last 10.x on."""
    timing_cache: str = ""
    """File with kernel times that builds read and add to, relative to the target's file; kits take it along.
    Empty: every build times its kernels anew."""
    pinned: bool = False
    """Build from the times in `timing_cache` alone and refuse where it lacks a layer; from 10.0 on."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse pinned kernel times without the file that has them."""
        if table.get("pinned") and not table.get("timing_cache"):
            return [Problem("pinned", "expected timing_cache beside it, the file to take the times from")]
        return []


class Target(Strict):
    """One device as edgevit sees it; every key but `runtime` has a default."""

    how_to_make: ClassVar[str] = "`edgevit targets` lists those that ship; docs/targets.md adds a device."

    name: FolderName = ""
    """Name of the target and of its folder in the build directory; default: the file's stem."""
    description: str = ""
    """One line for `edgevit targets`: what the device is."""
    source: str = ""
    """Where the facts in this file come from: a data sheet, a link, or how they were measured."""
    runtime: Runtime
    """The runtime that builds and runs the artefact."""
    device: str = Field(default="cpu", min_length=1)
    """The runtime's own name of the device, in lower case; TensorRT's: "gpu", of this machine, or "board"."""
    precisions: tuple[Precision, ...] = Field(default=("fp32",), min_length=1)
    """Precisions that are built and compared when the recipe names none, and that `edgevit targets` checks.

    `edgevit measure` takes the first where neither a build nor the artefact's folder says which it is.
    """
    batch: int = Field(default=1, ge=1)
    """Images per run when timing, >= 1."""
    threads: int = Field(default=0, ge=0)
    """Threads of the runtime, >= 1, or 0 for all cores."""
    opset: Opset = 18
    """ONNX opset of the exported graph, 13..23."""
    tensorrt: TensorRTOptions = TensorRTOptions()
    """What TensorRT is told, and what the board has."""
    rules: Rules = Rules()
    """Counts that the device wants to be multiples of something."""
    prefers: Rules = Rules()
    """Multiples that its kernels compute whole, so that counts between take no less time: budgets keep to
    them beside `rules`, while a plan by hand or by methods need not."""
    fused_attention: tuple[FusedAttention, ...] = ()
    """Attention that the runtime computes as one kernel: budgets keep to its dims, other plans are told."""
    timing: Timing = Timing()
    """How dense and slim are timed against each other."""

    @classmethod
    def conflicts(cls, table: Mapping[str, object]) -> list[Problem]:
        """Refuse a precision named twice, and TensorRT's options beside another runtime or without need."""
        return [*repeated_precisions("precisions", table.get("precisions")), *_tensorrt_problems(table)]


def _tensorrt_problems(table: Mapping[str, object]) -> list[Problem]:
    runtime, device = table.get("runtime"), table.get("device", "cpu")
    if runtime not in TENSORRT_RUNTIMES:
        found = f'expected only beside runtime = "tensorrt" or "tensorrt-rtx", got {runtime}'
        return [Problem("tensorrt", found)] if "tensorrt" in table else []
    if device not in TENSORRT_DEVICES:
        found = f'expected "gpu" (of this machine) or "board" (by a build kit), got "{device}"'
        return [Problem("device", found)]
    if device == "board" and not section(table, "tensorrt").get("versions"):
        found = 'expected the versions that the board has, such as ["8.6", "10.3"]'
        return [Problem("tensorrt.versions", found)]
    return []


def repeated_precisions(key: str, precisions: object) -> list[Problem]:
    """Return a problem under `key` when a list of precisions, as written, names one twice."""
    if not isinstance(precisions, tuple) or len(set(map(str, precisions))) == len(precisions):
        return []
    return [Problem(key, "expected each precision once, got " + ", ".join(map(str, precisions)))]


def load_target(name_or_path: str, relative_to: Path) -> Target:
    """Load the target that `name_or_path` means; a path is relative to the folder `relative_to`.

    Raises:
        RecipeError: no such target, or its file has problems (all are listed).
    """
    path = find_shipped("targets", name_or_path, relative_to)
    target = load_toml(path, Target)
    options, cache = target.tensorrt, target.tensorrt.timing_cache
    if cache:
        options = options.model_copy(update={"timing_cache": str((path.parent / cache).absolute())})
    return target.model_copy(update={"name": target.name or path.stem, "tensorrt": options})
