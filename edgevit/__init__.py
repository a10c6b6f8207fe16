"""edgevit: make a Vision Transformer smaller, and measure how much faster it really is on the device.

The public API is this page. Importing it imports no torch: what needs torch is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgevit.errors import EdgevitError
from edgevit.version import __version__

if TYPE_CHECKING:
    from edgevit.models.load import LoadedModel, ModelSource, load_model
    from edgevit.pipeline import BuildOptions, build
    from edgevit.recipe import LoadedRecipe, load_recipe

__all__ = [
    "BuildOptions",
    "EdgevitError",
    "LoadedModel",
    "LoadedRecipe",
    "ModelSource",
    "__version__",
    "build",
    "load_model",
    "load_recipe",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    match name:
        case "LoadedModel" | "ModelSource" | "load_model":
            from edgevit.models import load

            return getattr(load, name)
        case "BuildOptions" | "build":
            from edgevit import pipeline

            return getattr(pipeline, name)
        case "LoadedRecipe" | "load_recipe":
            from edgevit import recipe

            return getattr(recipe, name)
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
