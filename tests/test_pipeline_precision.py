from __future__ import annotations

import contextlib
from pathlib import Path

import onnx
import pytest
from toy_build import write_toy

from edgevit.errors import MeasurementError, RecipeError
from edgevit.integrate.manifest import MANIFEST_FILE
from edgevit.pipeline.line import build
from edgevit.recipe import load_recipe
from edgevit.report.model import Report, load_report


def write_recipe(folder: Path, precisions: str, runtime: str = "onnxruntime") -> Path:
    recipe = write_toy(folder, more='prefer = "all"\n', runtime=runtime)
    target = folder / "short.toml"
    target.write_text(f"precisions = [{precisions}]\n" + target.read_text())
    return recipe


def run(recipe: Path, out: Path) -> Report:
    """Build; what a busy machine makes of the times is not what these tests are about."""
    with contextlib.suppress(MeasurementError):
        return build(load_recipe(str(recipe)), out)
    return load_report(out)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    folder = tmp_path_factory.mktemp("int8")
    return run(write_recipe(folder, '"fp32", "int8"'), folder / "out"), folder / "out"


def test_int8_graphs_are_published_beside_those_in_fp32(built: tuple[Report, Path]) -> None:
    _, out = built
    for name in ("onnx/fp32.onnx", "onnx/int8.onnx", "onnx/dense/int8.onnx", "short/int8/model.onnx"):
        assert (out / name).is_file()
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(out / "onnx/int8.onnx").graph.node)


def test_int8_is_compared_with_fp32_in_the_report(built: tuple[Report, Path]) -> None:
    fp32, int8 = built[0].results
    assert (fp32.precision, int8.precision) == ("fp32", "int8")
    assert fp32.fp32 is None
    assert int8.fp32 is not None
    assert int8.fp32.dense_agreement > 0.7
    assert int8.fp32.drop is not None
    share = int8.parity["slim_fp32_int8_agreement"]
    assert isinstance(share, float)
    assert 0.7 < share <= 1.0


def test_int8_artefact_is_smaller(built: tuple[Report, Path]) -> None:
    fp32, int8 = built[0].results
    assert int8.slim.bytes < fp32.slim.bytes


def test_int8_in_openvino_with_bf16_beside_it_shares_a_graph(tmp_path: Path) -> None:
    report = run(write_recipe(tmp_path, '"fp32", "int8", "int8-bf16"', "openvino"), tmp_path / "out")
    found = {one.precision: one for one in report.results}
    assert found["int8"].device["precision"] == "f32"
    if "int8-bf16" in found:  # where the CPU has bf16
        assert found["int8-bf16"].slim.sha256 == found["int8"].slim.sha256
    else:
        assert [one.precision for one in report.not_built] == ["int8-bf16"]


def test_int8_without_calibration_is_refused_at_once(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, '"fp32", "int8"')
    text = recipe.read_text().replace('[calibration]\nset = "calibration.toml"\nimages = 64\n', "")
    recipe.write_text(text)
    with pytest.raises(RecipeError, match=r"calibration: missing; int8 of target short takes the ranges"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()


def test_int8_without_fp32_to_judge_it_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"int8 is judged against fp32"):
        run(write_recipe(tmp_path, '"int8"'), tmp_path / "out")
