"""How many threads torch and NumPy's BLAS compute with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from threadpoolctl import threadpool_limits


@contextlib.contextmanager
def compute_with(threads: int | None) -> Iterator[None]:
    """Let torch and NumPy's BLAS compute with this many threads; None: as many as they like."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with threadpool_limits(threads, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
