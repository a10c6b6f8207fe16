"""From scores to the indices that stay."""

from __future__ import annotations

from torch import Tensor


def highest(scores: Tensor, keep: int) -> Tensor:
    """Return the indices of the highest scores, sorted, along the last dim; of equal scores the first.

    Args:
        scores: what each is worth, [..., n].
        keep: how many stay, 1..n.

    Returns:
        int64 [..., keep].
    """
    order: Tensor = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :keep].sort(dim=-1).values
