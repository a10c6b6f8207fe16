"""A kit from end to end: written, run by its own runner as far as this machine goes, and brought back."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fake_tensorrt
import numpy as np
import pytest
from kit_builds import write_kit_build
from real_tensorrt import env_of
from sample_report import report as sample_report
from small_onnx import classify, write_classifier

from edgevit.engine import CPU_ONLY, REPORT, Allowed
from edgevit.errors import MeasurementError
from edgevit.kit.write import RUNNER, KitCandidate, Side, Stored, write_kit
from edgevit.pipeline.bring_back import bring_back
from edgevit.report.model import KitFacts, load_report
from edgevit.target import Target, TensorRTOptions, Timing

FOLDER = "orin/kit"
OPTIONS = TensorRTOptions(versions=("8.6", "10.3"), workspace_mb=64)
TIMING = Timing(warmup_s=0, seconds=0.2, min_samples=20, max_samples=200)
ORIN = Target(name="orin", runtime="tensorrt", device="board", tensorrt=OPTIONS, timing=TIMING)


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """Return a build with a kit whose stored outputs are those of the fake engine."""
    root = tmp_path / "build"
    facts = KitFacts(target="orin", precisions=("fp32", "int8"), folder=FOLDER)
    report = sample_report().model_copy(update={"kits": (facts,), "not_built": ()})
    images = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    side = Side(write_classifier(tmp_path / "fp32.onnx"), images.reshape(4, 3, 2).sum(-1), Allowed(1e-3))
    candidates = [KitCandidate(name, side, side) for name in ("fp32", "int8")]
    stored = Stored(images, 2, dynamic=False, input_name="image")
    write_kit_build(root, report, lambda kit: write_kit(kit, ORIN, candidates, stored))
    return root


@pytest.fixture
def runner(build: Path, fake_driver: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the kit's own runner, and let it find the fake driver and the fake TensorRT."""
    spec = importlib.util.spec_from_file_location("kit_runner", build / FOLDER / RUNNER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kit_runner", module)
    spec.loader.exec_module(module)
    real = module.Cuda
    monkeypatch.setattr(module, "import_tensorrt", lambda runtime: fake_tensorrt)
    monkeypatch.setattr(module, "Cuda", lambda: real(fake_driver))
    return module


def test_report_of_the_runner_is_taken_into_the_build_that_wrote_the_kit(
    build: Path, runner: ModuleType
) -> None:
    kit = build / FOLDER
    assert runner._kit_command(kit) == 0
    with contextlib.suppress(MeasurementError):  # a busy machine; the report is written all the same
        bring_back(build, kit / REPORT)
    report = load_report(build)
    found = [one for one in report.results if one.target == "orin"]
    assert [(one.precision, one.on_board, one.device["tensorrt"]) for one in found] == [
        ("fp32", True, "10.3.0"),
        ("int8", True, "10.3.0"),
    ]
    for one in found:
        assert one.parity["slim_onnx_artefact_max_abs"] <= 1e-6
        assert one.parity["dense_onnx_artefact_top1_agreement"] == 1.0
        assert one.slim.bytes == (kit / one.precision / "slim" / "model.engine").stat().st_size
        assert one.slim.latency_ms.median > 0
        assert (one.protocol["slim_cuda_graph"], one.protocol["slim_gpu_ms_median"]) == ("yes", 1.5)
    assert report.not_built == ()


def test_failure_on_the_board_is_brought_back_in_its_own_words(build: Path, runner: ModuleType) -> None:
    kit = build / FOLDER
    (kit / "int8" / "slim" / "model.onnx").write_bytes(b"cut on the way")
    assert runner._kit_command(kit) == 1
    with contextlib.suppress(MeasurementError):
        bring_back(build, kit / REPORT)
    (missing,) = load_report(build).not_built
    assert missing.precision == "int8"
    assert "on the board: " in missing.why
    assert "model.onnx: expected the kit's file" in missing.why


LOOK = """
import importlib.util, json, sys
from pathlib import Path
kit = Path(sys.argv[1])
spec = importlib.util.spec_from_file_location("kit_runner", kit / "run.py")
run = importlib.util.module_from_spec(spec)
sys.modules["kit_runner"] = run
spec.loader.exec_module(run)
table = json.loads((kit / run.KIT).read_text())
answers = []
try:
    for candidate in table["candidates"]:
        trt = run.import_tensorrt(table["runtime"])
        log = run.Log(trt)
        builder, network = run.open_network(trt, log)
        onnx = kit / candidate["slim"]["folder"] / run.GRAPH
        parser, refusals = run.parse(trt, network, log, onnx)
        options = run._options({**table["options"], "precision": candidate["precision"]})
        config = run.configure(trt, builder, network, options)
        facts = [str(trt.__version__), len(refusals), config.num_optimization_profiles,
                 config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) >> 20,
                 config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED]
        if run.is_rtx(trt):
            facts.append(len(run.build(trt, onnx, options).engine) > 1000)
        answers.append(facts)
except run.TensorRTError as error:
    answers.append(str(error))
print(json.dumps(answers))
"""


def look(tmp_path: Path, version: str) -> list[object]:
    """Let a kit's runner go with a real TensorRT as far as it does without a GPU."""
    runtime = "tensorrt-rtx" if version.startswith("rtx") else "tensorrt"
    target = ORIN.model_copy(update={"runtime": runtime})
    images = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
    path = write_classifier(tmp_path / "fp32.onnx", batch="batch")
    side = Side(path, classify(images), Allowed(1e-3))
    write_kit(
        tmp_path / "kit",
        target,
        [KitCandidate(name, side, side) for name in ("fp32", "int8")],
        Stored(images, 2, dynamic=True, input_name="images"),
    )
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path / "kit")],
        env={**env_of(version), **CPU_ONLY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("version", "full"), [("10.15", "10.15.1"), ("11.2", "11.2.1"), ("rtx-1.7", "1.7.1")]
)
def test_runner_parses_and_configures_with_the_real_module(tmp_path: Path, version: str, full: str) -> None:
    for facts in look(tmp_path, version):
        assert isinstance(facts, list), facts
        found, *rest = facts
        assert str(found).startswith(full)
        assert rest == [0, 1, 64, True, *([True] if version.startswith("rtx") else [])]


@pytest.mark.tensorrt
def test_runner_with_8_6_and_no_gpu_says_what_to_install(tmp_path: Path) -> None:
    (said,) = look(tmp_path, "8.6")
    assert "gives no builder here" in str(said)
    assert "Install or update NVIDIA's driver" in str(said)
