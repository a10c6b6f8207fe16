from __future__ import annotations

import contextlib
from pathlib import Path

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_build import write_images, write_toy

from edgevit.errors import ImagesError, MeasurementError, RecipeError
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


def test_int8_layers_are_in_the_report_with_what_each_costs(built: tuple[Report, Path]) -> None:
    dense, slim = built[0].int8
    assert (dense.side, slim.side) == ("dense", "slim")
    names = {layer.name for layer in slim.layers}
    assert {"patch_embed", "blocks.0.attn.q", "blocks.1.mlp.fc2", "head"} < names
    assert all(layer.macs > 0 and layer.sqnr_db > 10 and layer.kl >= 0 for layer in slim.layers)
    assert all(layer.returned is None for layer in slim.layers)
    assert slim.before == slim.after
    assert slim.after.agreement == built[0].results[1].parity["slim_fp32_int8_agreement"]


def test_int8_layers_go_back_to_float_until_a_limit_holds(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, '"fp32", "int8"')
    free = run(recipe, tmp_path / "out").int8[1]
    limit = 0.5 * free.before.expected_drop
    text = recipe.read_text()
    recipe.write_text(f"{text}[int8]\nmax_drop = {limit}\n")
    report = run(recipe, tmp_path / "out")
    facts = report.int8[1]
    returned = sorted(layer.returned for layer in facts.layers if layer.returned is not None)
    assert returned == list(range(1, len(returned) + 1))
    assert returned
    assert facts.after.expected_drop <= limit < facts.before.expected_drop
    stages = {stage.name: stage.reused for stage in report.stages}
    assert stages["quantise slim"]  # another limit quantises nothing again
    constants = {tensor.name for tensor in onnx.load(tmp_path / "out/onnx/int8.onnx").graph.initializer}
    weights = {f"{layer.name}.weight" for layer in facts.layers if layer.returned is not None}
    assert weights & constants
    again = run(recipe, tmp_path / "out")
    assert all(stage.reused for stage in again.stages if "int8" in stage.name and "time" not in stage.name)
    assert again.int8 == report.int8


def test_int8_calibrated_on_one_class_is_built_with_a_warning(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, '"fp32", "int8"')
    files = sorted((tmp_path / "calibration").rglob("*.png"))
    columns = {"image": [{"bytes": file.read_bytes()} for file in files], "label": [3] * len(files)}
    pq.write_table(pa.table(columns), tmp_path / "calibration.parquet")
    (tmp_path / "calibration.toml").write_text('kind = "parquet"\npath = "calibration.parquet"\n')
    report = run(recipe, tmp_path / "out")
    assert [line for line in report.warnings if "one class" in line] == [
        "all 64 calibration images are of one class: what is fitted to them may not hold for others"
    ]
    assert report.evaluation is not None
    assert report.evaluation.seen == 0.0


def test_evaluation_on_calibration_images_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "evaluation", 24)
    with pytest.raises(ImagesError, match=r"24 of the 24 .* those that \[calibration\] draws"):
        run(write_recipe(tmp_path, '"fp32"'), tmp_path / "out")


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


def test_fp16_of_a_fixed_batch_is_compared_with_fp32_and_published(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, '"fp32", "fp16"')
    recipe.write_text(recipe.read_text() + "[export]\nbatch = 2\n")
    report = run(recipe, tmp_path / "out")
    fp32, fp16 = report.results
    assert (fp32.precision, fp16.precision) == ("fp32", "fp16")
    assert fp16.slim.bytes < 0.75 * fp32.slim.bytes
    assert fp16.fp32 is not None
    assert fp16.fp32.dense_agreement > 0.9
    apart, allowed = (fp16.parity[f"slim_fp32_fp16_{word}"] for word in ("max_abs", "allowed"))
    assert isinstance(apart, float)
    assert isinstance(allowed, float)
    assert 0 < apart < allowed
    assert (fp16.parity["dense_fp32_nodes_by_range"], fp16.parity["dense_fp32_nodes_by_choice"]) == (0, 0)
    for name in ("onnx/fp16.onnx", "onnx/dense/fp16.onnx", "short/fp16/model.onnx"):
        assert (tmp_path / "out" / name).is_file()


def test_fp16_without_calibration_is_refused_at_once(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, '"fp32", "fp16"')
    text = recipe.read_text().replace('[calibration]\nset = "calibration.toml"\nimages = 64\n', "")
    recipe.write_text(text)
    with pytest.raises(RecipeError, match=r"calibration: missing; fp16 of target short takes the ranges"):
        run(recipe, tmp_path / "out")
