from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_onnx import classify, draw_images, write_classifier

from edgevit.backends import Session
from edgevit.backends.onnxruntime import OnnxRuntime
from edgevit.errors import BackendError, BackendUnavailableError
from edgevit.target import Precision, Target

TARGET = Target(name="test", runtime="onnxruntime", threads=1)


def _build(folder: Path, *, batch: int | str = 1, external: bool = False) -> Path:
    onnx = write_classifier(folder / "m.onnx", batch=batch, external=external)
    return OnnxRuntime().build(onnx, TARGET, "fp32", folder / "built")


def _load(folder: Path, *, batch: int | str = 1) -> Session:
    return OnnxRuntime().load(_build(folder, batch=batch), TARGET, "fp32")


def test_device_reports_provider_and_threads(tmp_path: Path) -> None:
    with _load(tmp_path) as session:
        device = session.device()
    assert device["threads"] == "1"
    assert device["providers"] == "CPUExecutionProvider"
    assert device["precision"] == "f32"


def test_device_of_an_int8_graph_says_int8(tmp_path: Path) -> None:
    with OnnxRuntime().load(_build(tmp_path), TARGET, "int8") as session:
        assert session.device()["precision"] == "int8"


def test_build_copies_the_onnx_bytes(tmp_path: Path) -> None:
    artefact = _build(tmp_path)
    assert artefact.name == "model.onnx"
    assert artefact.read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_build_with_external_data_takes_it_along(tmp_path: Path) -> None:
    artefact = _build(tmp_path, external=True)
    (tmp_path / "weights.data").unlink()
    images = draw_images(1)
    with OnnxRuntime().load(artefact, TARGET, "fp32") as session:
        np.testing.assert_allclose(session.run(images), classify(images), atol=1e-5)


def test_build_without_its_external_data_names_the_file(tmp_path: Path) -> None:
    onnx = write_classifier(tmp_path / "m.onnx", external=True)
    (tmp_path / "weights.data").unlink()
    with pytest.raises(BackendError, match=r"weights\.data: expected a model file .* found none"):
        OnnxRuntime().build(onnx, TARGET, "fp32", tmp_path / "built")


def test_build_with_external_data_elsewhere_is_refused(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "m.onnx", external=True)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../weights.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match=r"data beside the file, got \.\./weights\.data"):
        OnnxRuntime().build(path, TARGET, "fp32", tmp_path / "built")


@pytest.mark.parametrize("precision", ["bf16", "int8-bf16"])
def test_build_of_another_precision_is_refused(tmp_path: Path, precision: Precision) -> None:
    with pytest.raises(BackendError, match=rf"onnxruntime: .* among fp32, fp16, int8, got {precision}"):
        OnnxRuntime().build(write_classifier(tmp_path / "m.onnx"), TARGET, precision, tmp_path / "built")


def test_build_from_truncated_onnx_names_file_and_cause(tmp_path: Path) -> None:
    onnx = write_classifier(tmp_path / "m.onnx")
    onnx.write_bytes(onnx.read_bytes()[:200])
    expected = r"m\.onnx: cannot be read as ONNX \(.*\)\. The file \(200 bytes\) is truncated"
    with pytest.raises(BackendError, match=expected) as caught:
        OnnxRuntime().build(onnx, TARGET, "fp32", tmp_path / "built")
    assert caught.value.__cause__ is not None


def test_load_of_truncated_onnx_says_so(tmp_path: Path) -> None:
    artefact = _build(tmp_path)
    artefact.write_bytes(artefact.read_bytes()[:200])
    with pytest.raises(BackendError, match=r"model\.onnx: .* \(200 bytes\) is truncated"):
        OnnxRuntime().load(artefact, TARGET, "fp32")


def test_load_of_truncated_external_data_says_so(tmp_path: Path) -> None:
    artefact = _build(tmp_path, external=True)
    weights = artefact.with_name("weights.data")
    weights.write_bytes(weights.read_bytes()[:10])
    with pytest.raises(BackendError, match=r"external data is missing or truncated"):
        OnnxRuntime().load(artefact, TARGET, "fp32")


def test_load_on_another_device_is_unavailable(tmp_path: Path) -> None:
    target = TARGET.model_copy(update={"device": "cuda"})
    with pytest.raises(BackendUnavailableError, match=r"expected the device cpu, got cuda"):
        OnnxRuntime().load(_build(tmp_path), target, "fp32")
