"""Where tools/tensorrt/fetch.py put TensorRT's real libraries, for tests marked `tensorrt`."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

FETCH = Path(__file__).resolve().parents[1] / "tools" / "tensorrt"
CACHE = Path(os.environ.get("EDGEVIT_TENSORRT") or Path.home() / ".cache" / "edgevit" / "tensorrt")
VERSIONS = tomllib.loads((FETCH / "versions.toml").read_text())
USED = tuple(name for name, entry in VERSIONS.items() if entry["default"])
"""What fetch.py brings when nothing is named."""


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
