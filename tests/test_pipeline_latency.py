from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from toy_vits import noise_images, toy_arch, toy_model

from edgevit.backends.openvino import OpenVINO
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.precision import quantise
from edgevit.measure.long_model import TimedShares, make_long_model
from edgevit.measure.table import LatencyTable
from edgevit.pipeline import latency
from edgevit.pipeline.graphs import Form, Graph
from edgevit.pipeline.latency import measure_blocks, measure_table
from edgevit.pipeline.stages import Stages
from edgevit.progress import silent
from edgevit.store import Store
from edgevit.target import Target, Timing

# These tests are about the line; what such short timings find means nothing.
TIMING = Timing(warmup_s=0.0, seconds=0.03, min_samples=10, max_samples=50)
TARGET = Target(name="here", runtime="openvino", threads=1, timing=TIMING)
GRID = TimedShares((0.5,), (), (0.7,), whole=1)
ARCH = toy_arch()
FORM = Form(18, 1, simplify=False)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with Store.open(tmp_path_factory.mktemp("latency") / "out", "toy") as store:
        yield Stages(store, silent)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path = tmp_path_factory.mktemp("dense") / "fp32.onnx"
    export_onnx(toy_model(ARCH), path, ExportOptions())
    return Graph(path, "", ARCH)


def measure(stages: Stages, dense: Graph, target: Target = TARGET) -> tuple[LatencyTable, list[str]]:
    """Return a table, and the stages that were not there."""
    before = len(stages.facts)
    table = measure_table(stages, (target, "fp32"), FORM, dense, GRID)
    return table, [facts.name for facts in stages.facts[before:] if not facts.reused]


def test_table_has_a_time_for_every_part(stages: Stages, dense: Graph) -> None:
    table, made = measure(stages, dense)
    assert made == ["latency-times here fp32"]
    assert [check.name for check in table.checks] == ["half of all widths"]
    assert [part.name for part in table.parts] == list(make_long_model(ARCH, GRID).parts)
    assert all(part.ms > 0 for part in table.parts)
    assert table.on.versions["openvino"] == OpenVINO().versions()["openvino"]
    assert min(table.blocks_ms(ARCH)) >= 0
    assert table.total_ms(ARCH) > 0


def test_table_is_measured_once(stages: Stages, dense: Graph) -> None:
    first, _ = measure(stages, dense)
    again, made = measure(stages, dense)
    assert made == []
    assert again == first


def test_table_is_taken_over_by_a_build_beside(stages: Stages, dense: Graph) -> None:
    first, _ = measure(stages, dense)
    with Store.open(stages.store.root.parent / "other", "other") as store:
        again, made = measure(Stages(store, silent), dense)
    assert made == []
    assert again == first


def test_blocks_of_a_model_are_measured_one_by_one(stages: Stages, dense: Graph) -> None:
    table, _ = measure(stages, dense)
    found = measure_blocks(stages, (TARGET, "fp32"), FORM, dense, table)
    assert len(found) == 3
    assert min(found) >= 0


class OtherVersion(OpenVINO):
    def versions(self) -> dict[str, str]:
        return {"openvino": "another"}


def test_table_of_another_runtime_version_is_measured_again(
    stages: Stages, dense: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(stages, dense)
    monkeypatch.setattr(latency, "get_backend", lambda runtime: OtherVersion())
    table, made = measure(stages, dense)
    was = OpenVINO().versions()["openvino"]
    assert made == [f"latency-times here fp32, measured again as openvino was {was}, is another"]
    assert table.on.versions["openvino"] == "another"


def test_table_of_another_model_in_another_version_is_not_said_to_be_measured_again(
    stages: Stages, dense: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(stages, dense)
    shallow = toy_arch(depth=2)
    export_onnx(toy_model(shallow), tmp_path / "fp32.onnx", ExportOptions())
    monkeypatch.setattr(latency, "get_backend", lambda runtime: OtherVersion())
    _, made = measure(stages, Graph(tmp_path / "fp32.onnx", "", shallow))
    assert made == ["latency-times here fp32"]


def test_table_of_another_thread_count_is_measured_again(stages: Stages, dense: Graph) -> None:
    measure(stages, dense)
    two = TARGET.model_copy(update={"threads": 2})
    assert measure(stages, dense, two)[1] == ["latency-times here fp32"]


@pytest.mark.slow
def test_table_in_int8_is_of_parts_that_quantise(stages: Stages, dense: Graph, tmp_path: Path) -> None:
    images = list(noise_images(4).numpy()[:, None])
    quantise(dense.path, images, tmp_path / "int8.onnx", smooth=False)
    graph = Graph(tmp_path / "int8.onnx", "", ARCH)
    table = measure_table(stages, (TARGET, "int8"), FORM, graph, GRID)
    assert table.on.precision == "int8"
    assert all(part.ms > 0 for part in table.parts)


def test_model_of_random_numbers_in_int8_is_quantised(tmp_path: Path) -> None:
    path = latency._write_random(ARCH, FORM, "int8", tmp_path / "one")
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
