"""What channels of a residual stream are worth, and which of them stay; by weights alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevit.models.layers import SlimViT
from edgevit.models.relations import Group, Node, Relation, read_relations
from edgevit.plan import Indices
from edgevit.prune.counts import aligned, remaining
from edgevit.prune.rank import highest


def channels_kept(model: SlimViT, drop: float, align: int) -> tuple[Indices, ...]:
    """Choose the channels of each stage's stream that stay.

    Args:
        model: a model whose stream is whole.
        drop: the share that goes, 0..1.
        align: what remains is rounded down, but at least 1, then up to a multiple of this.
    """
    streams = [group for group in read_relations(model.arch).groups if group.kind == "stream"]
    kept = []
    for group in streams:
        count = aligned(remaining(group.size, drop), align, group.size)
        kept.append(tuple(highest(channel_scores(model, group), count).tolist()))
    return tuple(kept)


@torch.no_grad()
def channel_scores(model: SlimViT, group: Group) -> Tensor:
    """Return what each channel of a stream is worth, float64 [D].

    The norm of all that is added to it times the norm of all that reads it, a norm's scale included. It is 0
    when everything that is added is 0: one producer alone makes a channel live.
    """
    written = sum((_written(model, node) for node in group.producers), torch.zeros(1))
    reading = [relation for relation in group.relations if relation.second.side == "in"]
    read = sum((_read(model, relation, group.size) for relation in reading), torch.zeros(1))
    return (written * read).sqrt()


def _written(model: SlimViT, node: Node) -> Tensor:
    """Return the squares of what one producer puts into each channel, [D]; of tokens their mean."""
    if node.layer in ("prefix", "position"):
        tokens: Tensor = getattr(model, node.layer)
        return tokens[0].double().square().mean(dim=0)
    layer = _layer(model, node)
    squares = layer.weight.double().square().view(node.size, -1).sum(dim=1)
    return squares if layer.bias is None else squares + layer.bias.double().square()


def _read(model: SlimViT, relation: Relation, channels: int) -> Tensor:
    """Return the squares of what one layer reads of each channel, with all of its dims that are one, [D]."""
    squares = _layer(model, relation.second).weight.double().square().sum(dim=0)
    if relation.first.side == "through":
        squares = squares * _layer(model, relation.first).weight.double().square()
    return squares.view(-1, channels).sum(dim=0)


def _layer(model: SlimViT, node: Node) -> nn.Linear | nn.LayerNorm | nn.Conv2d:
    layer = model.get_submodule(node.layer)
    assert isinstance(layer, nn.Linear | nn.LayerNorm | nn.Conv2d)
    return layer
