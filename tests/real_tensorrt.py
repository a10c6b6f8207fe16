"""Where tools/tensorrt/fetch.py put TensorRT's real libraries, for tests marked `tensorrt`; asking them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgevit.engine import CPU_ONLY
from edgevit.target import Runtime

CHECKOUT = Path(__file__).resolve().parents[1]
FETCH = CHECKOUT / "tools" / "tensorrt"
CACHE = Path(os.environ.get("EDGEVIT_TENSORRT") or Path.home() / ".cache" / "edgevit" / "tensorrt")
VERSIONS = tomllib.loads((FETCH / "versions.toml").read_text())
USED = tuple(name for name, entry in VERSIONS.items() if entry["default"])
"""What fetch.py brings when nothing is named."""
WITHOUT_GPU: dict[str, Runtime] = {"10.15": "tensorrt", "11.2": "tensorrt", "rtx-1.7": "tensorrt-rtx"}
"""The versions that parse without a GPU; TensorRT-RTX also builds."""

SHOW = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from edgevit.engine import BuildOptions, Log, TensorRTError
from edgevit.engine import build, import_tensorrt, is_rtx, open_network, parse
trt = import_tensorrt(sys.argv[2])
def show(path, precision):
    if is_rtx(trt):
        options = BuildOptions(precision, compute_capabilities=("8.6",), batches=(1, 1, 4))
        return len(build(trt, path, options).engine)
    log = Log(trt)
    builder, network = open_network(trt, log)
    parser, refusals = parse(trt, network, log, path)
    return "; ".join(f"{one.node} ({one.operator}): {one.words}" for one in refusals) or network.num_layers
found = []
for path, precision in json.loads(sys.argv[3]):
    print("now", path, file=sys.stderr, flush=True)
    try:
        found.append(show(Path(path), precision))
    except TensorRTError as error:
        found.append(str(error))
print()
print(json.dumps(found))
"""


def is_fetched(version: str) -> bool:
    return (CACHE / version / "fetched.json").is_file()


def env_of(version: str) -> dict[str, str]:
    """Return the environment in which a process imports this version; skip the test where it is not there."""
    if not is_fetched(version):
        pytest.skip(f"TensorRT {version} is not here: python tools/tensorrt/fetch.py {version}")
    before = os.environ.get("PYTHONPATH", "")
    return {
        **os.environ,
        "PYTHONPATH": f"{CACHE / version}{os.pathsep}{before}" if before else str(CACHE / version),
    }


def show_graphs(version: str, graphs: Sequence[tuple[Path, str]]) -> list[int | str]:
    """Let one process parse graphs, and TensorRT-RTX build them: loading a library takes longer than a graph.

    Args:
        version: of WITHOUT_GPU.
        graphs: files and their precisions.

    Returns:
        Of each graph the layers of its network, of TensorRT-RTX the bytes of its engine; or what was wrong.
    """
    wanted = json.dumps([[str(path), precision] for path, precision in graphs])
    command = [sys.executable, "-c", SHOW, str(CHECKOUT), WITHOUT_GPU[version], wanted]
    done = subprocess.run(
        command, env=env_of(version) | CPU_ONLY, capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode == 0, f"TensorRT {version} died ({done.returncode}): {done.stderr[-3000:]}"
    found: list[int | str] = json.loads(done.stdout.splitlines()[-1])
    return found
