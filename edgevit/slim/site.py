"""One block being slimmed: its full and its cut form, the streams that reach it, and its token weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgevit.models.layers import SlimBlock, SlimViT
from edgevit.slim.stream import Streams
from edgevit.slim.token_weights import BlockWeights


@dataclass(frozen=True)
class ClosedForm:
    """What the closed form uses; the defaults are what a recipe gets, the rest is for comparison.

    `aim` is the share of the drift from the dense stream that a refit tries to repair; None: no refit at all.
    `pull` keeps refitted weights near their start, relative to the mean variance of what they multiply.
    """

    greedy: bool = True
    weighted: bool = True
    aim: float | None = 0.5
    pull: float = 0.3


@dataclass(frozen=True)
class Site:
    """A block on its way from `full` to `cut`; `streams` stand in front of it."""

    full: SlimBlock
    cut: SlimBlock
    streams: Streams
    weights: BlockWeights
    options: ClosedForm

    def target(self, own: Tensor, part: slice) -> Tensor:
        """Return what a branch should add to the slim stream, [b, Q, D]; the dense one has moved already.

        Args:
            own: what the full branch would add, given the slim stream, [b, Q, D].
            part: which images these are.
        """
        if self.options.aim is None:
            return own
        tokens = own.shape[1]
        drift = self.streams.pooled_dense(part)[:, :tokens] - self.streams.slim[part, :tokens]
        return self.options.aim * drift + (1 - self.options.aim) * own

    def token_weights(self, values: Tensor, part: slice, tokens: int) -> Tensor:
        """Return the weights of the leading slim tokens, [b, tokens], from the original ones, [n, N]."""
        return self.streams.pool_weights(values, part)[:, :tokens]

    def head_weights(self, values: Tensor, part: slice, heads: Tensor, tokens: int) -> Tensor:
        """Return the weights of the leading slim tokens for `heads`, [H', b * tokens], from [n, H, N]."""
        pooled = self.streams.pool_head_weights(values, part)[:, heads, :tokens]
        return pooled.transpose(0, 1).flatten(1)


def write_linear(target: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Copy float64 results into a layer; shapes must be equal."""
    with torch.no_grad():
        target.weight.copy_(weight)
        if target.bias is not None and bias is not None:
            target.bias.copy_(bias)


def copy_shared(dense: SlimViT, slim: SlimViT) -> None:
    """Copy everything that no plan cuts: embedding, norms, head."""
    shared = {
        key: value
        for key, value in dense.state_dict().items()
        if not key.startswith("blocks.") or key.split(".")[2].startswith("norm") or "_norm." in key
    }
    missing = slim.load_state_dict(shared, strict=False)
    assert not missing.unexpected_keys
