from __future__ import annotations

import torch
from threadpoolctl import threadpool_info

from edgevit.pipeline.threads import compute_with


def test_threads_bind_torch_and_the_blas_of_numpy_alike_and_for_a_while() -> None:
    before = torch.get_num_threads()
    with compute_with(1):
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        assert blas
        assert {torch.get_num_threads(), *blas} == {1}
    assert torch.get_num_threads() == before
