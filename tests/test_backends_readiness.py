from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgevit.backends.readiness import Readiness, read_readiness
from edgevit.board import read_installed
from edgevit.target import Precision, Target, load_target


def test_readiness_of_a_device_that_is_here_says_ready() -> None:
    readiness = read_readiness(Target(name="cpu", runtime="openvino"))
    assert readiness.missing == {"fp32": None}
    assert (list(readiness.versions), readiness.runs, readiness.reasons()) == (["openvino"], True, {})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_readiness_of_narrow_floats_is_what_the_device_offers(precision: Precision) -> None:
    readiness = read_readiness(Target(name="cpu", runtime="openvino", precisions=("fp32", precision)))
    offered = precision.upper() in read_installed("openvino", "CPU").capabilities
    assert (readiness.missing[precision] is None) == offered


def test_readiness_of_a_device_that_is_not_here_gives_one_reason_for_all_precisions() -> None:
    target = Target(name="npu", runtime="openvino", device="npu", precisions=("fp32", "bf16"))
    readiness = read_readiness(target)
    (reason,) = readiness.reasons()
    assert "expected the device NPU, found CPU" in reason
    assert "Install the device's driver" in reason
    assert (readiness.reasons()[reason], readiness.runs) == (["fp32", "bf16"], False)


def test_readiness_of_a_device_that_the_runtime_never_runs_on_names_the_one_it_does() -> None:
    missing = read_readiness(Target(name="npu", runtime="onnxruntime", device="npu")).missing["fp32"]
    assert missing is not None
    assert "expected the device cpu, got npu" in missing


def test_readiness_of_a_precision_that_the_runtime_lacks_leaves_the_others() -> None:
    readiness = read_readiness(Target(name="cpu", runtime="onnxruntime", precisions=("fp32", "bf16")))
    assert readiness.missing["fp32"] is None
    assert "expected a precision among fp32, fp16, int8, got bf16" in str(readiness.missing["bf16"])
    assert readiness.runs


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_readiness_without_the_runtime_names_the_pip_command(
    runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, runtime, None)  # what an import of a missing package sees
    readiness = read_readiness(Target.model_validate({"name": "cpu", "runtime": runtime}))
    assert readiness == Readiness({}, readiness.missing)
    assert f"Get it with: pip install {runtime}" in str(readiness.missing["fp32"])


def test_readiness_of_a_board_says_how_it_gets_its_engines() -> None:
    readiness = read_readiness(load_target("jetson-orin-nano", Path()))
    assert (readiness.versions, readiness.runs) == ({}, False)
    (reason,) = readiness.reasons()
    assert "a board's engines are built where they run" in reason
    assert "`edgevit build` writes a build kit for it" in reason


@pytest.mark.parametrize(("name", "extra"), [("nvidia-gpu", "tensorrt"), ("nvidia-rtx", "tensorrt-rtx")])
def test_readiness_without_tensorrt_names_the_extra(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    (reason,) = read_readiness(load_target(name, Path())).reasons()
    assert f"Get it with: pip install 'edgevit[{extra}]'" in reason
