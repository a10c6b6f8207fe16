"""What this machine has of a target: the runtime, the device, and each precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgevit.backends import Backend, get_backend
from edgevit.backends.session import runtime_errors
from edgevit.board import Installed, read_installed
from edgevit.errors import BackendError, BackendUnavailableError
from edgevit.target import TENSORRT_RUNTIMES, Precision, Target


@dataclass(frozen=True)
class Readiness:
    """Whether this machine can run what is built for a target."""

    versions: Mapping[str, str]
    """Of the runtime, by name; empty where it is not installed."""
    missing: Mapping[Precision, str | None]
    """Of each precision of the target: what is missing and how to get it; None where it is ready."""

    @property
    def runs(self) -> bool:
        """Whether at least one precision is ready, which is what a build needs."""
        return None in self.missing.values()

    def reasons(self) -> dict[str, list[Precision]]:
        """Return what is missing, and for which precisions, in the target's order."""
        found: dict[str, list[Precision]] = {}
        for precision, reason in self.missing.items():
            if reason is not None:
                found.setdefault(reason, []).append(precision)
        return found


def read_readiness(target: Target) -> Readiness:
    """Ask the target's backend, for each precision, what this machine lacks; nothing is built or loaded."""
    backend = get_backend(target.runtime)
    try:
        if target.device == "board":  # nothing of its runtime needs to be here
            backend.options(target, target.precisions[0])
        versions = backend.versions()
    except BackendUnavailableError as error:
        return Readiness({}, dict.fromkeys(target.precisions, str(error)))
    return Readiness(versions, {one: _missing(backend, target, one) for one in target.precisions})


def _missing(backend: Backend, target: Target, precision: Precision) -> str | None:
    try:
        options = backend.options(target, precision)
        with runtime_errors(options.runtime, Path(target.name), lambda path, text: ""):
            installed = _read(target, options.device)
        backend.require(installed, target, precision)
    except BackendError as error:
        return str(error)
    return None


def _read(target: Target, device: str) -> Installed:
    if target.runtime in TENSORRT_RUNTIMES:
        from edgevit.backends.tensorrt import read_gpu

        return read_gpu(target.runtime)
    return read_installed(target.runtime, device)
