"""Running engines and kits with a fake driver and a fake TensorRT: the calls and their order, no GPU."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from array import array
from pathlib import Path

import fake_tensorrt
import pytest
from conftest import FAKE_DRIVER

from edgevit import engine
from edgevit.engine import (
    KIT,
    REPORT,
    SCHEMA,
    BuildOptions,
    Cuda,
    Engine,
    NotHereError,
    TensorRTError,
    build,
    run_kit,
    sha256_of,
)

IMAGES = array("f", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0]).tobytes()
LOGITS = array("f", [3, 7, 11, 15, 19, 23, 0, 1, 0, 2, 0, 0]).tobytes()
SHAPE = (2, 6)
TIMING = {"warmup_s": 0.0, "seconds": 0.05, "min_samples": 20, "max_samples": 200}


def counted(driver: str, what: int) -> int:
    return int(ctypes.CDLL(driver).counted(what))


def test_driver_that_is_missing_says_so() -> None:
    with pytest.raises(NotHereError, match=r"no CUDA driver here .*Install NVIDIA's driver"):
        Cuda("libnowhere.so.1")


def test_driver_is_described(fake_driver: str) -> None:
    cuda = Cuda(fake_driver)
    assert cuda.describe() == {"name": "fake GPU", "compute_capability": "8.7", "cuda_driver": "12.6"}
    assert cuda.memory_mb() == (3000, 8000)


def test_driver_without_a_device_says_what_to_check(fake_driver: str, tmp_path: Path) -> None:
    subprocess.run(["cc", *FAKE_DRIVER, "-DINIT=100", "-o", str(tmp_path / "libcuda.so")], check=True)
    with pytest.raises(
        NotHereError,
        match=r"cuInit failed with 100 \(no CUDA-capable device is detected\)\. Check with nvidia",
    ):
        Cuda(str(tmp_path / "libcuda.so"))


def test_driver_that_lacks_a_function_is_too_old() -> None:
    with pytest.raises(NotHereError, match=r"the CUDA driver has no cuInit: it is too old\. Update NVIDIA's"):
        Cuda("libm.so.6")


def test_stream_is_given_back_once(fake_driver: str) -> None:
    before = counted(fake_driver, 3)
    with Cuda(fake_driver) as cuda:
        assert counted(fake_driver, 3) == before + 1
    cuda.close()
    assert counted(fake_driver, 3) == before


def test_engine_runs_through_a_graph_and_gives_its_memory_back(fake_driver: str) -> None:
    before = counted(fake_driver, 0), counted(fake_driver, 1), counted(fake_driver, 2)
    loaded = Engine(fake_tensorrt, b"engine", Cuda(fake_driver))
    assert (loaded.input_name, loaded.input_shape, loaded.output_names) == ("image", SHAPE, ("logits",))
    for start in (0, 48):
        batch = IMAGES[start : start + 48]
        got = loaded.run(ctypes.cast(ctypes.c_char_p(batch), ctypes.c_void_p).value or 0, SHAPE)
        assert got == LOGITS[start // 2 : start // 2 + 24]
    assert loaded.gpu_ms(3) == [1.5, 1.5, 1.5]
    assert loaded.graph_words == "yes"
    assert [layer.precision for layer in loaded.layers()] == ["fp32"]
    assert loaded.layer_ms(2) == {"sum": 0.5}
    assert fake_tensorrt.executed[-1].profiler is not None
    assert fake_tensorrt.executed[-3].profiler is None  # what is timed never gets one
    assert counted(fake_driver, 0) == before[0] + 2
    loaded.release()
    assert counted(fake_driver, 0) == before[0]
    assert (counted(fake_driver, 1) - before[1], counted(fake_driver, 2) - before[2]) == (1, 5)


def test_engine_that_is_broken_shows_the_log(fake_driver: str) -> None:
    with pytest.raises(
        TensorRTError,
        match=r"\(10 bytes\) does not load with 10\.3\.0\. TensorRT's log:\n  magic tag does not match",
    ):
        Engine(fake_tensorrt, b"broken one", Cuda(fake_driver))


def test_engine_refuses_another_shape(fake_driver: str) -> None:
    with pytest.raises(TensorRTError, match=r"takes no input of shape \[1, 6\]"):
        Engine(fake_tensorrt, b"engine", Cuda(fake_driver)).run(0, (1, 6))


def options() -> BuildOptions:
    return BuildOptions(precision="fp32", workspace_mb=64)


def test_build_keeps_the_timing_cache_and_its_hash(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    built = build(fake_tensorrt, tmp_path / "model.onnx", options(), b"earlier")
    assert (built.engine, built.timing_cache) == (b"graph", b"times")
    assert built.facts["timing_cache_sha256"] == sha256_of(b"times")
    assert built.facts["onnx_sha256"] == sha256_of(b"graph")
    assert built.facts["types"] == "the graph's"
    assert fake_tensorrt.configs[-1].cleared == {fake_tensorrt.BuilderFlag.TF32}


def test_build_that_gives_nothing_shows_the_log(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"unbuildable")
    with pytest.raises(
        TensorRTError, match=r"the build gave no engine. TensorRT's log:\n  no kernel for blocks\.0"
    ):
        build(fake_tensorrt, tmp_path / "model.onnx", options())


def test_truncated_timing_cache_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    with pytest.raises(
        TensorRTError, match=r"the timing cache \(9 bytes\) is truncated.* Remove it: the build"
    ):
        build(fake_tensorrt, tmp_path / "model.onnx", options(), b"truncated")


def test_flag_that_a_version_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    pinned = BuildOptions(precision="fp32", workspace_mb=64, pinned=True)
    with pytest.raises(
        TensorRTError, match=r"fake_tensorrt 10\.3\.0 has no builder flag ERROR_ON_TIMING_CACHE_MISS"
    ):
        build(fake_tensorrt, tmp_path / "model.onnx", pinned)


def write_kit(folder: Path, workspace_mb: int = 64) -> Path:
    """Write a kit as edgevit/kit/write.py does, for the fake engine."""
    sides = {}
    (folder / "images.f32").write_bytes(IMAGES)
    for side in ("dense", "slim"):
        where = folder / "fp32" / side
        where.mkdir(parents=True)
        (where / "model.onnx").write_bytes(side.encode())
        (where / "outputs.f32").write_bytes(LOGITS)
        outputs = {"file": f"fp32/{side}/outputs.f32", "sha256": sha256_of(LOGITS)}
        sides[side] = {
            "folder": f"fp32/{side}",
            "onnx_sha256": sha256_of(side.encode()),
            "outputs": outputs,
            "allowed": {"relative": 1e-3},
        }
    table = {
        "schema": SCHEMA,
        "runtime": "tensorrt",
        "versions": ["10.3"],
        "options": {"precision": "fp32", "workspace_mb": workspace_mb, "batches": [1, 1, 32]},
        "timing": TIMING,
        "images": {"file": "images.f32", "sha256": sha256_of(IMAGES), "batch": list(SHAPE)},
        "candidates": [{"precision": "fp32", **sides}],
    }
    (folder / KIT).write_text(json.dumps(table))
    return folder


@pytest.mark.usefixtures("fake_gpu")
def test_kit_builds_compares_times_and_tells(tmp_path: Path, fake_driver: str) -> None:
    held = counted(fake_driver, 0), counted(fake_driver, 3)
    steps: list[str] = []
    report = run_kit(write_kit(tmp_path), steps.append)
    assert steps == [
        "fp32, dense: building",
        "fp32, slim: building",
        "fp32: comparing with the stored outputs",
        "fp32, dense: top-1 is the graph's on 100.0% of 4 images, logits are up to 0 from its own",
        "fp32, slim: top-1 is the graph's on 100.0% of 4 images, logits are up to 0 from its own",
        "fp32: timing",
    ]
    (found,) = json.loads(json.dumps(report))["candidates"]
    assert found["parity"]["slim"] == {
        "images": 4, "max_abs": 0.0, "largest": 23.0, "beyond": 0, "top1_agreement": 1.0
    }  # fmt: skip
    assert found["objections"] == []
    assert len(found["taken"]["first_ns"]) == len(found["taken"]["bursts_ns"]) == 2
    assert sum(map(len, found["taken"]["bursts_ns"][0])) >= 20
    assert len(found["gpu_ms"]["dense"]) == 100
    assert (counted(fake_driver, 0), counted(fake_driver, 3)) == held  # memory and stream are given back
    assert (tmp_path / "fp32" / "slim" / "model.engine").read_bytes() == b"slim"
    assert (tmp_path / "timing.cache").read_bytes() == b"times"
    assert (report["version"], report["kit_sha256"]) == ("10.3.0", sha256_of((tmp_path / KIT).read_bytes()))


@pytest.mark.usefixtures("fake_gpu")
def test_kit_with_a_changed_file_says_which(tmp_path: Path) -> None:
    (write_kit(tmp_path) / "fp32" / "slim" / "model.onnx").write_bytes(b"other")
    (found,) = run_kit(tmp_path, print)["candidates"]  # type: ignore[attr-defined, misc]
    assert "fp32/slim/model.onnx: expected the kit's file" in found["failed"]
    assert "got 5 other bytes. Copy the whole kit anew" in found["failed"]


def store_outputs(kit: Path, logits: bytes, allowed: dict[str, float]) -> None:
    """Let a kit have other outputs for its slim side, and other limits."""
    table = json.loads((kit / KIT).read_text())
    (kit / "fp32" / "slim" / "outputs.f32").write_bytes(logits)
    table["candidates"][0]["slim"]["outputs"]["sha256"] = sha256_of(logits)
    table["candidates"][0]["slim"]["allowed"] = allowed
    (kit / KIT).write_text(json.dumps(table))


NEAR = array("f", [3, 7, 11, 15, 19, 24, 0, 1, 0, 2, 0, 0]).tobytes()
TURNED = array("f", [3, 7, 11, 15, 19, 23, 0, 1, 2, 2, 0, 0]).tobytes()


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize(
    ("logits", "allowed", "objection"),
    [
        (NEAR, {"relative": 0.05}, ""),
        (NEAR, {"relative": 0.01},
         "gives other outputs: its logits are up to 1 from those of its graph, allowed 0.24; top-1 is the"
         " same on 100.0% of 4 images"),
        (NEAR, {"relative": 0.01, "outliers": 0.25}, ""),
        (NEAR, {"relative": 0.01, "agreement": 0.9}, ""),
        (TURNED, {"relative": 0.3, "agreement": 0.75}, ""),
        (TURNED, {"relative": 0.3, "agreement": 0.9},
         "has its graph's top-1 on 75.0% of 4 images, expected 90%; its logits are up to 2 from those of its"
         " graph"),
    ],
)  # fmt: skip
def test_kit_judges_outputs_by_the_limits_of_the_precision(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    logits: bytes,
    allowed: dict[str, float],
    objection: str,
) -> None:
    store_outputs(write_kit(tmp_path), logits, allowed)
    assert engine._kit_command(tmp_path) == (1 if objection else 0)
    (found,) = json.loads((tmp_path / REPORT).read_text())["candidates"]
    assert found["objections"] == ([f"the slim engine {objection}"] if objection else [])
    assert (f"fp32: the slim engine {objection}. It is not to be used" in capsys.readouterr().err) == bool(
        objection
    )


@pytest.mark.usefixtures("fake_gpu")
def test_kit_whose_engine_gives_another_number_of_logits_says_what_to_do(tmp_path: Path) -> None:
    kit = write_kit(tmp_path)
    store_outputs(kit, LOGITS[:8], {"relative": 1e-3})
    (found,) = run_kit(kit, print)["candidates"]  # type: ignore[attr-defined, misc]
    assert "expected 2 logits as stored, the engine gave 12: one is of another model. Copy" in found["failed"]


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize(
    ("text", "message"),
    [("{", r"kit\.json: damaged \(.*Copy the whole kit anew"), ("[]", "expected a kit of schema 2")],
)
def test_damaged_kit_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / KIT).write_text(text)
    with pytest.raises(TensorRTError, match=message):
        run_kit(tmp_path, print)


@pytest.mark.usefixtures("fake_gpu")
def test_runner_writes_the_report_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine._kit_command(write_kit(tmp_path)) == 0
    assert json.loads((tmp_path / REPORT).read_text())["candidates"][0]["precision"] == "fp32"
    assert "bring it back with `edgevit report DIR --import" in capsys.readouterr().err


@pytest.mark.usefixtures("fake_gpu")
def test_runner_that_cannot_write_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write_kit(tmp_path) / REPORT).mkdir()
    assert engine._kit_command(tmp_path) == 1
    assert "The kit needs a folder that can be written, with room" in capsys.readouterr().err


def test_runner_without_tensorrt_or_device_says_so_and_exits_with_6(tmp_path: Path) -> None:
    (write_kit(tmp_path) / "run.py").write_bytes(engine.FILE.read_bytes())
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        pytest.skip("this machine can run kits")
    assert (done.returncode, done.stderr.splitlines()[0][:8]) == (6, "run.py: ")


@pytest.mark.usefixtures("fake_gpu")
def test_kit_on_a_board_without_room_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(
        TensorRTError, match=r"expected 4096 MiB .*of 8000 MiB are 3000 free.*lower workspace_mb"
    ):
        run_kit(write_kit(tmp_path, workspace_mb=4096), print)
