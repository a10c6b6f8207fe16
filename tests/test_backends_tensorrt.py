"""The TensorRT backends: real engines where TensorRT-RTX builds them without a GPU, refusals everywhere."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from real_tensorrt import env_of
from small_onnx import write_classifier

from edgevit.backends import get_backend
from edgevit.backends.graph_precision import graph_precision, require_graph_precision
from edgevit.backends.preflight import ask_process
from edgevit.backends.tensorrt import TensorRT, build_options, read_side_file
from edgevit.engine import BuildOptions
from edgevit.errors import BackendError, BackendUnavailableError
from edgevit.target import Precision, Target, TensorRTOptions

BOARD = Target(name="orin", runtime="tensorrt", device="board", tensorrt=TensorRTOptions(versions=("8.6",)))
GPU = Target(name="gpu", runtime="tensorrt", device="gpu")
BUILD = """
import json, sys
from pathlib import Path
from edgevit.backends import get_backend
from edgevit.errors import EdgevitError
from edgevit.target import Target
target = Target.model_validate_json(sys.argv[1])
try:
    print(get_backend(target.runtime).build(Path(sys.argv[2]), target, "fp32", Path(sys.argv[3])))
except EdgevitError as error:
    print(type(error).__name__, error)
"""


def build(version: str, target: Target, path: Path, out: Path) -> str:
    """Build in a process with a real TensorRT; return the artefact's path, or the error."""
    command = [sys.executable, "-c", BUILD, target.model_dump_json(exclude_unset=True), str(path), str(out)]
    done = subprocess.run(command, env=env_of(version), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def rtx(*capabilities: str) -> Target:
    options = TensorRTOptions(compute_capabilities=capabilities)
    return Target(name="rtx", runtime="tensorrt-rtx", device="gpu", tensorrt=options)


@pytest.mark.tensorrt
@pytest.mark.parametrize("batch", [1, "batch"])
def test_rtx_engine_is_built_without_a_gpu(tmp_path: Path, batch: int | str) -> None:
    path = write_classifier(tmp_path / "model.onnx", batch=batch)
    said = build("rtx-1.7", rtx("8.6", "12.0"), path, tmp_path / "out")
    assert said == str(tmp_path / "out" / "model.engine")
    assert Path(said).stat().st_size > 1000
    facts = read_side_file(Path(said))
    assert (facts["version"], facts["compute_capabilities"]) == ("1.7.1.116", "8.6, 12.0")
    assert len(facts["onnx_sha256"]) == 64


@pytest.mark.tensorrt
def test_rtx_build_for_a_gpu_that_it_does_not_know_names_those_it_does(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "model.onnx")
    said = build("rtx-1.7", rtx("8.7"), path, tmp_path / "out")
    assert "BackendError" in said
    assert "builds for SM75, SM80, SM86, SM89, SM120, SM121, not for compute capability 8.7" in said


@pytest.mark.tensorrt
def test_build_without_a_gpu_says_what_is_missing(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "model.onnx")
    said = build("10.15", GPU, path, tmp_path / "out")
    assert said.startswith("BackendUnavailableError tensorrt: no CUDA driver here")
    assert "Install NVIDIA's driver, or choose a target whose kit is built on the board" in said


def test_board_says_that_a_kit_is_written_for_it() -> None:
    with pytest.raises(BackendUnavailableError, match=r"a board.*writes a build kit.*--import FILE"):
        get_backend("tensorrt").options(BOARD, "fp32")


def test_options_of_a_target_reach_the_build() -> None:
    options = TensorRTOptions(
        workspace_mb=512, max_batch=8, version_compatible=True, hardware_compatible="ampere+"
    )
    target = Target(runtime="tensorrt", device="gpu", batch=2, tensorrt=options)
    assert build_options(target, "fp16") == BuildOptions(
        precision="fp16",
        workspace_mb=512,
        batches=(1, 2, 8),
        version_compatible=True,
        hardware_compatible="ampere+",
    )


@pytest.mark.parametrize("pinned", [False, True])
def test_kernel_times_are_used_again_and_added_to_unless_they_are_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    seen = []

    def build_with_fake(self: TensorRT, onnx: Path, options: BuildOptions, out: Path) -> dict[str, str]:
        seen.append((out / "timing.cache").read_bytes())
        (out / "timing.cache").write_bytes(b"more times")
        return {}

    monkeypatch.setattr(TensorRT, "_build", build_with_fake)
    monkeypatch.setattr(TensorRT, "check", lambda self: None)
    (tmp_path / "kept.cache").write_bytes(b"times")
    options = TensorRTOptions(
        compute_capabilities=("8.6",), timing_cache=str(tmp_path / "kept.cache"), pinned=pinned
    )
    target = Target(name="rtx", runtime="tensorrt-rtx", device="gpu", tensorrt=options)
    TensorRT("tensorrt-rtx").build(write_classifier(tmp_path / "m.onnx"), target, "fp32", tmp_path / "out")
    assert seen == [b"times"]
    assert (tmp_path / "kept.cache").read_bytes() == (b"times" if pinned else b"more times")


def test_side_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.engine.json").write_text("[")
    with pytest.raises(BackendError, match=r"model\.engine\.json: cannot be read"):
        read_side_file(tmp_path / "model.engine")


def test_side_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert read_side_file(tmp_path / "model.engine") == {}


def write_graph(path: Path, precision: Precision) -> Path:
    dtype = np.float16 if precision == "fp16" else np.float32
    weight = numpy_helper.from_array(np.ones((3, 3), dtype), "weight")
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(0, np.int8), "zero")
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, kind, [1, 3]) for name in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"])]
    if precision == "int8":
        nodes.insert(0, helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]))
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], [weight, scale, zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_precision_is_read_from_the_graph(tmp_path: Path, precision: Precision) -> None:
    assert graph_precision(write_graph(tmp_path / "model.onnx", precision)) == precision


def test_graph_of_another_precision_is_refused(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "model.onnx", "fp32")
    with pytest.raises(
        BackendError, match=r'expected a graph in fp16, got one in fp32.*precisions = \["fp32"\]'
    ):
        require_graph_precision(path, "fp16")


def test_graph_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(BackendError, match=r"model\.onnx: cannot be read as ONNX"):
        graph_precision(tmp_path / "model.onnx")


def write_engine(folder: Path, **facts: str) -> Path:
    (folder / "model.engine").write_bytes(b"engine")
    known = {"version": "10.3.0", "compute_capability": "8.7", **facts}
    (folder / "model.engine.json").write_text(json.dumps(known))
    return folder / "model.engine"


@pytest.mark.usefixtures("fake_gpu")
def test_engine_is_loaded_and_run_and_gives_back_what_it_held(tmp_path: Path, fake_driver: str) -> None:
    counted = ctypes.CDLL(fake_driver).counted
    held = counted(0), counted(3)
    batch = np.arange(12, dtype=np.float32).reshape(2, 6)
    with get_backend("tensorrt").load(write_engine(tmp_path), GPU, "fp32") as session:
        assert (session.input_shape, session.output_names) == ((2, 6), ("logits",))
        assert np.array_equal(session.run(batch), batch.reshape(2, 3, 2).sum(-1))
        assert session.device_ms(2) == [1.5, 1.5]
        assert session.device() == {
            "version": "10.3.0", "cuda_graph": "yes", "layers_put_out": "fp32", "name": "fake GPU",
            "compute_capability": "8.7", "cuda_driver": "12.6",
        }  # fmt: skip
        with pytest.raises(BackendError, match=r"expected a float32 batch of shape \[2, 6\]"):
            session.run(batch[:1])
    assert (counted(0), counted(3)) == held
    with pytest.raises(ValueError, match="this session was left"):
        session.run(batch)


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"version": "8.6.1"},
            r"model\.engine: the engine was built by TensorRT 8\.6\.1, here is 10\.3\.0: build",
        ),
        ({"compute_capability": "7.2"}, r"built for compute capability 7\.2; this GPU \(fake GPU\) has 8\.7"),
    ],
)
def test_engine_that_does_not_fit_is_refused_and_nothing_stays_open(
    tmp_path: Path, fake_driver: str, facts: dict[str, str], message: str
) -> None:
    held = ctypes.CDLL(fake_driver).counted(3)
    with pytest.raises(BackendError, match=message):
        get_backend("tensorrt").load(write_engine(tmp_path, **facts), GPU, "fp32")
    assert ctypes.CDLL(fake_driver).counted(3) == held


@pytest.mark.usefixtures("fake_gpu")
def test_build_that_the_gpu_has_no_room_for_says_what_to_lower(tmp_path: Path) -> None:
    target = GPU.model_copy(update={"tensorrt": TensorRTOptions(workspace_mb=4096)})
    path = write_classifier(tmp_path / "model.onnx")
    with pytest.raises(
        BackendError, match=r"gpu: expected 4096 MiB .* 3000 free.*lower tensorrt\.workspace_mb"
    ):
        get_backend("tensorrt").build(path, target, "fp32", tmp_path / "out")


@pytest.mark.usefixtures("fake_gpu")
def test_complaint_about_kernel_times_names_the_users_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "the timing cache (9 bytes) is truncated. Remove it"
    monkeypatch.setattr(
        "edgevit.backends.tensorrt.ask_process", lambda arguments: {"answer": "failed", "words": words}
    )
    options = TensorRTOptions(timing_cache=str(tmp_path / "mine.cache"))
    path = write_classifier(tmp_path / "model.onnx")
    with pytest.raises(BackendError, match=r"is truncated\. Remove it\n  The timing cache is .*mine\.cache"):
        get_backend("tensorrt").build(
            path, GPU.model_copy(update={"tensorrt": options}), "fp32", tmp_path / "out"
        )


@pytest.mark.tensorrt
def test_build_of_8_without_a_driver_says_what_to_install(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "model.onnx")
    answer = ask_process(
        ["build", "tensorrt", str(path), json.dumps(asdict(BuildOptions("fp32"))), str(tmp_path)],
        env_of("8.6"),
    )
    assert answer["answer"] == "failed"
    assert "Install or update NVIDIA's driver" in str(answer["words"])
