"""One block being slimmed: its full and its cut form, the streams that reach it, and its token weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from edgevit.models.layers import SlimBlock
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

    index: int
    full: SlimBlock
    cut: SlimBlock
    streams: Streams
    weights: BlockWeights
    options: ClosedForm

    def drift(self, part: slice) -> Tensor:
        """Return the way from the slim stream to the dense one, which has moved already, [b, N', D]."""
        return self.streams.pooled_dense(part) - self.streams.slim[part]

    def target(self, own: Tensor, part: slice) -> Tensor:
        """Return what a branch should add to the slim stream, [b, N', D]; the dense one has moved already.

        Args:
            own: what the full branch would add, given the slim stream, [b, N', D].
            part: which images these are.
        """
        if self.options.aim is None:
            return own
        return self.options.aim * self.drift(part) + (1 - self.options.aim) * own

    def token_weights(self, values: Tensor, part: slice) -> Tensor:
        """Return the weights of all slim tokens of a batch, [b * N'], from the original ones, [n, N]."""
        return self.streams.pool_weights(values, part).flatten()

    def head_weights(self, values: Tensor, part: slice, heads: Tensor) -> Tensor:
        """Return the weights of all slim tokens of a batch for `heads`, [H', b * N'], from [n, H, N]."""
        pooled = self.streams.pool_head_weights(values, part)[:, heads]
        return pooled.transpose(0, 1).flatten(1)
