"""The line from a recipe to measured artefacts: `build` in `line.py`, its stages in the files beside it."""

from __future__ import annotations

from edgevit.pipeline.line import BuildOptions, build

__all__ = ["BuildOptions", "build"]
