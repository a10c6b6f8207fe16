from __future__ import annotations

from typing import Any

import pytest

from edgevit.training import Training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"checkpoint_steps": 0}, "checkpoint_steps: expected at least 1"),
        ({"lr": 0.0}, "lr: expected a number > 0"),
        ({"clip_norm": float("nan")}, "clip_norm: expected a number > 0, got nan"),
        ({"warmup": 1.0}, "warmup: expected a share"),
        ({"ema": 1.0}, "ema: expected a decay"),
    ],
)
def test_training_impossible_option_is_a_value_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**options)
