"""What a build kit holds."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from small_onnx import classify, write_classifier

from edgevit.engine import Allowed, BuildOptions
from edgevit.kit.write import KitCandidate, Side, Stored, write_kit
from edgevit.target import Target, TensorRTOptions

OPTIONS = TensorRTOptions(versions=("8.6", "10.3"), workspace_mb=256, memory_mb=8192)
BOARD = Target(name="orin", runtime="tensorrt", device="board", tensorrt=OPTIONS)
IMAGES = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)


def make(folder: Path, target: Target = BOARD, *, external: bool = False, dynamic: bool = False) -> Path:
    source = folder / "source"
    source.mkdir()
    path = write_classifier(source / "fp32.onnx", external=external, batch="batch" if dynamic else 1)
    engine = None
    if target.device != "board":
        engine = source / "model.engine"
        engine.write_bytes(b"engine")
        (source / "model.engine.json").write_text('{"version": "1.7.1.116"}')
    side = Side(path, classify(IMAGES), Allowed(1e-3), engine)
    kit = folder / "kit"
    write_kit(kit, target, [KitCandidate("fp32", side, side)], Stored(IMAGES, 2, dynamic, "images"))
    return kit


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_kit_has_graphs_inputs_outputs_and_their_hashes(tmp_path: Path) -> None:
    kit = make(tmp_path)
    table = json.loads((kit / "kit.json").read_text())
    assert (table["target"], table["runtime"], table["versions"]) == ("orin", "tensorrt", ["8.6", "10.3"])
    assert table["images"]["batch"] == [2, 3, 2, 2]
    (candidate,) = table["candidates"]
    for entry in (table["images"], candidate["dense"]["outputs"], candidate["slim"]["outputs"]):
        assert sha256(kit / entry["file"]) == entry["sha256"]
    assert sha256(kit / "fp32" / "slim" / "model.onnx") == candidate["slim"]["onnx_sha256"]
    stored = np.frombuffer((kit / "fp32" / "dense" / "outputs.f32").read_bytes(), "<f4")
    assert np.array_equal(stored.reshape(4, -1), classify(IMAGES).astype(np.float32))
    assert BuildOptions(**table["options"]).workspace_mb == 256
    assert Allowed(**candidate["slim"]["allowed"]) == Allowed(1e-3, 0.0, None)


def test_kit_has_a_runner_for_python_3_8_that_needs_the_standard_library_alone(tmp_path: Path) -> None:
    tree = ast.parse((make(tmp_path) / "run.py").read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= {
        "__future__", "argparse", "array", "collections", "ctypes", "dataclasses", "hashlib", "importlib",
        "json", "math", "os", "pathlib", "platform", "random", "shutil", "statistics", "subprocess", "sys",
        "time", "types", "typing",
    }  # fmt: skip


def test_kit_says_how_it_is_used(tmp_path: Path) -> None:
    kit = make(tmp_path)
    text = (kit / "README.txt").read_text()
    assert text.startswith("Build kit of edgevit for orin with TensorRT 8.6 or 10.3, 8192 MiB of memory.")
    assert "edgevit report BUILD --import board-report.json" in text
    assert "sh build.sh" in text


def test_kit_takes_weights_beside_the_file_along(tmp_path: Path) -> None:
    kit = make(tmp_path, external=True)
    assert (kit / "fp32" / "slim" / "weights.data").stat().st_size > 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_script_has_shapes_where_the_batch_is_dynamic(tmp_path: Path, dynamic: bool) -> None:
    script = (make(tmp_path, dynamic=dynamic) / "build.sh").read_text()
    assert (
        "--minShapes=images:1x3x2x2 --optShapes=images:1x3x2x2 --maxShapes=images:32x3x2x2" in script
    ) == dynamic


def test_kit_with_engines_built_ahead_has_them_and_no_script(tmp_path: Path) -> None:
    options = TensorRTOptions(compute_capabilities=("8.6",))
    kit = make(tmp_path, Target(name="rtx", runtime="tensorrt-rtx", device="gpu", tensorrt=options))
    side = json.loads((kit / "kit.json").read_text())["candidates"][0]["slim"]
    assert sha256(kit / "fp32" / "slim" / "model.engine") == side["engine_sha256"]
    assert side["facts"] == {"version": "1.7.1.116"}
    assert not (kit / "build.sh").exists()
    assert "sh build.sh" not in (kit / "README.txt").read_text()


def test_kit_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = (
        make(folder)
        for folder in (tmp_path / "a", tmp_path / "b")
        if not folder.mkdir()  # type: ignore[func-returns-value]
    )
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
