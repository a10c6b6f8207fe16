from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from toy_vits import noise_images, toy_arch, toy_model, toy_plan

from edgevit.errors import ExportError
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.parts import cut_parts
from edgevit.models.anatomy import slim_arch
from edgevit.plan import Counts

PARTS = {"stem": range(1), "middle": range(1, 3), "last": range(3, 4)}


def _run(path: Path, given: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return np.asarray(session.run(None, {entry.name: given})[0])


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of four blocks, of which the second merges six tokens."""
    dense = toy_model(toy_arch(depth=4))
    plan = toy_plan(dense, Counts(tokens=[17, 11, 11, 11], hidden=[40, 40, 20, 40]), dead_tokens=True)
    path = tmp_path_factory.mktemp("parts") / "fp32.onnx"
    export_onnx(toy_model(slim_arch(dense.arch, plan)), path, ExportOptions())
    return path


def test_parts_in_a_row_compute_what_the_whole_does(tmp_path: Path) -> None:
    model, path = toy_model(toy_arch(depth=4)), tmp_path / "fp32.onnx"
    export_onnx(model, path, ExportOptions())
    image = noise_images(1).numpy()
    passed = image
    for name, part in cut_parts(path, PARTS, tmp_path).items():
        passed = _run(part, passed)
        assert passed.shape == ((1, 5) if name == "last" else (1, 17, 24))
    np.testing.assert_allclose(passed, _run(path, image), rtol=1e-4, atol=1e-5)


def test_part_behind_a_merge_has_sizes_of_its_own(merging: Path, tmp_path: Path) -> None:
    parts = {"merge": range(1, 2), "sized": range(2, 3), "last": range(3, 4)}
    files = cut_parts(merging, parts, tmp_path)
    tokens = np.random.default_rng(0).standard_normal((1, 17, 24)).astype(np.float32)
    passed = _run(files["merge"], tokens)
    assert passed.shape == (1, 11, 24)
    passed = _run(files["sized"], passed)
    assert passed.shape == (1, 11, 24)
    assert _run(files["last"], passed).shape == (1, 5)
    sized = onnx.load(files["sized"])
    assert [node.op_type for node in sized.graph.node if "TopK" in node.op_type] == []
    assert "Log" in {node.op_type for node in sized.graph.node}


def test_part_has_the_weights_of_its_blocks_alone(merging: Path, tmp_path: Path) -> None:
    (path,) = cut_parts(merging, {"sized": range(2, 3)}, tmp_path).values()
    dims = {tensor.name: list(tensor.dims) for tensor in onnx.load(path).graph.initializer}
    weights = {name for name in dims if name.endswith("weight")}
    assert all(name.startswith("blocks.2.") for name in weights)
    assert [20, 24] in dims.values() or [24, 20] in dims.values()


def test_block_that_is_not_there_is_named(merging: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"blocks\.6"):
        cut_parts(merging, {"none": range(7, 8)}, tmp_path)
