"""What edgevit/engine.py asks of TensorRT, against the real modules where they are here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from real_tensorrt import VERSIONS, env_of, is_fetched

from edgevit import board, engine
from edgevit.engine import Layer, TensorRTError, read_layers, remedy, require_fit

CHECKOUT = Path(engine.__file__).parents[1]
CLASS_OF = {
    "config": "IBuilderConfig",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "inspector": "EngineInspector",
    "image": "ITensor",
    "self._engine": "ICudaEngine",
    "self._context": "IExecutionContext",
    "context": "IExecutionContext",
    "self._runtime": "Runtime",
}
"""What the names in engine.py stand for, of TensorRT's classes."""
# Asked for with getattr or hasattr, or where the options of one version name it.
ONLY_RTX = {
    "trt.ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}
NOT_IN_8 = {"ICudaEngine.create_runtime_config"}
NOT_TENSORRT = {"image.host", "image.size_bytes"}

LOOK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from edgevit.engine import import_tensorrt
trt = import_tensorrt(sys.argv[2])
owners = {name: getattr(trt, name) for name in json.loads(sys.argv[3]) if hasattr(trt, name)} | {"trt": trt}
names = [f"{owner}.{name}" for owner, one in owners.items() for name in dir(one) if name[0] != "_"]
print(json.dumps([trt.__version__, names]))
"""
RECORDED = Path(__file__).parent / "data" / "tensorrt_8.6_names.txt"
"""What LOOK finds in 8.6, whose libraries take 826 MB and are fetched when asked for; the version first."""


def attributes_of_tensorrt() -> set[str]:
    """Read from engine.py which attributes it takes of TensorRT's module and objects."""
    found = set()
    for node in ast.walk(ast.parse(Path(engine.__file__).read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        if owner in ("trt", "self._trt"):
            found.add(f"trt.{node.attr}")
        elif owner in CLASS_OF and f"{owner}.{node.attr}" not in NOT_TENSORRT:
            found.add(f"{CLASS_OF[owner]}.{node.attr}")
    return {name for name in found if not name.endswith("__")}


@cache
def look(version: str) -> tuple[str, set[str]]:
    """Return the version that the real module says, and the names in it and in what engine.py uses of it."""
    runtime = "tensorrt-rtx" if version.startswith("rtx") else "tensorrt"
    owners = {name.partition(".")[0] for members in MEMBERS.values() for name in members}
    wanted = json.dumps(sorted(owners | set(CLASS_OF.values())))
    command = [sys.executable, "-c", LOOK, str(CHECKOUT), runtime, wanted]
    done = subprocess.run(command, env=env_of(version), capture_output=True, text=True, check=True)
    found, names = json.loads(done.stdout.splitlines()[-1])
    return found, set(names)


def names_of(version: str) -> tuple[str, set[str]]:
    """Return what `look` does, of 8.6 also where its libraries are not here."""
    if version != "8.6" or is_fetched(version):
        return look(version)
    found, *names = RECORDED.read_text().split()
    return found, set(names)


def test_attributes_of_tensorrt_are_read_from_the_code() -> None:
    found = attributes_of_tensorrt()
    assert {"trt.Builder", "OnnxParser.parse_from_file", "IExecutionContext.execute_async_v3"} <= found
    assert len(found) > 40


@pytest.mark.tensorrt
@pytest.mark.parametrize("version", VERSIONS)
def test_attributes_that_the_adapter_uses_exist_in(version: str) -> None:
    wanted = attributes_of_tensorrt() - (set() if version.startswith("rtx") else ONLY_RTX)
    wanted -= NOT_IN_8 if version.startswith("8") else set()
    found, names = names_of(version)
    assert found.startswith(VERSIONS[version]["tensorrt"])
    assert sorted(wanted - names) == []


@pytest.mark.tensorrt
def test_recorded_names_are_those_of_the_real_module() -> None:
    found, *names = RECORDED.read_text().split()
    assert look("8.6") == (found, set(names))


MEMBERS = {
    "8.6": {"BuilderFlag.FP16", "BuilderFlag.INT8", "BuilderFlag.VERSION_COMPATIBLE",
            "NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "HardwareCompatibilityLevel.AMPERE_PLUS"},
    "10.15": {"BuilderFlag.VERSION_COMPATIBLE", "BuilderFlag.ERROR_ON_TIMING_CACHE_MISS",
              "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "HardwareCompatibilityLevel.AMPERE_PLUS",
              "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"},
    "11.2": {"BuilderFlag.VERSION_COMPATIBLE", "BuilderFlag.ERROR_ON_TIMING_CACHE_MISS",
             "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "HardwareCompatibilityLevel.AMPERE_PLUS",
             "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"},
    "rtx-1.7": {"NetworkDefinitionCreationFlag.STRONGLY_TYPED", "ComputeCapability.SM86",
                "ComputeCapability.SM89", "ComputeCapability.SM120"},
}  # fmt: skip
"""Names that engine.py asks for as text, in the versions that it asks."""


@pytest.mark.tensorrt
@pytest.mark.parametrize("version", VERSIONS)
def test_flags_that_the_adapter_names_exist_in(version: str) -> None:
    assert sorted(MEMBERS[version] - names_of(version)[1]) == []


DEVICE = {"name": "some GPU", "compute_capability": "8.7", "cuda_driver": "12.6"}


class FakeModule:
    """A version number where a module is wanted; a fake, for what is decided by that number alone."""

    __name__ = "tensorrt"
    __version__ = "10.3.0"


class FakeRtx(FakeModule):
    """The same for TensorRT-RTX."""

    __name__ = "tensorrt_rtx"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"version": "8.6.2"}, r"built by TensorRT 8\.6\.2, here is 10\.3\.0: build it anew here"),
        ({"version": "10.9.0", "options": '{"version_compatible": false}'}, "built by TensorRT 10.9.0"),
        (
            {"version": "10.3.0", "compute_capability": "7.2"},
            r"built for compute capability 7\.2; this GPU \(some GPU\) has 8\.7: build it anew on a GPU of",
        ),
        (
            {"version": "10.3.0", "compute_capabilities": "8.6, 8.9"},
            r"built for compute capability 8\.6, 8\.9; this GPU \(some GPU\) has 8\.7",
        ),
    ],
)
def test_engine_of_another_version_or_gpu_is_refused(facts: dict[str, str], message: str) -> None:
    with pytest.raises(TensorRTError, match=message):
        require_fit(facts, FakeModule(), DEVICE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "facts",
    [
        {"version": "10.3.0", "compute_capability": "8.7"},
        {"version": "10.3.0", "compute_capabilities": "8.6, 8.7"},
        {"version": "10.1.0", "options": '{"version_compatible": true}'},
        {"version": "10.3.0", "compute_capability": "8.6", "options": '{"hardware_compatible": "ampere+"}'},
    ],
)
def test_engine_that_fits_is_taken_and_one_of_another_version_is_not(facts: dict[str, str]) -> None:
    require_fit(facts, FakeModule(), DEVICE)  # type: ignore[arg-type]
    with pytest.raises(TensorRTError, match=r"built by TensorRT 8\.6\.1, here is 10\.3\.0"):
        require_fit(facts | {"version": "8.6.1"}, FakeModule(), DEVICE)  # type: ignore[arg-type]


def test_engine_without_a_side_file_is_refused_in_words_of_its_own() -> None:
    with pytest.raises(TensorRTError, match=r"no side file that says .*here is 10\.3\.0: build it anew"):
        require_fit({}, FakeModule(), DEVICE)  # type: ignore[arg-type]


def test_rtx_engine_for_other_cards_says_what_to_add_to_the_target() -> None:
    facts = {"version": "10.3.0", "compute_capabilities": "8.6, 12.0"}
    with pytest.raises(
        TensorRTError, match=r"add 8\.7 to the target's compute_capabilities and build it anew"
    ):
        require_fit(facts, FakeRtx(), DEVICE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "todo"),
    [
        ("Requested amount of GPU memory (8 GiB) could not be allocated", "lower workspace_mb or the batch"),
        ("CUDA driver: cuMemAlloc failed with 2 (out of memory)", "lower workspace_mb or the batch"),
        ("CUDA initialization failure with error: 35", "Install or update NVIDIA's driver"),
        ("CUDA driver version is insufficient for CUDA runtime version", "Install or update NVIDIA's driver"),
        ("cuInit failed with 100 (no CUDA-capable device is detected)", "Check with nvidia-smi"),
    ],
)
def test_known_words_of_a_failure_say_what_to_do(said: str, todo: str) -> None:
    assert todo in remedy(said)
    assert remedy("no kernel for blocks.0") == ""


def test_protocol_of_timing_is_that_of_the_other_runtimes() -> None:
    names = ("LEAD_RUNS", "LEAD_S", "BURST_RUNS", "BURST_S", "MIN_BURSTS", "OVERTIME")
    assert {name: getattr(engine, name) for name in names} == {name: getattr(board, name) for name in names}


@pytest.mark.parametrize("seconds", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("run_s", [1e-5, 3.7e-4, 0.02, 1.5])
def test_bursts_are_planned_and_ended_as_on_the_other_runtimes(run_s: float, seconds: float) -> None:
    timing = {"warmup_s": 1.0, "seconds": seconds, "min_samples": 50, "max_samples": 2000}
    budget = board.TimeBudget(1.0, seconds, 50, 2000)
    runs = engine.plan_burst(run_s, timing)
    assert runs == board.plan_burst(run_s, budget)
    for bursts in (1, 9, 10, 11, 500):
        for spent_s in (0.0, 0.99 * seconds, seconds, 9 * seconds, 10 * seconds):
            ended = board._share_done(bursts, runs, spent_s, budget) >= 1.0
            assert engine.is_enough(bursts, runs, spent_s, timing) == ended, (bursts, spent_s)


def test_layers_of_an_inspector_are_read_in_each_version() -> None:
    text = json.dumps(
        {
            "Layers": [
                "only a name",
                {"Name": "a", "LayerType": "gemm", "Outputs": [{"Format/Datatype": "Row major FP16 format"}]},
                {"Name": "b", "LayerType": "kgen", "Outputs": [{"Format": "Linear", "Datatype": "Half"}]},
                {"Name": "c", "LayerType": "kgen", "Outputs": [{"Datatype": "FP99"}]},
            ]
        }
    )
    assert read_layers(text) == [
        Layer("only a name", "", ""),
        Layer("a", "gemm", "fp16"),
        Layer("b", "kgen", "fp16"),
        Layer("c", "kgen", "FP99"),
    ]
