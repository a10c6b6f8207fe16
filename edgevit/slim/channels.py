"""Cutting channels of the residual stream, exact against a model in which they are always zero.

With W the weight that reads a norm, gamma and beta the norm's, x the stream (zero where cut), all C channels:
    W y + b = (1 / sd) (W_K gamma_K x_K - mean (W gamma)) + W beta + b,  mean = 1 x_K / C
so W' = W_K gamma_K - (W gamma) 1 / C, b' = b + W beta and y' = x_K / sd give the same, with no further term.
Shapes: C channels, K that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgevit.models.downsample import Downsample
from edgevit.models.layers import SlimBlock, SlimViT
from edgevit.models.narrow import NarrowNorm, narrow_arch, stages
from edgevit.models.tokenizer import ConvTokenizer
from edgevit.plan import Indices

_Weights = dict[str, Tensor]


@torch.no_grad()
def cut_channels(model: SlimViT, kept: Sequence[Indices]) -> SlimViT:
    """Return the model without some channels of its residual stream; `model` stays as it is.

    It gives what `model` gives when everything that is added to the stream is zero in the other channels.

    Args:
        model: any model, slimmed already or not.
        kept: sorted indices of the channels that stay, one set for each stage.

    Reference: "Channels of the residual stream" in docs/methods.md.
    """
    narrow = SlimViT(narrow_arch(model.arch, [len(indices) for indices in kept])).to(model.device).eval()
    sets = [torch.tensor(indices, dtype=torch.int64, device=model.device) for indices in kept]
    found = _stem(model, sets[0])
    before = sets[0]
    for index, (block, stage) in enumerate(zip(model.blocks, stages(model.arch), strict=True)):
        own = _block(block, sets[stage], before)
        found |= {f"blocks.{index}.{name}": value for name, value in own.items()}
        before = sets[stage]
    found |= _head(model, before)
    narrow.load_state_dict(found)
    return narrow


def _stem(model: SlimViT, kept: Tensor) -> _Weights:
    found = dict(model.state_dict())
    found = {name: value for name, value in found.items() if name.startswith("patch_embed.")}
    last = "patch_embed"
    if isinstance(model.patch_embed, ConvTokenizer):
        last = f"patch_embed.convs.{len(model.patch_embed.convs) - 1}"
    for name in (f"{last}.weight", f"{last}.bias"):
        if name in found:
            found[name] = found[name][kept]
    found["prefix"] = model.prefix[..., kept]
    if model.position is not None:
        found["position"] = model.position[..., kept]
    if isinstance(model.norm_pre, nn.LayerNorm):
        found |= _stream_norm(model.norm_pre, "norm_pre", kept)
    return found


def _stream_norm(norm: nn.LayerNorm, name: str, kept: Tensor) -> _Weights:
    return {f"{name}.weight": norm.weight[kept], f"{name}.bias": norm.bias[kept]}


def _block(block: SlimBlock, kept: Tensor, before: Tensor) -> _Weights:
    """Return a block's weights; `before` are the channels of the stream in front of its patch merging."""
    found = {name: value for name, value in block.state_dict().items() if _inside(name)}
    if isinstance(block.downsample, Downsample):
        found |= _merging(block.downsample, kept, before)
    read = _Read(block.norm1, kept)
    found |= read.by(block.attn.q, "attn.q") | read.by(block.attn.k, "attn.k")
    values = read.by(block.attn.v, "attn.v")
    found["attn.v.weight"] = values["attn.v.weight"]
    # A constant added to all values passes the softmax unchanged.
    proj = block.attn.proj
    found["attn.proj.weight"] = proj.weight[kept]
    found["attn.proj.bias"] = (proj.bias + proj.weight @ values["attn.v.bias"])[kept]
    if block.arch.norm2_on_stream:
        found |= _stream_norm(block.norm2, "norm2", kept)
        read = _Read(None, kept)
    else:
        read = _Read(block.norm2, kept)
    found |= read.by(block.mlp.fc1, "mlp.fc1")
    if block.mlp.gate is not None:
        found |= read.by(block.mlp.gate, "mlp.gate")
    return found | {"mlp.fc2.weight": block.mlp.fc2.weight[kept], "mlp.fc2.bias": block.mlp.fc2.bias[kept]}


def _inside(name: str) -> bool:
    """Whether a tensor of a block has no channel of the stream in it: of heads, angles, windows, neurons."""
    own = name in ("attn.position_bias", "mlp.choice.worth")
    return own or "_norm." in name or name.startswith("attn.rotary.")


def _merging(layer: Downsample, kept: Tensor, before: Tensor) -> _Weights:
    width = layer.norm.normalized_shape[0] // 4
    four = torch.cat([before + width * place for place in range(4)])
    read = _Read(layer.norm, four).by(layer.reduction, "downsample.reduction")
    return {name: value[kept] for name, value in read.items()}


@dataclass(frozen=True)
class _Read:
    """What reads a norm, or the stream itself (None), of which some channels stay."""

    norm: nn.LayerNorm | None
    kept: Tensor

    def by(self, layer: nn.Linear, name: str) -> _Weights:
        """Return the weight and bias of a layer that reads it."""
        weight, bias = layer.weight, layer.bias
        if bias is None:
            bias = weight.new_zeros(weight.shape[0])
        if self.norm is None or (isinstance(self.norm, NarrowNorm) and not self.norm.elementwise_affine):
            return {f"{name}.weight": weight[:, self.kept], f"{name}.bias": bias}
        scaled = weight.double() * self.norm.weight.double()
        mean = scaled.sum(dim=1, keepdim=True) / len(self.norm.weight)
        constant = weight.double() @ self.norm.bias.double()
        folded = scaled[:, self.kept] - mean
        return {f"{name}.weight": folded.float(), f"{name}.bias": (bias.double() + constant).float()}


def _head(model: SlimViT, kept: Tensor) -> _Weights:
    norm = model.norm if isinstance(model.norm, nn.LayerNorm) else None
    read = _Read(norm, kept)
    found = read.by(model.head, "head")
    if model.head_dist is not None:
        found |= read.by(model.head_dist, "head_dist")
    if model.sequence_pool is not None:
        # Its softmax over tokens ignores what is added to all of them.
        found["sequence_pool.weight"] = read.by(model.sequence_pool, "sequence_pool")["sequence_pool.weight"]
    return found
