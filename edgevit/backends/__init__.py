"""Runtimes that build and run artefacts, one a file; a target names the one it wants.

A function that takes a backend takes a `Backend`, so a runtime of one's own is passed as an object.
"""

from __future__ import annotations

from collections.abc import Callable

from edgevit.backends.base import Backend, Session
from edgevit.target import Runtime

__all__ = ["BACKENDS", "Backend", "Session", "get_backend"]


def _onnxruntime() -> Backend:
    from edgevit.backends.onnxruntime import OnnxRuntime

    return OnnxRuntime()


def _openvino() -> Backend:
    from edgevit.backends.openvino import OpenVINO

    return OpenVINO()


def _tensorrt() -> Backend:
    from edgevit.backends.tensorrt import TensorRT

    return TensorRT("tensorrt")


def _tensorrt_rtx() -> Backend:
    from edgevit.backends.tensorrt import TensorRT

    return TensorRT("tensorrt-rtx")


BACKENDS: dict[Runtime, Callable[[], Backend]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
}


def get_backend(name: Runtime) -> Backend:
    """Return the backend for the runtime `name`; its `check` says whether the runtime is installed."""
    return BACKENDS[name]()
