"""`import edgevit` is what every command pays for first: it must not import torch or a runtime."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "timm", "numpy", "onnx", "onnxruntime", "openvino", "datasets", "altair", "pydantic")


def test_import_edgevit_loads_no_heavy_module() -> None:
    code = f"import sys, edgevit; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
