from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_vits import toy_arch

from edgevit.backends.openvino import OpenVINO
from edgevit.board import TimeBudget
from edgevit.measure.probes import Grid, make_probe
from edgevit.measure.table import LatencyTable
from edgevit.models.arch import Arch
from edgevit.pipeline import latency
from edgevit.pipeline.graphs import Form
from edgevit.pipeline.latency import Effort, measure_table
from edgevit.pipeline.stages import Stages
from edgevit.progress import silent
from edgevit.store import Store
from edgevit.target import Target

# These tests are about the line; what such short timings find means nothing.
EFFORT = Effort(
    Grid((0.5,), (), (0.7,)), TimeBudget(warmup_s=0.0, seconds=0.1, min_samples=10, max_samples=50)
)
TARGET = Target(name="here", runtime="openvino", threads=1)
ARCH = toy_arch()


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    with Store.open(tmp_path_factory.mktemp("latency") / "out", "toy") as store:
        yield Stages(store, silent)


def measure(stages: Stages, target: Target = TARGET, arch: Arch = ARCH) -> tuple[LatencyTable, list[str]]:
    """Return a table, and the stages that were not there."""
    before = len(stages.facts)
    table = measure_table(stages, (target, "fp32"), Form(18, 1, simplify=False), arch, EFFORT)
    return table, [facts.name for facts in stages.facts[before:] if not facts.reused]


def test_table_has_a_time_for_every_part(stages: Stages) -> None:
    table, made = measure(stages)
    assert made == ["latency-parts fp32", "latency-times here fp32"]
    assert [part.name for part in table.parts] == list(make_probe(ARCH, EFFORT.grid).parts)
    assert all(part.ms > 0 for part in table.parts)
    assert table.on.versions["openvino"] == OpenVINO().versions()["openvino"]
    assert min(table.blocks_ms(ARCH)) > 0
    assert table.total_ms(ARCH) > table.rest_ms()


def test_table_is_measured_once(stages: Stages) -> None:
    first, _ = measure(stages)
    again, made = measure(stages)
    assert made == []
    assert again == first


def test_table_of_another_depth_is_the_same(stages: Stages) -> None:
    first, _ = measure(stages)
    deeper = dataclasses.replace(ARCH, blocks=ARCH.blocks * 2)
    assert measure(stages, arch=deeper) == (first, [])


class OtherVersion(OpenVINO):
    def versions(self) -> dict[str, str]:
        return {"openvino": "another"}


def test_table_of_another_runtime_version_is_measured_again(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(stages)
    monkeypatch.setattr(latency, "get_backend", lambda runtime: OtherVersion())
    table, made = measure(stages)
    assert made == ["latency-times here fp32"]
    assert table.on.versions["openvino"] == "another"


def test_table_of_another_thread_count_is_measured_again(stages: Stages) -> None:
    measure(stages)
    two = TARGET.model_copy(update={"threads": 2})
    assert measure(stages, two)[1] == ["latency-times here fp32"]


@pytest.mark.slow
def test_table_in_int8_has_parts_that_quantise(stages: Stages, tmp_path: Path) -> None:
    table = measure_table(stages, (TARGET, "int8"), Form(18, 1, simplify=False), ARCH, EFFORT)
    assert table.on.precision == "int8"
    assert all(part.ms > 0 for part in table.parts)
