"""`build.sh` against the table of trtexec's options, and as a shell runs it."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path

import pytest

from edgevit.backends.tensorrt import TensorRT
from edgevit.errors import RecipeError
from edgevit.kit.trtexec import Graph, build_options, build_script, column, read_table, timing_options
from edgevit.shipped import shipped_names
from edgevit.target import Precision, Target, TensorRTOptions, load_target

BOARDS = [name for name in shipped_names("targets") if load_target(name, Path()).device == "board"]
DYNAMIC = ("image:1x3x224x224", "image:1x3x224x224", "image:32x3x224x224")


def board(*versions: str, workspace_mb: int = 512) -> Target:
    options = TensorRTOptions(versions=versions, workspace_mb=workspace_mb)
    return Target(name="board", runtime="tensorrt", device="board", tensorrt=options)


def names(options: list[str]) -> set[str]:
    return {option.split("=")[0] for option in options}


def computes(version: str, precision: Precision) -> bool:
    """Say whether a version computes in bf16, the one precision that came late: as the graph's own types."""
    return precision != "bf16" or read_table()[version]["stronglyTyped"] == "yes"


CASES = [(v, p) for v in read_table() for p in TensorRT.precisions if computes(v, p)]


@pytest.mark.parametrize("shapes", [None, DYNAMIC])
@pytest.mark.parametrize(("version", "precision"), CASES)
def test_no_version_gets_an_option_that_it_does_not_know(
    version: str, precision: Precision, shapes: tuple[str, str, str] | None
) -> None:
    graph, target = Graph("fp32/slim", precision, shapes), board(version)
    used = names(build_options(version, target, graph)) | names(timing_options(version, target, graph))
    assert {option for option in used if read_table()[version][option] == "no"} == set()


@pytest.mark.parametrize("version", read_table())
def test_defaults_that_11_flipped_are_stated_on_every_version(version: str) -> None:
    options = names(timing_options(version, board(version), Graph("fp32/slim", "fp32", None)))
    assert {"useCudaGraph", "useSpinWait", "noDataTransfers", "separateProfileRun"} <= options


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("8.2", {"fp16", "int8", "workspace=512", "buildOnly"}),
        ("8.5", {"fp16", "int8", "memPoolSize=workspace:512", "buildOnly"}),
        ("8.6", {"fp16", "int8", "memPoolSize=workspace:512", "skipInference"}),
        ("10.3", {"stronglyTyped", "memPoolSize=workspace:512", "skipInference"}),
        ("11.4", {"stronglyTyped", "memPoolSize=workspace:512", "skipInference"}),
    ],
)
def test_int8_graph_is_built_with_what_each_version_wants(version: str, wanted: set[str]) -> None:
    options = set(build_options(version, board(version), Graph("int8/slim", "int8", None)))
    assert wanted <= options
    assert ("int8" in options) == ("stronglyTyped" not in options)


def test_column_is_the_newest_of_the_major_that_is_not_newer() -> None:
    assert [column(version) for version in ("8.2", "8.6", "10.3", "10.7", "11.4")] == [
        "8.2", "8.6", "10.3", "10.3", "11.1"
    ]  # fmt: skip


@pytest.mark.parametrize("version", ["7.1", "12.0", "10.0"])
def test_version_outside_the_table_is_refused(version: str) -> None:
    with pytest.raises(RecipeError, match=rf"tensorrt\.versions: expected one of 8\.2.*got {version}"):
        column(version)


def test_option_that_a_version_lacks_is_refused_by_name() -> None:
    options = TensorRTOptions(versions=("8.5",), version_compatible=True)
    target = Target(name="board", runtime="tensorrt", device="board", tensorrt=options)
    with pytest.raises(RecipeError, match=r"trtexec of 8\.5 has no option --versionCompatible"):
        build_script(target, [Graph("fp32/slim", "fp32", None)])


FAKE = """#!/bin/sh
# A fake trtexec, for the script's control flow alone.
if [ "$1" = --help ]; then echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$SAYS] # trtexec --help"; exit; fi
echo "$@" >> called
"""


def run_script(folder: Path, target: Target, says: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "build.sh").write_text(build_script(target, [Graph("fp32/slim", "fp32", None)]))
    (folder / "trtexec").write_text(FAKE)
    (folder / "trtexec").chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "TRTEXEC": str(folder / "trtexec"), "SAYS": says, **variables}
    command = ["sh", str(folder / "build.sh")]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("says", "version"),
    [("8201", "8.2"), ("8602", "8.6"), ("100300", "10.3"), ("101501", "10.15"), ("110400", "11.4")],
)
def test_script_finds_the_version_and_builds_and_times(tmp_path: Path, says: str, version: str) -> None:
    target = board("8.2", "8.6", "10.3", "10.15", "11.4")
    done = run_script(tmp_path, target, says)
    assert done.returncode == 0, done.stderr
    built, timed = (tmp_path / "called").read_text().splitlines()
    graph = Graph("fp32/slim", "fp32", None)
    assert built.split() == [f"--{option}" for option in build_options(version, target, graph)]
    assert timed.split() == [f"--{option}" for option in timing_options(version, target, graph)]


def test_script_on_another_version_says_how_to_go_on(tmp_path: Path) -> None:
    done = run_script(tmp_path, board("8.6", "10.3"), "100700")
    assert (done.returncode, (tmp_path / "called").exists()) == (1, False)
    assert done.stderr == (
        "expected TensorRT 8.6 or 10.3, got 10.7.\n"
        "TENSORRT_VERSION=... sh build.sh takes the options of one of them all the same.\n"
    )
    assert run_script(tmp_path, board("8.6", "10.3"), "100700", TENSORRT_VERSION="10.3").returncode == 0


@pytest.mark.parametrize("name", BOARDS)
def test_shipped_boards_have_a_script(name: str) -> None:
    target = load_target(name, Path())
    script = build_script(target, [Graph("fp32/slim", "fp32", None)])
    assert re.findall(r"^([0-9.]+)\)$", script, re.M) == list(target.tensorrt.versions)


NAMES = "onnx=int8/slim/model.onnx saveEngine=int8/slim/model.engine timingCacheFile=timing.cache"
SHAPES = (
    "minShapes=image:1x3x224x224 optShapes=image:1x3x224x224 maxShapes=image:32x3x224x224"
    " profilingVerbosity=detailed exportLayerInfo=int8/slim/layers.json"
)
GOLDEN = {
    "8.2": f"{NAMES} fp16 int8 workspace=512 {SHAPES.partition(' profiling')[0]} buildOnly",
    "8.5": f"{NAMES} fp16 int8 memPoolSize=workspace:512 {SHAPES} buildOnly",
    "8.6": f"{NAMES} fp16 int8 memPoolSize=workspace:512 {SHAPES} skipInference",
    "10.3": f"{NAMES} stronglyTyped memPoolSize=workspace:512 {SHAPES} skipInference",
    "10.15": f"{NAMES} stronglyTyped memPoolSize=workspace:512 {SHAPES} skipInference",
    "11.1": f"{NAMES} stronglyTyped memPoolSize=workspace:512 {SHAPES} skipInference",
}
"""What builds an int8 graph with a dynamic batch, written by hand from what each version takes."""
GOLDEN_TIMING = (
    "loadEngine=int8/slim/model.engine shapes=image:1x3x224x224 useCudaGraph useSpinWait noDataTransfers"
    " separateProfileRun warmUp=1000 duration=10 iterations=50 exportTimes=int8/slim/times.json"
)
SOURCE_ONLY = {"loadEngine", "minShapes", "optShapes", "maxShapes", "shapes", "noTF32"}
"""Options that were read in trtexec's source, not tried; marked so in trtexec.toml."""


@pytest.mark.parametrize("version", read_table())
def test_command_lines_are_these(version: str) -> None:
    graph = Graph("int8/slim", "int8", DYNAMIC)
    assert " ".join(build_options(version, board(version), graph)) == GOLDEN[version]
    assert " ".join(timing_options(version, board(version), graph)) == GOLDEN_TIMING


def read_tried_options(page: Path) -> dict[str, dict[str, str]]:
    """Read which options were tried alone against each version's own trtexec, from the page that says so."""
    text = page.read_text().partition("## 5. trtexec's options by version")[2].partition("\n- ")[0]
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    said = {"yes": "yes", "no": "no", "d": "deprecated"}
    versions = [".".join(version.split(".")[:2]) for version in head[1:]]
    tried: dict[str, dict[str, str]] = {version: {} for version in versions}
    for options, *words in rows:
        for version, word in zip(versions, words, strict=True):
            for option in options.split():
                tried[version].setdefault(option.partition("=")[0], said[word.split()[0]])
    return tried


@pytest.mark.shared_data
def test_table_says_what_was_tried_with_each_version(shared_data: Path) -> None:
    tried = read_tried_options(shared_data.parent / "tensorrt.md")
    assert list(tried) == ["8.6", "10.3", "10.15", "11.1"]
    for version, options in tried.items():
        mine = read_table()[version]
        assert {name: mine[name] for name in mine if name in options} == {
            name: word for name, word in options.items() if name in mine
        }
        assert set(mine) - set(options) == SOURCE_ONLY
        used = {option.partition("=")[0] for option in f"{GOLDEN[version]} {GOLDEN_TIMING}".split()}
        assert {name for name in used - SOURCE_ONLY if options[name] == "no"} == set()


def test_table_has_no_option_that_nothing_uses() -> None:
    everything = TensorRTOptions(
        versions=("8.2",),
        workspace_mb=512,
        version_compatible=True,
        hardware_compatible="ampere+",
        timing_cache="times",
        pinned=True,
    )
    used: set[str] = set()
    for version in read_table():
        for options in (everything, TensorRTOptions(versions=(version,), workspace_mb=512)):
            target = Target(name="board", runtime="tensorrt", device="board", tensorrt=options)
            for precision in TensorRT.precisions:
                graph = Graph("x", precision, DYNAMIC)
                with contextlib.suppress(RecipeError):  # what a version lacks is refused, by another test
                    used |= names(build_options(version, target, graph))
                used |= names(timing_options(version, target, graph))
    assert set(read_table()["8.6"]) - used == set()
