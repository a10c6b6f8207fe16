"""Cutting rows: the heads, dims and neurons that a plan keeps, with their weights as they are.

What a plan does not name by index is chosen by the norms of what a dim reads and writes. Cutting what is
already zero leaves the outputs equal; the softmax scale stays that of the dense model.
Shapes: H heads, K/V dims per head, F neurons, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgevit.models.anatomy import slim_arch
from edgevit.models.group_scores import head_norms, input_norms, neuron_norms, qk_norms, vo_norms
from edgevit.models.layers import SlimAttention, SlimMlp, SlimViT, activate
from edgevit.models.rotary import best_pairs
from edgevit.plan import BlockPlan, Plan
from edgevit.slim.write import (
    copy_shared,
    readers,
    write_angles,
    write_inputs,
    write_linear,
    write_position_bias,
    write_worth,
)


class MlpMeans(NamedTuple):
    """What one block's MLP has on average over images and tokens, float64."""

    neurons: Tensor
    """Activations, [F]; where images choose neurons, of what an image used before and does not any more."""
    inputs: Tensor
    """Channels that it reads, [D]."""


def slim_by_selection(dense: SlimViT, plan: Plan, means: Sequence[MlpMeans] | None = None) -> SlimViT:
    """Return the model that `plan` leaves of `dense`, with the weights that stay as they are.

    Args:
        dense: the model to slim.
        plan: what remains of it.
        means: of each block; what cut neurons add to the stream on average then goes into fc2's bias, what
            cut channels add to the neurons into fc1's. Without, it is gone.

    Reference: plain selection in docs/methods.md, exact against a mask that zeroes the same rows.
    """
    slim = SlimViT(slim_arch(dense.arch, plan)).to(dense.device).eval()
    copy_shared(dense, slim)
    unknown = [None] * len(plan.blocks)
    for full, cut, block, of_mlp in zip(
        dense.blocks, slim.blocks, plan.blocks, means or unknown, strict=True
    ):
        heads = _index(block.kept.heads, head_norms(full.attn), block.heads)
        _cut_attention(full.attn, cut.attn, heads, block)
        _cut_mlp(full.mlp, cut.mlp, block, of_mlp)
    return slim


def _out_heads(attention: SlimAttention) -> Tensor:
    """Return the output projection's columns head by head, [H, V, C]."""
    columns: Tensor = attention.proj.weight.T.unflatten(0, (attention.heads, -1))
    return columns


def _index(chosen: tuple[int, ...] | None, scores: Tensor, keep: int) -> Tensor:
    """Return sorted indices: those chosen, else the `keep` of the highest score."""
    if chosen is not None:
        return torch.tensor(chosen, dtype=torch.int64, device=scores.device)
    return scores.topk(keep).indices.sort().values


def _cut_attention(full: SlimAttention, cut: SlimAttention, heads: Tensor, block: BlockPlan) -> None:
    qk = _qk_dims(full, heads, block)  # [H', K']
    vo = _per_head(block.kept.vo, vo_norms(full)[heads], block.vo_dim)  # [H', V']
    for layer, source, rows in ((cut.q, full.q, qk), (cut.k, full.k, qk), (cut.v, full.v, vo)):
        bias = (
            None
            if source.bias is None
            else _rows(source.bias.unsqueeze(-1), full.heads, heads, rows).flatten()
        )
        write_linear(layer, _rows(source.weight, full.heads, heads, rows).flatten(0, 1), bias)
    out = _take(_out_heads(full)[heads], vo)  # [H', V', C]
    write_linear(cut.proj, out.flatten(0, 1).T, full.proj.bias)
    write_position_bias(full, cut, heads)
    write_angles(full, cut, qk[0])


def _qk_dims(full: SlimAttention, heads: Tensor, block: BlockPlan) -> Tensor:
    """Return sorted indices of the QK dims that stay of each kept head, [H', K']; pairs where they turn."""
    scores = qk_norms(full)[heads]
    if full.rotary is None or block.kept.qk is not None:
        return _per_head(block.kept.qk, scores, block.qk_dim)
    return best_pairs(scores, block.qk_dim).expand(len(heads), -1)


def _per_head(chosen: tuple[tuple[int, ...], ...] | None, scores: Tensor, keep: int) -> Tensor:
    """Return sorted indices for each head, [H', keep]."""
    sets = [None] * len(scores) if chosen is None else list(chosen)
    return torch.stack([_index(one, row, keep) for one, row in zip(sets, scores, strict=True)])


def _rows(weight: Tensor, heads: int, kept: Tensor, rows: Tensor) -> Tensor:
    return _take(weight.unflatten(0, (heads, -1))[kept], rows)


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """Take rows [H', K'] of values [H', K, C]."""
    return values.gather(1, rows.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _cut_mlp(full: SlimMlp, cut: SlimMlp, block: BlockPlan, means: MlpMeans | None) -> None:
    inputs = _cut_inputs(full, cut, block)
    kept = _index(block.kept.hidden, neuron_norms(full), block.hidden)
    write_inputs(full, cut, inputs)
    write_worth(full, cut)
    for source, target in readers(full, cut):
        gone = 0.0 if means is None else _mean_lost(source, inputs, means.inputs)[kept]
        write_linear(target, source.weight[kept][:, inputs], source.bias[kept] + gone)
    if means is None:
        lost = _constants(full, kept)
    else:
        lost = _mean_lost(full.fc2, kept[:0] if block.per_image else kept, means.neurons)
    write_linear(cut.fc2, full.fc2.weight[:, kept], full.fc2.bias + lost)


def _cut_inputs(full: SlimMlp, cut: SlimMlp, block: BlockPlan) -> Tensor:
    """Return which of the channels that the full MLP reads stay, int64 [D'], rising."""
    return _index(block.kept.inputs, input_norms(full), cut.fc1.in_features)


def _mean_lost(layer: nn.Linear, kept: Tensor, mean: Tensor) -> Tensor:
    """Return what a layer's inputs that are not `kept` add to its outputs on average, float64 [out]."""
    rest = mean.clone()
    rest[kept] = 0
    lost: Tensor = layer.weight.double() @ rest
    return lost


def _constants(full: SlimMlp, kept: Tensor) -> Tensor:
    """Return what the cut neurons that read nothing add to every token, [C]: their bias alone feeds them."""
    read = full.fc1.weight.abs().sum(dim=1)
    values: Tensor = full.fc1.bias
    if full.gate is None:
        values = activate(values, full.activation)
    else:
        read = read + full.gate.weight.abs().sum(dim=1)
        values = values * activate(full.gate.bias, full.activation)
    silent = read == 0
    silent[kept] = False
    constant: Tensor = full.fc2.weight[:, silent] @ values[silent]
    return constant
