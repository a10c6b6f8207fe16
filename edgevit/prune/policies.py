"""Which zeros allow a cut: from rows and columns that are zero to the units of a group that can go.

A unit is cut without a change of the outputs
- under a product (mul) when either side is zero: the product is;
- between producer and consumer when the producer's rows are zero, or the consumer's columns;
- under an addition only when all that is added is zero, and then the norms behind must go on dividing by the
  full width (docs/methods.md, embed channels).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgevit.models.layers import SlimViT
from edgevit.models.relations import Group, Node
from edgevit.prune.counts import aligned

Zeros = Mapping[Node, Tensor]
"""For nodes, which of their dims are zero, bool [size]; nodes that are missing have no zeros."""


def deletable_units(group: Group, zeros: Zeros) -> Tensor:
    """Return which units of a group can go without a change of the outputs, bool [group.size].

    A unit is zero at a node when all of its dims there are.
    """
    if group.kind in ("image", "classes"):
        return torch.zeros(group.size, dtype=torch.bool)
    by_node = {node: zeros[node].view(-1, group.size).all(dim=0) for node in group.nodes if node in zeros}
    none = torch.zeros(group.size, dtype=torch.bool)
    if group.producers:
        return torch.stack([by_node.get(node, none) for node in group.producers]).all(dim=0)
    return torch.stack([none, *by_node.values()]).any(dim=0)


def zero_dims(model: SlimViT, group: Group) -> dict[Node, Tensor]:
    """Return which dims of the nodes that decide are zero in a model, biases included: bool [size] each."""
    return {node: _zero(model, node) for node in group.producers or group.nodes}


def _zero(model: SlimViT, node: Node) -> Tensor:
    if node.layer in ("prefix", "position"):
        tokens: Tensor = getattr(model, node.layer)
        return (tokens == 0).all(dim=1)[0]
    layer = model.get_submodule(node.layer)
    if not isinstance(layer, nn.Linear | nn.LayerNorm | nn.Conv2d):  # angles have no zeros
        return torch.zeros(node.size, dtype=torch.bool)
    weight = layer.weight.transpose(0, 1) if node.side == "in" else layer.weight
    found = (weight == 0).flatten(1).all(dim=1) if weight.dim() > 1 else weight == 0
    if node.side != "in" and layer.bias is not None:
        found = found & (layer.bias == 0)
    return found


def aligned_count(live: Tensor, align: int) -> int:
    """Return how many dims each head keeps so that no head loses one that is live.

    Args:
        live: which dims of each head are not zero, bool [H, K].
        align: the count is rounded up to a multiple of this; at most K, at least 1.
    """
    most = max(1, int(live.sum(dim=1).max()))
    return aligned(most, align, live.shape[1])
