"""What TensorRT's real parsers say of the graphs that edgevit writes; see tools/tensorrt/."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from real_tensorrt import WITHOUT_GPU, env_of
from small_onnx import write_classifier

from edgevit.backends.preflight import DiedError, Preflight, ask_parser, ask_process, find_parser

REAL = pytest.mark.tensorrt


def write_scatter(path: Path) -> Path:
    """Write a graph with the operator that TensorRT has no plug-in for, in a node named after a block."""
    node = helper.make_node(
        "ScatterElements", ["x", "index", "updates"], ["y"], name="blocks.1.merge", axis=0, reduction="add"
    )
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "updates", "y")
    ]
    index = helper.make_tensor("index", TensorProto.INT64, [2, 2], [0, 0, 1, 1])
    graph = helper.make_graph([node], "scatter", values[:2], values[2:], [index])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@REAL
@pytest.mark.parametrize("version", WITHOUT_GPU)
def test_refused_graph_names_the_node_and_its_operator(tmp_path: Path, version: str) -> None:
    found = ask_parser(write_scatter(tmp_path / "model.onnx"), [WITHOUT_GPU[version]], env_of(version))
    assert (found.outcome, "at blocks.1.merge (ScatterElements)" in found.why) == ("refused", True), found.why
    assert found.parser is not None
    assert found.parser.startswith("tensorrt_")


@REAL
def test_refused_graph_of_another_tool_names_a_node_by_its_output(tmp_path: Path) -> None:
    path = write_scatter(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node[0].name = ""
    onnx.save(model, path)
    found = ask_parser(path, ["tensorrt"], env_of("11.2"))
    assert "at node_of_y (ScatterElements)" in found.why, found.why


@REAL
@pytest.mark.parametrize("version", WITHOUT_GPU)
def test_truncated_file_is_refused(tmp_path: Path, version: str) -> None:
    path = write_classifier(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:100])
    assert ask_parser(path, [WITHOUT_GPU[version]], env_of(version)).outcome == "refused"


@REAL
def test_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "model.onnx", external=True)
    assert ask_parser(path, ["tensorrt"], env_of("10.15")).outcome == "accepted"


@REAL
@pytest.mark.parametrize("version", WITHOUT_GPU)
def test_parser_is_named_as_in_its_answers(tmp_path: Path, version: str) -> None:
    named = find_parser(WITHOUT_GPU[version], env_of(version))
    answer = ask_parser(write_classifier(tmp_path / "model.onnx"), [WITHOUT_GPU[version]], env_of(version))
    assert named is not None
    assert (named, named.split()[1].startswith(version.removeprefix("rtx-"))) == (answer.parser, True)


@REAL
def test_parser_is_the_first_that_can_be_asked(tmp_path: Path) -> None:
    found = ask_parser(write_classifier(tmp_path / "model.onnx"), env=env_of("rtx-1.7"))
    assert (found.outcome, found.parser) == ("accepted", "tensorrt_rtx_bindings 1.7.1.116")


def write_module(folder: Path, name: str, text: str) -> dict[str, str]:
    """Return an environment where a module of TensorRT's name does what `text` says: a fake."""
    folder.mkdir()
    (folder / f"{name}.py").write_text(text)
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_parser_that_dies_is_reported_with_its_log(tmp_path: Path) -> None:
    dies = "import os, signal, sys\nsys.stderr.write('last words')\nsys.stderr.flush()\n"
    env = write_module(
        tmp_path / "fake", "tensorrt_bindings", dies + "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    found = ask_parser(write_classifier(tmp_path / "model.onnx"), ["tensorrt"], env)
    assert (found.outcome, found.parser) == ("died", "tensorrt_bindings or tensorrt")
    assert found.why == "the process was ended by SIGSEGV. Its log ends:\n  last words"
    assert find_parser("tensorrt", env) is None


def test_no_parser_says_so_with_the_command_that_brings_one(tmp_path: Path) -> None:
    missing = "raise ImportError('not here')\n"
    env = write_module(tmp_path / "fake", "tensorrt_bindings", missing)
    for name in ("tensorrt", "tensorrt_rtx_bindings", "tensorrt_rtx"):
        (tmp_path / "fake" / f"{name}.py").write_text(missing)
    found = ask_parser(write_classifier(tmp_path / "model.onnx"), env=env)
    assert found == Preflight("unavailable", None, found.why)
    assert find_parser("tensorrt", env) is None
    assert found.why.startswith(
        "no parser could be asked (tensorrt: tensorrt_bindings: not here; tensorrt: not"
    )
    assert found.why.endswith("Get one with: pip install tensorrt-rtx")


def test_process_without_an_answer_says_how_it_ended() -> None:
    with pytest.raises(DiedError, match=r"the process ended with 2 and no answer\. Its log ends:\n.*usage"):
        ask_process(["parse"])


def test_process_that_ran_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    killed = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    env = write_module(tmp_path / "fake", "tensorrt_bindings", killed)
    with pytest.raises(
        DiedError, match=r"ended by SIGKILL \(out of memory\? lower tensorrt\.workspace_mb\)\. Its log"
    ):
        ask_process(["parse", "tensorrt", str(tmp_path / "model.onnx")], env)


def test_process_is_this_python(tmp_path: Path) -> None:
    env = write_module(
        tmp_path / "fake", "tensorrt_bindings", "import sys\nraise ImportError(sys.executable)\n"
    )
    (tmp_path / "fake" / "tensorrt.py").write_text("raise ImportError('not here')\n")
    assert sys.executable in ask_parser(tmp_path / "model.onnx", ["tensorrt"], env).why
