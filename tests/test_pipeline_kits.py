"""Builds for targets that run elsewhere: what comes out, with and without a real parser."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from kit_builds import candidate
from real_tensorrt import env_of
from toy_build import write_toy
from toy_vits import toy_model

from edgevit.backends.graph_precision import graph_precision
from edgevit.disk import sha256_file
from edgevit.engine import SCHEMA
from edgevit.errors import RecipeError
from edgevit.export.parity import Limits
from edgevit.integrate.manifest import MANIFEST_FILE
from edgevit.pipeline import BuildOptions, build, kits
from edgevit.pipeline.bring_back import bring_back
from edgevit.pipeline.graphs import Form, Graph, Graphs, Probe
from edgevit.pipeline.kits import kit_key, needs_kit
from edgevit.recipe import load_recipe
from edgevit.report.model import load_report
from edgevit.target import Target, load_target

BOARD = "jetson-xavier-nx"
BUILD = "import sys; from edgevit.cli import main; sys.argv = ['edgevit', *sys.argv[1:]]; main()"


def run_build(recipe: Path, out: Path, target: str, env: dict[str, str]) -> None:
    """Build in a process that imports the TensorRT of `env`."""
    command = [sys.executable, "-c", BUILD, "build", str(recipe), "--out", str(out), "--target", target]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a build for a board alone."""
    folder = tmp_path_factory.mktemp("built")
    build(load_recipe(write_toy(folder)), folder / "out", BuildOptions((BOARD,)))
    return folder / "out"


def test_board_gets_a_kit_and_the_report_says_how_to_go_on(built: Path) -> None:
    report = load_report(built)
    (facts,) = report.kits
    assert (facts.target, facts.precisions, facts.folder) == (BOARD, ("fp32",), f"{BOARD}/kit")
    (missing,) = report.not_built
    assert f"take the folder {BOARD}/kit there, start `python3 run.py`" in missing.why
    assert {one.side for one in report.preflights} == {"dense", "slim"}
    assert report.results == ()
    table = json.loads((built / facts.folder / "kit.json").read_text())
    assert table["timing"] == load_target(BOARD, Path()).timing.model_dump(mode="json")
    assert "--workspace" not in (built / facts.folder / "build.sh").read_text()


def test_bf16_is_refused_where_the_graph_would_have_to_say_it(tmp_path: Path) -> None:
    recipe = write_toy(tmp_path)
    with recipe.open("a") as file:
        file.write(f'\n[[target]]\nname = "{BOARD}"\nprecisions = ["fp32", "bf16"]\n')
    with pytest.raises(RecipeError, match=r"expected precisions among fp32, fp16, int8.*got bf16"):
        build(load_recipe(recipe), tmp_path / "out", BuildOptions((BOARD,)))


def test_stored_outputs_are_those_of_the_graph_in_the_kit(built: Path) -> None:
    kit = built / BOARD / "kit"
    images = np.frombuffer((kit / "images.f32").read_bytes(), "<f4").reshape(-1, 3, 32, 32)
    session = onnxruntime.InferenceSession(str(kit / "fp32" / "slim" / "model.onnx"))
    wanted = np.frombuffer((kit / "fp32" / "slim" / "outputs.f32").read_bytes(), "<f4")
    for image, logits in zip(images[:4], wanted.reshape(len(images), -1), strict=False):
        (got,) = session.run(None, {"image": image[None]})
        assert np.allclose(got[0], logits, atol=1e-4)


@pytest.mark.tensorrt
def test_kit_for_rtx_cards_has_engines_that_were_built_here(tmp_path: Path) -> None:
    run_build(write_toy(tmp_path), tmp_path / "out", "nvidia-rtx", env_of("rtx-1.7"))
    report = load_report(tmp_path / "out")
    assert {(one.outcome, one.parser) for one in report.preflights} == {
        ("accepted", "tensorrt_rtx_bindings 1.7.1.116")
    }
    kit = tmp_path / "out" / report.kits[0].folder
    for side in ("dense", "slim"):
        assert (kit / "fp32" / side / "model.engine").stat().st_size > 100_000
    assert report.versions["tensorrt-rtx"] == "1.7.1.116"


@pytest.mark.tensorrt
def test_kit_has_the_graph_of_each_precision_and_the_parser_took_each(tmp_path: Path) -> None:
    recipe, precisions = write_toy(tmp_path), ("fp32", "fp16", "int8")
    with recipe.open("a") as file:
        file.write(f'\n[[target]]\nname = "{BOARD}"\nprecisions = {list(precisions)}\n')
    run_build(recipe, tmp_path / "out", BOARD, env_of("11.2"))
    report = load_report(tmp_path / "out")
    assert {(one.precision, one.outcome) for one in report.preflights} == {
        (precision, "accepted") for precision in precisions
    }
    kit = tmp_path / "out" / BOARD / "kit"
    table = json.loads((kit / "kit.json").read_text())
    assert [one["precision"] for one in table["candidates"]] == list(precisions)
    found = [graph_precision(kit / one["slim"]["folder"] / "model.onnx") for one in table["candidates"]]
    assert found == list(precisions)
    outputs = {name: (kit / name / "slim" / "outputs.f32").read_bytes() for name in precisions}
    assert len(set(outputs.values())) == 3
    built = [line for line in (kit / "build.sh").read_text().splitlines() if "saveEngine" in line]
    flags = [{"--fp16", "--int8"}.intersection(line.split()) for line in built if "/slim/" in line]
    assert flags == [set(), {"--fp16"}, {"--fp16", "--int8"}]


@pytest.mark.tensorrt
@pytest.mark.slow
@pytest.mark.parametrize("version", ["10.15", "11.2"])
def test_report_names_the_parser_that_accepted(tmp_path: Path, version: str) -> None:
    run_build(write_toy(tmp_path), tmp_path / "out", "jetson-orin-nano", env_of(version))
    report = load_report(tmp_path / "out")
    assert [one.outcome for one in report.preflights] == ["accepted", "accepted"]
    assert all(
        one.parser and one.parser.startswith(f"tensorrt_bindings {version}.") for one in report.preflights
    )


def test_board_needs_a_kit_and_a_gpu_of_this_machine_none() -> None:
    assert needs_kit(load_target("jetson-thor", Path()))
    assert not needs_kit(Target(runtime="tensorrt", device="gpu"))


def key_of(target: Target) -> object:
    arch = toy_model().arch
    made = {side: Graph(Path("fp32.onnx"), side, arch) for side in ("dense", "slim")}
    graphs = Graphs(Form(18, 1, False), made, {})
    return kit_key(target, {"fp32": graphs}, Probe(np.zeros((1, 3, 2, 2), np.float32), "noise"))


def with_options(target: Target, **changes: object) -> Target:
    return target.model_copy(update={"tensorrt": target.tensorrt.model_copy(update=changes)})


def test_kit_is_not_made_anew_for_what_it_does_not_hold(tmp_path: Path) -> None:
    target = load_target(BOARD, Path())
    (tmp_path / "times").write_bytes(b"times")
    (tmp_path / "moved").write_bytes(b"times")
    told = target.model_copy(update={"description": "another", "source": "another", "threads": 7})
    assert key_of(told) == key_of(target)
    first, moved = (with_options(target, timing_cache=str(tmp_path / name)) for name in ("times", "moved"))
    assert key_of(moved) == key_of(first)
    assert key_of(first) != key_of(target)


@pytest.mark.parametrize("change", [{"workspace_mb": 77}, {"memory_mb": 77}, {"versions": ("10.3",)}])
def test_kit_is_made_anew_for_what_it_tells_the_board(change: dict[str, object]) -> None:
    target = load_target(BOARD, Path())
    assert key_of(with_options(target, **change)) != key_of(target)


def test_kit_is_made_anew_for_other_tolerances_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(load_target(BOARD, Path()))
    with monkeypatch.context() as patch:
        patch.setattr(kits, "limits_of", lambda arch, precision: Limits(0.5))
        assert key_of(load_target(BOARD, Path())) != before
    monkeypatch.setattr(kits, "library_versions", lambda names: dict.fromkeys(names, "another"))
    assert key_of(load_target(BOARD, Path())) != before


def test_what_a_board_said_stays_in_later_builds_of_the_same_kit(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(built, out)
    assert json.loads((out / MANIFEST_FILE).read_text())["not_measured"] == [BOARD]
    table = {
        "schema": SCHEMA,
        "kit_sha256": sha256_file(out / BOARD / "kit" / "kit.json"),
        "version": "8.5.2",
        "expected_versions": ["8.5"],
        "device": {"name": "Xavier", "compute_capability": "7.2", "cuda_driver": "11.4"},
        "board": {},
        "candidates": [candidate("fp32", 2.0)],
    }
    (tmp_path / "board-report.json").write_text(json.dumps(table))
    brought = bring_back(out, tmp_path / "board-report.json")
    again = build(load_recipe(built.parent / "toy.toml"), out, BuildOptions((BOARD,)))
    (result,) = again.results
    assert (result.on_board, result.chosen, result.device["name"]) == (True, True, "Xavier")
    assert again.results == brought.results
    assert again.not_built == ()
    assert json.loads((out / MANIFEST_FILE).read_text())["not_measured"] == []
