from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from small_onnx import classify, draw_images, write_classifier
from toy_dinos import dino
from toy_vits import fill, toy_model

from edgevit.backends import Session
from edgevit.backends.openvino import OpenVINO, require_capability, require_device
from edgevit.errors import BackendError, BackendUnavailableError
from edgevit.export.half import to_half
from edgevit.export.links import onnx_link, torch_link
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.parity import Link, check_parity, limits_for
from edgevit.models.families import from_timm
from edgevit.target import Precision, Target

TARGET = Target(name="test", runtime="openvino", threads=1)
HAS_BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _build(folder: Path, batch: int | str = 1) -> Path:
    return OpenVINO().build(write_classifier(folder / "m.onnx", batch=batch), TARGET, "fp32", folder / "ir")


def _load(folder: Path, batch: int | str = 1, precision: Precision = "fp32") -> Session:
    return OpenVINO().load(_build(folder, batch), TARGET, precision)


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16")
def test_run_bf16_is_near_the_reference_but_not_equal(tmp_path: Path) -> None:
    images = draw_images(1)
    with _load(tmp_path, precision="bf16") as session:
        assert session.device()["precision"] == "bf16"
        error = np.abs(session.run(images) - classify(images)).max()
    assert 1e-5 < error < 5e-2


def test_device_reports_the_threads_and_precision_asked_for(tmp_path: Path) -> None:
    with _load(tmp_path) as session:
        device = session.device()
    assert device["device"] == "CPU"
    assert device["threads"] == "1"
    assert device["streams"] == "1"
    assert device["precision"] == "f32"
    assert device["name"] == ov.Core().get_property("CPU", "FULL_DEVICE_NAME")


def test_build_twice_in_one_process_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "other place").mkdir()
    first, second = _build(tmp_path), _build(tmp_path / "other place")
    for name in ("model.xml", "model.bin"):
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()


def test_build_in_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    first = _build(tmp_path)
    code = (
        "import sys; from pathlib import Path; from edgevit.backends.openvino import OpenVINO;"
        "from edgevit.target import Target;"
        "OpenVINO().build(Path(sys.argv[1]), Target(runtime='openvino'), 'fp32', Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "m.onnx", tmp_path / "again"], check=True)
    assert first.read_bytes() == (tmp_path / "again" / "model.xml").read_bytes()


def test_build_keeps_fp32_weights_as_they_are(tmp_path: Path) -> None:
    model = ov.Core().read_model(_build(tmp_path))
    kinds = {op.get_element_type() for op in model.get_ops() if op.get_type_name() == "Constant"}
    assert ov.Type.f32 in kinds
    assert ov.Type.f16 not in kinds


def test_build_leaves_no_path_in_the_ir(tmp_path: Path) -> None:
    assert str(tmp_path) not in _build(tmp_path).read_text()


def test_build_from_truncated_onnx_names_file_version_and_cause(tmp_path: Path) -> None:
    onnx = write_classifier(tmp_path / "m.onnx")
    onnx.write_bytes(onnx.read_bytes()[:200])
    expected = r"m\.onnx: OpenVINO 20.* failed\. Its own words: .* The file \(200 bytes\) is truncated"
    with pytest.raises(BackendError, match=expected) as caught:
        OpenVINO().build(onnx, TARGET, "fp32", tmp_path / "ir")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_load_of_truncated_ir_says_so(tmp_path: Path) -> None:
    artefact = _build(tmp_path)
    artefact.write_text(artefact.read_text()[:500])
    with pytest.raises(BackendError, match=r"model\.xml: .* \(500 bytes\) is truncated"):
        OpenVINO().load(artefact, TARGET, "fp32")


def test_load_of_truncated_weights_names_the_bin(tmp_path: Path) -> None:
    artefact = _build(tmp_path)
    weights = artefact.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:10])
    with pytest.raises(BackendError, match=r"model\.bin is missing or truncated: build it again"):
        OpenVINO().load(artefact, TARGET, "fp32")


def test_load_without_weights_names_the_bin(tmp_path: Path) -> None:
    artefact = _build(tmp_path)
    artefact.with_suffix(".bin").unlink()
    with pytest.raises(BackendError, match=r"model\.bin is missing or truncated: build it again"):
        OpenVINO().load(artefact, TARGET, "fp32")


def test_load_on_a_device_that_is_not_here_lists_those_that_are(tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"device": "npu"})
    with pytest.raises(BackendUnavailableError, match=r"expected the device NPU, found CPU"):
        OpenVINO().load(_build(tmp_path), target, "fp32")


def test_require_device_with_one_of_several_accepts_the_family() -> None:
    require_device("GPU", ["CPU", "GPU.0", "GPU.1"])
    with pytest.raises(BackendUnavailableError, match=r"GPU\.2, found CPU, GPU\.0"):
        require_device("GPU.2", ["CPU", "GPU.0"])


@pytest.mark.parametrize(
    ("hint", "words"), [("bf16", "of x86 CPUs, one with avx512_bf16"), ("f16", "an Arm CPU, or of x86 CPUs")]
)
def test_require_capability_without_it_says_what_the_device_offers(hint: str, words: str) -> None:
    require_capability(hint, "Xeon", ["FP32", "BF16", "FP16"])
    expected = rf"computes in \w+16, Pentium offers FP32, INT8\. Use \"fp32\" or .* device: {words}"
    with pytest.raises(BackendUnavailableError, match=expected):
        require_capability(hint, "Pentium", ["FP32", "INT8"])


def test_fp16_graph_keeps_its_types_in_the_ir_and_gives_its_outputs(tmp_path: Path) -> None:
    model = toy_model()
    export_onnx(model, tmp_path / "fp32.onnx", ExportOptions(batch=1))
    image = np.random.default_rng(0).standard_normal((1, *model.arch.image)).astype(np.float32)
    to_half(tmp_path / "fp32.onnx", [image], tmp_path / "fp16.onnx")
    built = OpenVINO().build(tmp_path / "fp16.onnx", TARGET, "fp16", tmp_path / "ir")
    weights = [op for op in ov.Core().read_model(built).get_ops() if op.get_type_name() == "Constant"]
    assert {op.get_element_type() for op in weights} >= {ov.Type.f16}
    assert ov.Type.f32 not in {op.get_element_type() for op in weights if op.get_output_size() > 100}
    with OpenVINO().load(built, TARGET, "fp32") as session:  # which any CPU computes
        got = session.run(image)
    assert np.allclose(got, onnx_link(tmp_path / "fp16.onnx").run(image), atol=1e-2)


def test_artefact_moved_with_its_weights_still_loads(tmp_path: Path) -> None:
    moved = shutil.move(_build(tmp_path).parent, tmp_path / "moved")
    with OpenVINO().load(Path(moved) / "model.xml", TARGET, "fp32") as session:
        images = draw_images(1)
        np.testing.assert_allclose(session.run(images), classify(images), atol=1e-5)


ROTARY = {
    "DINOv3 with SwiGLU": partial(dino, swiglu_mlp=True),
    "rotation of neighbours, mean-pooled": partial(dino, rope_rotate_half=False, global_pool="avg"),
}


@pytest.mark.parametrize("form", ROTARY)
def test_rotary_model_gives_the_outputs_of_onnxruntime_and_torch(tmp_path: Path, form: str) -> None:
    model = from_timm(fill(ROTARY[form]()), form)
    onnx = tmp_path / "m.onnx"
    export_onnx(model, onnx, ExportOptions(opset=TARGET.opset))
    images = [np.random.default_rng(seed).standard_normal((1, 3, 32, 32), np.float32) for seed in range(4)]
    with OpenVINO().load(OpenVINO().build(onnx, TARGET, "fp32", tmp_path / "ir"), TARGET, "fp32") as session:
        artefact = Link("openvino", session.run)
        found = check_parity(onnx_link(onnx, 1), artefact, images, limits_for(model.arch, 1e-3), model.arch)
    assert found.outliers == 0
    assert found.top1_agreement == 1.0
    check_parity(torch_link(model), onnx_link(onnx, 1), images, limits_for(model.arch, 1e-4), model.arch)
