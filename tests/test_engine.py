"""What edgevit/engine.py asks of TensorRT, against the real modules where they are here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from real_tensorrt import VERSIONS, env_of

from edgevit import engine
from edgevit.engine import Layer, TensorRTError, read_layers, require_fit

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
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
from edgevit.engine import import_tensorrt
trt = import_tensorrt(sys.argv[2])
wanted = json.loads(sys.argv[3])
def has(name):
    owner, _, attribute = name.partition(".")
    return hasattr(trt if owner == "trt" else getattr(trt, owner), attribute)
print(json.dumps([trt.__version__, [name for name in wanted if not has(name)]]))
"""


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
    return found - {"trt.__name__"}


def test_attributes_of_tensorrt_are_read_from_the_code() -> None:
    found = attributes_of_tensorrt()
    assert {"trt.Builder", "OnnxParser.parse_from_file", "IExecutionContext.execute_async_v3"} <= found
    assert len(found) > 40


@pytest.mark.tensorrt
@pytest.mark.parametrize("version", VERSIONS)
def test_attributes_that_the_adapter_uses_exist_in(version: str) -> None:
    rtx = version.startswith("rtx")
    wanted = attributes_of_tensorrt() - (set() if rtx else ONLY_RTX)
    wanted -= NOT_IN_8 if version.startswith("8") else set()
    runtime = "tensorrt-rtx" if rtx else "tensorrt"
    command = [sys.executable, "-c", LOOK, str(CHECKOUT), runtime, json.dumps(sorted(wanted))]
    done = subprocess.run(command, env=env_of(version), capture_output=True, text=True, check=True)
    found, missing = json.loads(done.stdout.splitlines()[-1])
    assert found.startswith(VERSIONS[version]["tensorrt"])
    assert missing == []


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
    runtime = "tensorrt-rtx" if version.startswith("rtx") else "tensorrt"
    command = [sys.executable, "-c", LOOK, str(CHECKOUT), runtime, json.dumps(sorted(MEMBERS[version]))]
    done = subprocess.run(command, env=env_of(version), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])[1] == []


DEVICE = {"name": "some GPU", "compute_capability": "8.7", "cuda_driver": "12.6"}


class FakeModule:
    """A version number where a module is wanted; a fake, for what is decided by that number alone."""

    __version__ = "10.3.0"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"version": "8.6.2"}, r"built by TensorRT 8\.6\.2, here is 10\.3\.0: build it anew here"),
        ({"version": "10.9.0", "options": '{"version_compatible": false}'}, "built by TensorRT 10.9.0"),
        (
            {"version": "10.3.0", "compute_capability": "7.2"},
            r"built for compute capability 7\.2; this GPU has 8\.7",
        ),
    ],
)
def test_engine_of_another_version_or_gpu_is_refused(facts: dict[str, str], message: str) -> None:
    with pytest.raises(TensorRTError, match=message):
        require_fit(facts, FakeModule, DEVICE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "facts",
    [
        {"version": "10.3.0", "compute_capability": "8.7"},
        {"version": "10.1.0", "options": '{"version_compatible": true}'},
        {"version": "10.3.0", "compute_capability": "8.6", "options": '{"hardware_compatible": "ampere+"}'},
    ],
)
def test_engine_that_fits_is_taken_and_one_of_another_version_is_not(facts: dict[str, str]) -> None:
    require_fit(facts, FakeModule, DEVICE)  # type: ignore[arg-type]
    with pytest.raises(TensorRTError, match=r"built by TensorRT 8\.6\.1, here is 10\.3\.0"):
        require_fit(facts | {"version": "8.6.1"}, FakeModule, DEVICE)  # type: ignore[arg-type]


def test_engine_without_a_side_file_is_refused_in_words_of_its_own() -> None:
    with pytest.raises(TensorRTError, match=r"no side file that says .*here is 10\.3\.0: build it anew"):
        require_fit({}, FakeModule, DEVICE)  # type: ignore[arg-type]


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
