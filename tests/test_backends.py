"""What every runtime that is installed here has to do alike; what is its own is tested in its own file."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from onnx import load, save
from small_onnx import classify, draw_images, write_classifier

from edgevit.backends import BACKENDS, Backend, Session, get_backend
from edgevit.errors import BackendError, BackendUnavailableError
from edgevit.target import TENSORRT_RUNTIMES, Runtime, Target

# TensorRT needs a GPU to load anything; what it does without one is in test_backends_tensorrt.py.
HERE = [runtime for runtime in BACKENDS if runtime not in TENSORRT_RUNTIMES]
pytestmark = pytest.mark.parametrize("runtime", HERE)


def _target(runtime: Runtime) -> Target:
    return Target(name="test", runtime=runtime, threads=1)


def _load(runtime: Runtime, folder: Path, batch: int | str = 1) -> Session:
    backend: Backend = get_backend(runtime)
    onnx = write_classifier(folder / "m.onnx", batch=batch)
    artefact = backend.build(onnx, _target(runtime), "fp32", folder / "built")
    return backend.load(artefact, _target(runtime), "fp32")


def test_backend_of_an_installed_runtime_says_its_version(runtime: Runtime) -> None:
    backend = get_backend(runtime)
    backend.check()
    (name, version), *_ = backend.versions().items()
    assert (name, version.split("-")[0]) == (runtime, metadata.version(runtime))


def test_backend_without_its_runtime_names_the_pip_command(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, runtime, None)  # what an import of a missing package sees
    with pytest.raises(BackendUnavailableError, match=rf"not installed here .*pip install {runtime}"):
        get_backend(runtime).check()


def test_run_fp32_equals_the_reference(runtime: Runtime, tmp_path: Path) -> None:
    images = draw_images(1)
    with _load(runtime, tmp_path) as session:
        assert session.input_shape == (1, 3, 2, 2)
        assert session.output_names == ("logits",)
        logits = session.run(images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, classify(images), atol=1e-5)


def test_file_with_another_input_says_what_is_expected(runtime: Runtime, tmp_path: Path) -> None:
    onnx = write_classifier(tmp_path / "m.onnx")
    model = load(onnx)
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    save(model, tmp_path / "any.onnx")
    built = get_backend(runtime).build(tmp_path / "any.onnx", _target(runtime), "fp32", tmp_path / "any")
    with pytest.raises(BackendError, match=r"whose sizes are known but for the batch, got \[1, 3, 2, \?\]"):
        get_backend(runtime).load(built, _target(runtime), "fp32")


def test_run_dynamic_batch_takes_every_size(runtime: Runtime, tmp_path: Path) -> None:
    with _load(runtime, tmp_path, "batch") as session:
        assert session.input_shape == (None, 3, 2, 2)
        for count in (3, 1, 7):
            images = draw_images(count)
            np.testing.assert_allclose(session.run(images), classify(images), atol=1e-5)


def test_run_twice_leaves_the_first_output_alone(runtime: Runtime, tmp_path: Path) -> None:
    first, second = draw_images(2)[:1], draw_images(2)[1:]
    with _load(runtime, tmp_path) as session:
        logits = session.run(first)
        session.run(second)
    np.testing.assert_allclose(logits, classify(first), atol=1e-5)


def test_run_with_another_batch_is_refused_and_not_broadcast(runtime: Runtime, tmp_path: Path) -> None:
    expected = r"shape \[4, 3, 2, 2\], got float32 \[1, 3, 2, 2\]"
    with _load(runtime, tmp_path, 4) as session, pytest.raises(BackendError, match=expected):
        session.run(draw_images(1))


def test_run_with_float64_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    with (
        _load(runtime, tmp_path) as session,
        pytest.raises(BackendError, match=r"float32 batch .* got float64"),
    ):
        session.run(draw_images(1).astype(np.float64))


def test_run_after_leaving_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    with _load(runtime, tmp_path) as session:
        pass
    with pytest.raises(ValueError, match="session was left"):
        session.run(draw_images(1))


def test_build_from_an_empty_file_says_so(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(BackendError, match=rf"m\.onnx: expected a model file for {runtime}, got 0 bytes"):
        get_backend(runtime).build(tmp_path / "m.onnx", _target(runtime), "fp32", tmp_path / "built")


def test_load_of_a_missing_file_says_so(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=rf"no such: expected a model file for {runtime}, found none"):
        get_backend(runtime).load(tmp_path / "no such", _target(runtime), "fp32")


def test_load_of_another_runtimes_artefact_says_so(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"something else")
    with pytest.raises(
        BackendError, match=rf"model\.engine: expected .*\.onnx, which is what {runtime} loads"
    ):
        get_backend(runtime).load(tmp_path / "model.engine", _target(runtime), "fp32")
