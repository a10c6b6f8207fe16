"""The machine and its state while timings were taken, as far as the kernel shows them.

What cannot be read is None; nothing is guessed. `root` is where /proc and /sys are, other than `/` only for a
copy of another machine's files.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

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
