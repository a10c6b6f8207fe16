"""edgevit: make a Vision Transformer smaller, and measure how much faster it really is on the device.

The public API is this page. Importing it imports no torch: what needs torch is imported on first use.
"""

from __future__ import annotations

from edgevit.errors import EdgevitError

__version__ = "0.1.0"

__all__ = ["EdgevitError", "__version__"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
