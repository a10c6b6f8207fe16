from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from click.testing import Result as ClickResult
from fake_ssh import use_fake_ssh
from rich.console import Console
from sample_report import report as sample
from small_onnx import write_classifier
from toy_build import write_toy
from typer.testing import CliRunner

from edgevit import __version__
from edgevit.bars import Bars
from edgevit.cli import app
from edgevit.cli.measure import _show_times
from edgevit.pipeline.timing import choose_artefacts, time_here
from edgevit.progress import silent
from edgevit.recipe import Recipe
from edgevit.report.model import KitFacts, Latency, Report, to_json
from edgevit.schema import load_toml
from edgevit.store import Store
from edgevit.target import load_target


def edgevit(*args: str | Path) -> ClickResult:
    """Run a command; a build or measurement that a busy machine made untrusted is tried again."""
    tries = 10 if args[0] in ("build", "measure") else 1
    while (result := CliRunner().invoke(app, [str(arg) for arg in args])).exit_code == 7 and tries > 1:
        tries -= 1
    return result


def python(code: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the toy recipe and, in `out`, its build by the command line."""
    folder = tmp_path_factory.mktemp("toy")
    result = edgevit(
        "build", write_toy(folder), "--out", folder / "out", "--depfile", folder / "toy.d", "--jobs", "1"
    )
    assert result.exit_code == 0, result.output
    (folder / "stdout.txt").write_text(result.stdout)
    assert result.stderr == ""
    return folder


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    """Return a folder with the hand-made report: 7.42 ms against 5.23 ms, 0.6 points, agreement 0.943."""
    (tmp_path / "report.json").write_text(to_json(sample()))
    return tmp_path


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["targets"], ["schema"], ["build", "--help"]], ids=" ".join
)
def test_light_command_imports_no_torch(args: Sequence[str]) -> None:
    code = (
        "import sys\nfrom edgevit.cli import app\napp(sys.argv[1:], standalone_mode=False)\n"
        "sys.exit(10 * any(name in sys.modules for name in ('torch', 'timm', 'datasets')))"
    )
    done = python(code, *args)
    assert (done.returncode, done.stderr) == (0, "")


def test_build_for_an_unknown_target_says_so_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        '[model]\nname = "deit_tiny_patch16_224"\n[[target]]\nname = "openvino-cpus"\n'
    )
    code = (
        "import sys\nfrom edgevit.cli import app\napp(sys.argv[1:], standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    done = python(code, "build", tmp_path / "mine.toml")
    assert 'Did you mean "openvino-cpu"' in done.stderr
    assert done.stdout == "False\n"


def test_version_is_the_package_s() -> None:
    assert edgevit("--version").stdout == f"{__version__}\n"


def test_build_prints_the_table_and_the_path_of_the_report(toy: Path) -> None:
    text = (toy / "stdout.txt").read_text()
    assert "short fp32" in text
    assert f"{toy / 'out' / 'report.html'}" in text
    assert (toy / "toy.d").read_text().startswith(f"{toy / 'out' / 'manifest.json'}:")


def test_build_json_prints_the_report_and_nothing_else(toy: Path) -> None:
    code = "from edgevit.cli import main; main()"
    done = python(code, "build", toy / "toy.toml", "--out", toy / "out", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (toy / "out" / "report.json").read_text()
    assert Report.model_validate_json(done.stdout).name == "toy"


def test_build_gate_missed_prints_the_report_and_exits_with_its_code(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "copy")
    recipe = write_toy(tmp_path / "copy", more="[gates]\nmax_latency_ms = 1e-9\n")
    result = edgevit("build", recipe, "--out", tmp_path / "copy" / "out", "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["name"] == "toy"
    assert result.stderr.startswith("edgevit: latency gate missed: short fp32: median latency is")


def test_build_in_the_default_place_is_build_slash_name(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(toy / "out", tmp_path / "build" / "toy")
    monkeypatch.chdir(tmp_path)
    result = edgevit("build", toy / "toy.toml")
    assert (result.exit_code, Path(result.stdout.split()[-1])) == (0, Path("build/toy/report.html"))


def test_inspect_build_shows_its_blocks_and_what_can_be_cut(toy: Path) -> None:
    text = edgevit("inspect", toy / "out").stdout
    assert "blocks.1" in text
    assert "Can be cut: heads, qk_dim, vo_dim, hidden, tokens." in text


def test_inspect_build_that_was_interrupted_says_how_to_go_on(tmp_path: Path) -> None:
    Store.open(tmp_path, "toy").run("slim", {}, lambda folder: None)
    result = edgevit("inspect", tmp_path)
    assert result.exit_code == 2
    assert "this build is not finished. `edgevit build` with its recipe goes on" in result.stderr


def test_inspect_parts_without_dims_leave_those_columns_empty(toy: Path) -> None:
    lines = edgevit("inspect", toy / "out").stdout.splitlines()
    edge = next(line for line in lines if line.startswith("part")).index("tokens") + len("tokens")
    rows = [line for line in lines if line.startswith(("stem", "head", "total"))]
    assert [row[:edge].split() for row in rows] == [["stem"], ["head"], ["total"]]


def test_inspect_json_counts_deit_tiny_as_the_literature_does() -> None:
    data = json.loads(edgevit("inspect", "deit_tiny_patch16_224", "--json").stdout)
    assert round(data["total"]["macs"] / 1e9, 3) == 1.254
    assert data["total"]["bytes"] == 4 * data["total"]["params"]
    assert sum(block["macs"] for block in data["blocks"]) < data["total"]["macs"]
    assert (len(data["blocks"]), data["blocks"][0]["heads"], data["blocks"][0]["qk_dim"]) == (12, 3, 64)


def test_inspect_name_without_a_head_takes_classes_and_image_size() -> None:
    refused = edgevit("inspect", "vit_small_patch14_dinov2")
    assert refused.exit_code == 2
    assert "`edgevit inspect` and `edgevit init` take --num-classes" in refused.stderr
    data = json.loads(
        edgevit(
            "inspect", "vit_small_patch14_dinov2", "--num-classes", "10", "--img-size", "224x280", "--json"
        ).stdout
    )
    assert (data["classes"], data["image"], data["tokens"]) == (10, [3, 224, 280], 16 * 20 + 1)


@pytest.mark.parametrize("size", ["0", "224x", "a", "-1", "1.5"])
def test_inspect_image_size_that_is_none_is_a_usage_error(size: str) -> None:
    result = edgevit("inspect", "cct_4_3x2", f"--img-size={size}")
    assert result.exit_code == 2
    assert "such as 224x288" in " ".join(result.stderr.replace("│", " ").split())


def test_inspect_groups_shows_what_is_cut_together(toy: Path, tmp_path: Path) -> None:
    result = edgevit("inspect", toy / "out", "--groups", "--html", tmp_path / "groups.html")
    assert "blocks.0-1.qk" in result.stdout
    assert "attn.q.out, attn.k.out" in result.stdout
    assert "blocks.1.attn.k.out" in (tmp_path / "groups.html").read_text()


def test_inspect_groups_json_has_the_groups() -> None:
    data = json.loads(edgevit("inspect", "deit_tiny_patch16_224", "--groups", "--json").stdout)
    sizes = {group["name"]: (group["size"], group["parts"]) for group in data["groups"]}
    assert sizes["blocks.11.qk"] == (192, 3)
    assert sizes["stream.0"] == (192, 1)


def test_inspect_html_without_groups_is_refused(tmp_path: Path) -> None:
    result = edgevit("inspect", "deit_tiny_patch16_224", "--html", tmp_path / "x.html")
    assert result.exit_code == 2
    assert "--groups" in result.stderr


def test_init_recipe_loads_and_names_the_model(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(edgevit("init", "deit_tiny_patch16_224").stdout)
    recipe = load_toml(path, Recipe)
    assert (recipe.model.name, recipe.plan.qk_dim, recipe.plan.hidden) == ("deit_tiny_patch16_224", 48, 576)


def test_init_recipe_has_the_options_that_it_was_made_with(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(edgevit("init", "cct_4_3x2", "--num-classes", "7", "--img-size", "32x48").stdout)
    assert load_toml(path, Recipe).model.options == {"num_classes": 7, "img_size": (32, 48)}


def test_init_recipe_with_every_comment_taken_out_loads_too(tmp_path: Path) -> None:
    text = edgevit("init", "deit_tiny_patch16_224").stdout
    offered = [line for line in text.splitlines() if not line.startswith("#  ")]  # without what is instead
    keys = [line.removeprefix("# ") for line in offered if "pretrained" not in line]
    path = tmp_path / "mine.toml"
    path.write_text("\n".join(line for line in keys if line.startswith("[") or " = " in line.split("#")[0]))
    recipe = load_toml(path, Recipe)
    assert recipe.calibration is not None
    assert (recipe.gates.max_drop, recipe.plan.tokens) == (1.0, 197)


def test_init_recipe_with_its_methods_in_place_of_the_plan_loads(tmp_path: Path) -> None:
    text = edgevit("init", "deit_tiny_patch16_224").stdout
    found = []
    for alternative in text.split("# Or"):
        methods = [line.removeprefix("#") for line in alternative.splitlines() if line.startswith("#   ")]
        path = tmp_path / "mine.toml"
        path.write_text("\n".join(['model.name = "m"', 'calibration.set = "s.toml"', *methods]))
        found.append([options.method for options in load_toml(path, Recipe).methods])
    assert [one for one in found if one] == [
        ["coupled-dims", "token-channels", "patch-similarity"],
        ["effiselect"],
        ["intra-head"],
    ]


def test_init_recipe_of_a_build_builds_on_it(toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "again.toml"
    path.write_text(edgevit("init", toy / "out").stdout)
    assert load_toml(path, Recipe).model.name == str(toy / "out")


def test_measure_build_times_slim_against_dense(toy: Path) -> None:
    result = edgevit("measure", toy / "out", "--target", toy / "short.toml", "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 0, result.stderr
    assert data["artefact"].endswith("short/fp32/model.onnx")
    assert data["against"].endswith("short/dense/fp32/model.onnx")
    assert (data["target"], data["precision"]) == ("short", "fp32")
    slim, dense = (
        Latency.model_validate_json(json.dumps(data[name])) for name in ("latency_ms", "reference_ms")
    )
    low, high = data["speedup"]["interval"]
    assert low <= data["speedup"]["measured"] <= high
    assert data["speedup"]["measured"] == pytest.approx(dense.median / slim.median)


def test_measure_artefact_alone_has_no_speedup(toy: Path) -> None:
    result = edgevit("measure", toy / "out" / "onnx" / "fp32.onnx", "--target", toy / "short.toml")
    assert result.exit_code == 0, result.stderr
    assert "median" in result.stdout
    assert "speed-up" not in result.stdout.split("\n")[1]


def test_measure_takes_an_onnx_file_from_elsewhere_in_the_precision_that_it_has(tmp_path: Path) -> None:
    whole = [onnx.helper.make_tensor("scale", 1, [], [0.1]), onnx.helper.make_tensor("zero", 3, [], [0])]
    image, logits = (onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("image", "logits"))
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(nodes, "elsewhere", [image], [logits], whole)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "theirs.onnx")
    target = load_target("onnxruntime-cpu", Path())
    assert choose_artefacts(tmp_path / "theirs.onnx", None, target, None).precision == "int8"


def test_measure_names_the_machine_it_ran_on(toy: Path) -> None:
    text = edgevit("measure", toy / "out", "--target", toy / "short.toml").stdout
    assert "\non this machine: " in text
    assert "1 threads of " in text


@pytest.mark.parametrize(("load", "warned"), [(0.4, False), (1.2, True)])
def test_measure_on_a_machine_that_was_busy_warns(
    toy: Path, load: float, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    target = load_target(str(toy / "short.toml"), Path())
    timed = time_here(choose_artefacts(toy / "out", None, target, None), target, silent)
    busy = dataclasses.replace(timed.conditions[0], load_1min=load)
    machine = dataclasses.replace(timed.machine, cores=2)
    _show_times(
        dataclasses.replace(timed, machine=machine, conditions=(busy, timed.conditions[1])),
        target.name,
        json=False,
    )
    assert ("other programs were running, the load was 1.2 on 2 cores" in capsys.readouterr().out) == warned


def test_measure_target_that_was_not_built_is_a_usage_error(toy: Path) -> None:
    result = edgevit("measure", toy / "out", "--target", "openvino-cpu")
    assert result.exit_code == 2
    assert "no artefact for openvino-cpu; it has short fp32" in result.stderr


@pytest.mark.parametrize("option", [[], ["--against"]], ids=["artefact", "reference"])
def test_measure_file_that_is_not_there_is_a_usage_error(toy: Path, option: list[str]) -> None:
    there = [toy / "out" / "onnx" / "fp32.onnx"] if option else []
    result = edgevit("measure", *there, *option, toy / "none.onnx", "--target", toy / "short.toml")
    assert result.exit_code == 2
    assert "none.onnx: expected a built artefact, found no such file" in result.stderr


def test_measure_folder_of_one_model_takes_its_precision_from_its_name(toy: Path) -> None:
    result = edgevit("measure", toy / "out" / "short" / "fp32", "--target", toy / "short.toml", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert (data["artefact"], data["precision"]) == (
        str(toy / "out" / "short" / "fp32" / "model.onnx"),
        "fp32",
    )
    assert (data["host"], data["against"]) == (None, None)
    assert data["machine"]["versions"].keys() == {"onnxruntime"}


def test_measure_against_another_input_shape_is_a_usage_error(toy: Path, tmp_path: Path) -> None:
    model, other = toy / "out" / "onnx" / "fp32.onnx", write_classifier(tmp_path / "other.onnx")
    result = edgevit("measure", model, "--against", other, "--target", toy / "short.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected an input of shape [1, 3, 2, 2] as" in result.stderr
    assert "got [1, 3, 32, 32]" in result.stderr


def test_measure_build_on_a_board_says_what_it_says_here_and_what_the_board_is(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_ssh(tmp_path, monkeypatch)
    there = ["--host", "ssh://me@board:2222", "--python", sys.executable]
    result = edgevit("measure", toy / "out", "--target", toy / "short.toml", *there, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    here = json.loads(edgevit("measure", toy / "out", "--target", toy / "short.toml", "--json").stdout)
    assert data.keys() == here.keys()
    assert (data["host"], data["device"]) == ("ssh://me@board:2222", here["device"])
    assert data["machine"]["cpu"] == here["machine"]["cpu"]
    low, high = data["speedup"]["interval"]
    assert low <= data["speedup"]["measured"] <= high
    text = edgevit("measure", toy / "out", "--target", toy / "short.toml", *there).stdout
    assert "\non ssh://me@board:2222: " in text
    assert "1 threads of " in text


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (["--host", "board"], "--host: expected ssh://[user@]board[:port], got board"),
        (["--python", "python3.9"], "give its --host, too"),
        (["--precision", "fp8"], "precision: expected one of fp32, fp16, bf16, int8, int8-bf16, got fp8"),
    ],
    ids=["host", "python", "precision"],
)
def test_measure_option_that_cannot_be_is_a_usage_error(toy: Path, option: list[str], text: str) -> None:
    result = edgevit("measure", toy / "out", "--target", toy / "short.toml", *option)
    assert (result.exit_code, result.stdout) == (2, "")
    assert text in result.stderr


def test_report_json_prints_the_file(reported: Path) -> None:
    assert json.loads(edgevit("report", reported, "--json").stdout) == json.loads(to_json(sample()))


def test_report_of_two_builds_compares_them(reported: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "report.json").write_text(to_json(sample("other", slim_ms=4.0)))
    result = edgevit("report", reported, tmp_path / "b", "--html", tmp_path / "both.html")
    assert "other" in result.stdout
    assert "deit-tiny-orin" in result.stdout
    assert "other" in (tmp_path / "both.html").read_text()
    both = json.loads(edgevit("report", reported, tmp_path / "b", "--json").stdout)
    assert [one["name"] for one in both["reports"]] == ["deit-tiny-orin", "other"]


def test_report_of_no_build_is_a_usage_error(tmp_path: Path) -> None:
    result = edgevit("report", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected the report of a finished build, found no such file" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["--max-drop", "0.6", "--min-agreement", "0.94"], 0, ""),
        (["--max-latency-ms", "6", "--min-speedup", "1.4"], 0, ""),
        (["--max-drop", "0.5"], 3, "openvino-cpu fp32: top-1 drops by 0.60 points, max_drop is 0.5"),
        (["--min-agreement", "0.95"], 3, "agreement is 0.9430, min_agreement is 0.95"),
        (["--max-latency-ms", "5"], 4, "median latency is 5.230 ms, max_latency_ms is 5"),
        (["--min-speedup", "2"], 4, "min_speedup is 2"),
        ([], 2, "give at least one limit"),
        (["--max-drop", "much"], 2, "--max-drop"),
    ],
)
def test_check_exits_with_the_code_of_the_limit(
    reported: Path, args: list[str], code: int, text: str
) -> None:
    result = edgevit("check", reported, *args)
    assert result.exit_code == code, result.output
    assert text in result.stderr


@pytest.mark.parametrize(("drop", "code"), [("0.6", 0), ("0.5", 3)])
def test_check_json_says_which_limits_were_kept(reported: Path, drop: str, code: int) -> None:
    result = edgevit("check", reported, "--max-drop", drop, "--json")
    assert result.exit_code == code
    data = json.loads(result.stdout)
    assert (data["name"], data["limits"]) == ("deit-tiny-orin", {"max_drop": float(drop)})
    assert data["chosen"] == ["openvino-cpu fp32"]
    assert data["kept"] is (code == 0)
    assert (data["why"] is None) is (code == 0)


def test_check_untrusted_timing_exits_with_its_code(tmp_path: Path) -> None:
    found = sample()
    noisy = [
        one.model_copy(update={"chosen": False, "verdict": "untrusted", "why": "drift"})
        for one in found.results
    ]
    (tmp_path / "report.json").write_text(to_json(found.model_copy(update={"results": tuple(noisy)})))
    assert edgevit("check", tmp_path, "--max-latency-ms", "99").exit_code == 7
    assert edgevit("check", tmp_path, "--max-drop", "5").exit_code == 7  # nothing is offered


def write_kit_report(folder: Path, *, measured: bool, brought: bool = False) -> None:
    """Write a report with a kit, and with results of this machine or of the kit's board."""
    found = sample()
    kit = KitFacts(target="orin", precisions=("fp32",), folder="orin/kit")
    board = found.results[0].model_copy(update={"target": "orin", "on_board": True, "drop": None})
    results = (*(found.results if measured else ()), *((board,) if brought else ()))
    (folder / "report.json").write_text(
        to_json(found.model_copy(update={"kits": (kit,), "results": results}))
    )


def test_check_says_which_target_was_not_measured(tmp_path: Path) -> None:
    write_kit_report(tmp_path, measured=True)
    result = edgevit("check", tmp_path, "--max-latency-ms", "6")
    assert result.exit_code == 0, result.output
    assert "orin was not measured: no limit was judged for it. Run its kit" in result.stdout
    data = json.loads(edgevit("check", tmp_path, "--max-latency-ms", "6", "--json").stdout)
    assert (data["not_measured"], data["accuracy_not_judged"]) == (["orin"], [])


def test_check_of_a_kit_alone_has_nothing_to_judge(tmp_path: Path) -> None:
    write_kit_report(tmp_path, measured=False)
    result = edgevit("check", tmp_path, "--max-latency-ms", "6")
    assert result.exit_code == 7
    assert "nothing to judge: orin got a build kit and was not measured yet. Run the kit" in result.stderr


def test_check_says_that_a_board_knows_no_accuracy(tmp_path: Path) -> None:
    write_kit_report(tmp_path, measured=True, brought=True)
    result = edgevit("check", tmp_path, "--max-drop", "0.6")
    assert result.exit_code == 0, result.output
    assert "orin was measured on its board, which knows no accuracy: that was not judged." in result.stdout
    write_kit_report(tmp_path, measured=False, brought=True)
    result = edgevit("check", tmp_path, "--max-drop", "0.6")
    assert (result.exit_code, "boards alone were measured" in result.stderr) == (7, True)
    assert edgevit("check", tmp_path, "--max-latency-ms", "6").exit_code == 0


def test_targets_names_each_with_the_version_of_its_runtime() -> None:
    text = edgevit("targets").stdout
    assert "openvino-cpu" in text
    assert "onnxruntime-cpu" in text
    assert "onnxruntime 1." in text
    assert "fp32 ready" in text


def test_targets_whose_reader_has_seen_enough_ends_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)  # as `| head` does
    found = subprocess.run(
        [sys.executable, "-m", "edgevit", "targets"], stdout=write, stderr=subprocess.PIPE, timeout=120
    )
    os.close(write)
    assert (found.returncode, found.stderr) == (1, b"")


def test_targets_file_of_one_s_own_that_can_run_is_ready(toy: Path) -> None:
    result = edgevit("targets", toy / "short.toml")
    assert (result.exit_code, result.stdout.count("ready")) == (0, 1)
    assert "openvino-cpu" not in result.stdout


def test_targets_file_whose_device_is_not_here_says_so_and_exits_with_its_code(tmp_path: Path) -> None:
    (tmp_path / "line-7.toml").write_text('runtime = "openvino"\ndevice = "npu"\n')
    result = edgevit("targets", tmp_path / "line-7.toml")
    assert (result.exit_code, result.stderr) == (6, "")
    assert "fp32 missing" in result.stdout
    assert "line-7 fp32: openvino: expected the device NPU, found CPU" in result.stdout
    assert "Install the device's driver" in result.stdout


def test_targets_board_is_by_kit_and_says_how() -> None:
    result = edgevit("targets", "jetson-orin-nano")
    assert result.exit_code == 6
    assert "fp32 by kit" in result.stdout
    assert "`edgevit build` writes a build kit for it" in " ".join(result.stdout.split())


def test_targets_that_lack_the_same_say_so_once() -> None:
    said = " ".join(edgevit("targets", "jetson-orin-nano", "jetson-thor").stdout.split())
    assert "jetson-orin-nano fp32; jetson-thor fp32: " in said
    assert said.count("`edgevit build` writes a build kit for it") == 1


def test_report_import_of_no_file_is_an_error_and_of_two_builds_a_usage_error(tmp_path: Path) -> None:
    result = edgevit("report", tmp_path / "a", tmp_path / "b", "--import", tmp_path / "board-report.json")
    assert result.exit_code == 2
    assert "expected one build directory beside --import, got 2" in " ".join(result.stderr.split())
    assert edgevit("report", tmp_path, "--import", tmp_path / "board-report.json").exit_code == 2


def test_targets_json_has_every_target_and_precision(tmp_path: Path) -> None:
    (tmp_path / "line-7.toml").write_text('runtime = "openvino"\ndevice = "npu"\n')
    result = edgevit("targets", "onnxruntime-cpu", tmp_path / "line-7.toml", "--json")
    here, absent = json.loads(result.stdout)["targets"]
    assert (here["name"], here["precisions"]) == (
        "onnxruntime-cpu",
        [{"precision": "fp32", "ready": True, "missing": None}],
    )
    assert (absent["device"], absent["precisions"][0]["ready"]) == ("npu", False)
    assert "NPU" in absent["precisions"][0]["missing"]


def test_targets_name_that_is_none_is_a_usage_error() -> None:
    result = edgevit("targets", "openvino-cpus")
    assert (result.exit_code, result.stdout) == (2, "")
    assert 'Did you mean "openvino-cpu"' in result.stderr


def test_schema_of_each_kind_is_an_object() -> None:
    kinds = json.loads(edgevit("schema").stdout)
    assert list(kinds) == ["recipe", "target", "set", "report", "sweep", "manifest"]
    assert json.loads(edgevit("schema", "target").stdout) == kinds["target"]
    assert "schema" in kinds["report"]["properties"]


def test_schema_of_an_unknown_kind_is_a_usage_error() -> None:
    result = edgevit("schema", "recipes")
    assert result.exit_code == 2
    assert 'Did you mean "recipe"' in result.stderr


def test_unexpected_error_is_short_and_says_how_to_see_more() -> None:
    code = (
        "import sys, edgevit.inspection\n"
        "def broken(*given): raise KeyError('boom')\n"
        "edgevit.inspection.inspect_model = broken\n"
        "from edgevit.cli import main; main()"
    )
    done = python(code, "inspect", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("edgevit: unexpected KeyError: 'boom'. This is a fault of edgevit")
    assert "EDGEVIT_TRACEBACK=1" in done.stderr
    assert "Traceback" not in done.stderr


def _is_timing(out: Path) -> bool:
    """Whether a build's timing stage has begun; its folder of temporaries may just be made anew."""
    with contextlib.suppress(FileNotFoundError):
        return any(path.name.startswith("time-") for path in (out / ".edgevit" / "tmp").iterdir())
    return False


def _hear_ctrl_c() -> None:
    """Let a child be interrupted even where these tests run in the background, which ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted_build_exits_130_and_can_go_on(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "copy")
    recipe, out = tmp_path / "copy" / "toy.toml", tmp_path / "copy" / "out"
    target = recipe.with_name("short.toml")
    target.write_text(
        target.read_text().replace("seconds = 0.1", "seconds = 100.0").replace("400", "1000000")
    )
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from edgevit.cli import main; main()",
            "build",
            str(recipe),
            "--out",
            str(out),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,
    )
    while child.poll() is None and not _is_timing(out):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert stderr.startswith("edgevit: stopped. Stages that were finished are kept")
    assert "Traceback" not in stderr
    assert any(path.name.startswith("evaluate-") for path in (out / ".edgevit" / "stages").iterdir())


@pytest.mark.parametrize(
    ("terminal", "wanted", "drawn"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_bars_are_drawn_only_on_a_terminal_and_when_wanted(terminal: bool, wanted: bool, drawn: bool) -> None:
    text = io.StringIO()
    with Bars(Console(file=text, force_terminal=terminal), wanted=wanted) as bars:
        bars("evaluating", 0, 10)
        bars._tasks = {name: (number, begin - 5.0) for name, (number, begin) in bars._tasks.items()}
        bars._drawn = 0.0
        bars("evaluating", 5, 10)
        bars("evaluating", 10, 10)
    assert ("evaluating" in text.getvalue()) == drawn
