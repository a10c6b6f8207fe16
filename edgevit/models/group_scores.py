"""What heads, the dims inside them, hidden neurons and inputs of MLPs are worth by their weights alone.

Heads, dims and neurons are worth a product of the norms of everything that goes with them: 0 as soon as one
of these is 0.
Shapes: H heads, K/V dims per head, F hidden neurons, D channels that an MLP reads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgevit.models.layers import SlimAttention, SlimMlp, SlimViT

Scores = Mapping[str, Tensor]
"""What each part that may go is worth, by name, such as "blocks.0.heads": by weights alone, or learnt."""


def head_norms(attention: SlimAttention) -> Tensor:
    """Return for each head the norm of its values' rows times that of its projection's columns, [H]."""
    values = attention.v.weight.unflatten(0, (attention.heads, -1)).square().sum(dim=(1, 2))
    columns = attention.proj.weight.T.unflatten(0, (attention.heads, -1))  # [H, V, C]
    norms: Tensor = (values * columns.square().sum(dim=(1, 2))).sqrt()
    return norms


def qk_norms(attention: SlimAttention) -> Tensor:
    """Return for each QK dim the norm of its query row, bias included, times that of its key row, [H, K]."""
    read = attention.q.weight
    if attention.q.bias is not None:
        read = torch.cat([read, attention.q.bias.unsqueeze(-1)], dim=1)
    norms = read.norm(dim=1) * attention.k.weight.norm(dim=1)
    by_head: Tensor = norms.unflatten(0, (attention.heads, -1))
    return by_head


def vo_norms(attention: SlimAttention) -> Tensor:
    """Return for each VO dim the norm of its value row times that of its projection column, [H, V]."""
    norms = attention.v.weight.norm(dim=1) * attention.proj.weight.norm(dim=0)
    by_head: Tensor = norms.unflatten(0, (attention.heads, -1))
    return by_head


def neuron_norms(mlp: SlimMlp) -> Tensor:
    """Return for each neuron the norms of its fc1 row, gate row (where there is one) and fc2 column, [F].

    A neuron that reads nothing is a constant, and worth 0. Where there is a gate, rows have their biases with
    them: one row of zeros and a bias still pass on what the other row reads.
    """
    columns: Tensor = mlp.fc2.weight.norm(dim=0)
    read: Tensor = mlp.fc1.weight.norm(dim=1)
    if mlp.gate is None:
        return read * columns
    rows, gates = (
        torch.cat([layer.weight, layer.bias.unsqueeze(1)], dim=1).norm(dim=1) for layer in (mlp.fc1, mlp.gate)
    )
    constant = (read == 0) & (mlp.gate.weight.norm(dim=1) == 0)
    norms: Tensor = (rows * gates * columns).masked_fill(constant, 0.0)
    return norms


def input_norms(mlp: SlimMlp) -> Tensor:
    """Return for each channel that an MLP reads the norm of the columns that read it, float64 [D]."""
    readers = [layer.weight.double() for layer in (mlp.fc1, mlp.gate) if layer is not None]
    norms: Tensor = torch.cat(readers).norm(dim=0)
    return norms


def group_scores(model: SlimViT) -> Scores:
    """Return what each unit is worth: "blocks.N.qk" [H, K], "blocks.N.vo" [H, V], "blocks.N.hidden" [F]."""
    scores: dict[str, Tensor] = {}
    for index, block in enumerate(model.blocks):
        scores[f"blocks.{index}.qk"] = qk_norms(block.attn).detach()
        scores[f"blocks.{index}.vo"] = vo_norms(block.attn).detach()
        scores[f"blocks.{index}.hidden"] = neuron_norms(block.mlp).detach()
    return scores
