"""What a head is worth by its weights alone."""

from __future__ import annotations

from torch import Tensor

from edgevit.models.layers import SlimAttention


def head_norms(attention: SlimAttention) -> Tensor:
    """Return, for each head, the product of the norms of its values and its output columns, [H]."""
    values = attention.v.weight.unflatten(0, (attention.heads, -1)).square().sum(dim=(1, 2))
    columns = attention.proj.weight.T.unflatten(0, (attention.heads, -1))  # [H, V, C]
    norms: Tensor = (values * columns.square().sum(dim=(1, 2))).sqrt()
    return norms
