"""Which indices the highest scores have."""

from __future__ import annotations

import torch

from edgevit.prune.rank import highest


def test_highest_returns_sorted_indices_of_the_highest_and_the_first_of_equals() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
    assert highest(scores, 2).tolist() == [[1, 3], [0, 1]]
