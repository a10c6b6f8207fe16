from __future__ import annotations

import ast
import os
import platform
import sys
from pathlib import Path

import pytest

import edgevit.board
from edgevit.board import (
    BURST_RUNS,
    Conditions,
    Options,
    load_model,
    plan_burst,
    read_conditions,
    read_installed,
    read_machine,
)
from edgevit.measure.protocol import time_budget
from edgevit.target import Timing

SOURCE = Path(edgevit.board.__file__).read_text()


def test_board_file_parses_as_python_3_8() -> None:
    assert ast.parse(SOURCE, feature_version=(3, 8)).body


def test_board_file_imports_only_what_a_board_has() -> None:
    imported = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy", "openvino", "onnxruntime"}


def test_runtime_that_the_board_file_does_not_know_is_refused(tmp_path: Path) -> None:
    expected = "runtime: expected one of onnxruntime, openvino, got tflite"
    with pytest.raises(ValueError, match=expected):
        load_model(tmp_path / "m.tflite", Options("tflite", "cpu", {}))
    with pytest.raises(ValueError, match=expected):
        read_installed("tflite", "cpu")


@pytest.mark.parametrize(
    ("run_s", "runs"),
    [
        (0.020, BURST_RUNS),
        (0.0001, 50),  # as many as fill BURST_S
        (0.1, 8),  # ten bursts in ten seconds leave room for ten runs, two of them untimed
        (10.0, 5),  # the fewest samples over ten bursts
        (1e-9, 200),  # the most samples over ten bursts
    ],
)
def test_plan_burst_fits_the_budget(run_s: float, runs: int) -> None:
    assert plan_burst(run_s, time_budget(Timing())) == runs


CPUINFO = """processor\t: 0
model name\t: Example CPU @ 2.00GHz
flags\t\t: fpu sse avx2 avx512f avx512_vnni avx512_bf16 amx_bf16

processor\t: 1
model name\t: another core
"""


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_read_machine_from_a_kernel_that_shows_all(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "proc/cpuinfo": CPUINFO,
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
            "sys/devices/system/cpu/intel_pstate/no_turbo": "1\n",
            "sys/firmware/acpi/platform_profile": "balanced\n",
        },
    )
    machine = read_machine({"openvino": "2026.4"}, root)
    assert machine.cpu == "Example CPU @ 2.00GHz"
    assert machine.flags == ("amx_bf16", "avx2", "avx512_bf16", "avx512_vnni", "avx512f")
    assert machine.governor == "performance"
    assert machine.turbo is False
    assert machine.power_profile == "balanced"
    assert machine.versions == {"openvino": "2026.4"}


def test_read_machine_of_an_arm_board_names_the_board(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n",
            "proc/device-tree/model": "Example Board Rev 1\0",
        },
    )
    machine = read_machine({}, root)
    assert machine.cpu == "Example Board Rev 1"
    assert machine.flags == ("asimd", "asimddp", "i8mm")


def test_read_machine_from_a_kernel_that_shows_nothing_invents_nothing(tmp_path: Path) -> None:
    machine = read_machine({}, tmp_path)
    assert (machine.cpu, machine.flags, machine.governor, machine.turbo) == (None, (), None, None)
    assert read_conditions(tmp_path) == Conditions(None, None, None, None)


def test_read_conditions_from_a_kernel_that_shows_all(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    root = _write(
        tmp_path,
        {
            "proc/loadavg": "1.25 0.90 0.50 1/100 4242\n",
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "3000000\n",
            f"{cpu}/cpu1/cpufreq/scaling_cur_freq": "2000000\n",
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "3\n",
            f"{cpu}/cpu1/thermal_throttle/core_throttle_count": "4\n",
            "sys/class/thermal/thermal_zone0/temp": "41000\n",
            "sys/class/thermal/thermal_zone1/temp": "62500\n",
        },
    )
    assert read_conditions(root) == Conditions(1.25, 2500.0, 62.5, 7)


def test_read_conditions_skips_a_sensor_that_answers_nonsense(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/temp": "not ready\n",
            "sys/class/thermal/thermal_zone1/temp": "-5000\n",
        },
    )
    assert read_conditions(root).temperature_c == -5.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_read_machine_here_agrees_with_the_system() -> None:
    machine = read_machine({})
    assert machine.kernel == platform.release()
    assert machine.affinity == tuple(sorted(os.sched_getaffinity(0)))
    assert read_conditions().load_1min is not None
