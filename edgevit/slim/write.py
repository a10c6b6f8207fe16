"""Writing into a smaller model what stays: whole layers, rows and columns, and what no plan cuts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevit.models.arch import BlockDims
from edgevit.models.layers import SlimAttention, SlimBlock, SlimMlp, SlimViT


def write_linear(target: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Copy float64 results into a layer; shapes must be equal."""
    with torch.no_grad():
        target.weight.copy_(weight)
        if target.bias is not None and bias is not None:
            target.bias.copy_(bias)


def write_inputs(full: SlimMlp, cut: SlimMlp, kept: Tensor) -> None:
    """Write which channels of the stream the cut MLP reads: `kept` of those that `full` reads, rising."""
    if cut.inputs is not None:
        cut.inputs.copy_(kept if full.inputs is None else full.inputs[kept])


def write_worth(full: SlimMlp, cut: SlimMlp) -> None:
    """Write what the neurons are worth to the images that choose among them, if they do."""
    if cut.choice is not None and cut.choice.worth is not None:
        known = None if full.choice is None else full.choice.worth
        cut.choice.worth.copy_(full.fc2.weight.double().norm(dim=0) if known is None else known)


def readers(full: SlimMlp, cut: SlimMlp) -> list[tuple[nn.Linear, nn.Linear]]:
    """Return the layers that read the stream, of both MLPs; value and gate of one go together."""
    pairs = [(full.fc1, cut.fc1)]
    if full.gate is not None and cut.gate is not None:
        pairs.append((full.gate, cut.gate))
    return pairs


def write_neurons(full: SlimMlp, cut: SlimMlp, kept: Tensor) -> None:
    """Copy what the hidden neurons that stay read."""
    for source, target in readers(full, cut):
        write_linear(target, source.weight[kept], source.bias[kept])


def write_position_bias(full: SlimAttention, cut: SlimAttention, heads: Tensor) -> None:
    """Copy the relative position biases of the heads that stay, where there are any."""
    if full.position_bias is not None and cut.position_bias is not None:
        with torch.no_grad():
            cut.position_bias.copy_(full.position_bias[heads])


def write_angles(full: SlimAttention, cut: SlimAttention, dims: Tensor) -> None:
    """Copy the angles of the QK dims that stay of a head, int64 [K'], where positions turn them."""
    if full.rotary is not None and cut.rotary is not None:
        cut.rotary.keep(full.rotary, dims)


def copy_shared(dense: SlimViT, slim: SlimViT) -> None:
    """Copy everything that no plan cuts: embedding, norms, patch merging, head."""
    shared = {
        key: value
        for key, value in dense.state_dict().items()
        if not key.startswith("blocks.") or _no_plan_cuts(key.split(".", 2)[2])
    }
    missing = slim.load_state_dict(shared, strict=False)
    assert not missing.unexpected_keys


def cut_block(full: SlimBlock, dims: BlockDims) -> SlimBlock:
    """Return a block of `dims` with what no plan cuts of `full`; the rest is for a fit to write."""
    cut = SlimBlock(dims, full.arch).to(full.attn.proj.weight.device)
    shared = {name: value for name, value in full.state_dict().items() if _no_plan_cuts(name)}
    missing = cut.load_state_dict(shared, strict=False)
    assert not missing.unexpected_keys
    return cut.eval().requires_grad_(False)


def _no_plan_cuts(name: str) -> bool:
    return name.startswith(("norm", "downsample.")) or "_norm." in name
