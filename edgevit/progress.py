"""How long work tells how far it is: one call per step; `cli/` turns the calls into bars."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as progress(task, done, total); `done` rises to `total`."""


def silent(task: str, done: int, total: int) -> None:
    """Tell nobody."""
