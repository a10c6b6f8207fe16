from __future__ import annotations

import pytest
import torch

from edgevit.training import TrainingPrecision
from edgevit.tune.precision import resolve_precision


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_resolve_precision_that_was_asked_for_stays(wanted: TrainingPrecision) -> None:
    assert resolve_precision(wanted) == wanted


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"avx2": True, "avx512_f": True}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": False, "bf16": True}, "bf16"),
    ],
)
def test_resolve_precision_auto_follows_the_instructions_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert resolve_precision("auto") == expected
