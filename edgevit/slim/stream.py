"""Two residual streams through the network, block by block: the dense model's and the slim model's.

What a block is slimmed by are statistics of the stream that the already slimmed blocks give; what it aims at
is the dense stream, so that it repairs what earlier blocks lost. Of all images only the streams, the token
weights and the attention outputs of the block at hand (fit_attention.py) are held, never other activations;
the dense stream of all blocks is, where the pass that weighs tokens could keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgevit.images import Images
from edgevit.models.downsample import Downsample
from edgevit.models.layers import SlimViT
from edgevit.models.reduction import Reduction, TokenMatch, reduce_tokens
from edgevit.progress import Progress
from edgevit.slim.token_weights import BlockWeights, Weighed, token_weights

BATCH = 32  # images that are worked on at once


@dataclass
class Streams:
    """Residual streams of all calibration images, float32, changed in place from block to block."""

    dense: Tensor  # [n, N, D]
    slim: Tensor  # [n, N', D]
    sizes: Tensor | None  # original tokens that each slim token stands for, [n, N', 1]; None where all are 1
    home: Tensor  # the slim token that holds each original token, int64 [n, N]; N' where it was dropped
    weights: list[BlockWeights]  # per block, of the original tokens
    kept: Mapping[int, Tensor] | None  # the dense stream behind attentions and MLPs, where it was kept
    drifted: bool = False  # whether the slim stream differs from the dense one

    def slices(self) -> Iterator[slice]:
        """Yield the batches of images."""
        for start in range(0, len(self.dense), BATCH):
            yield slice(start, start + BATCH)

    def sizes_of(self, part: slice) -> Tensor | None:
        """Return the sizes of a batch's tokens, [b, N', 1], or None where all are 1."""
        return None if self.sizes is None else self.sizes[part]

    def add(self, part: slice, branch: Tensor) -> None:
        """Add what a branch gives, [b, N', D], to the slim stream of a batch."""
        self.slim[part] += branch

    def move_dense(self, part: slice, place: int, branch: Callable[[Tensor], Tensor]) -> None:
        """Move the dense stream of a batch behind a branch.

        Args:
            part: which images.
            place: 2 * block behind its attention, 2 * block + 1 behind its MLP.
            branch: what the dense model adds there, from the stream [b, N, D]; run where nothing was kept.
        """
        if self.kept is None:
            self.dense[part] += branch(self.dense[part])
        else:
            self.dense[part] = self.kept[place][part]

    def move_both(self, branch: Callable[[Tensor], Tensor]) -> None:
        """Move both streams behind a branch while they are equal: nothing was cut so far."""
        for part in self.slices():
            self.dense[part] += branch(self.dense[part])
        self.slim = self.dense.clone()

    def downsample(self, layer: Downsample) -> None:
        """Merge patches 2 x 2 in both streams."""
        self.dense = torch.cat([layer(self.dense[part]) for part in self.slices()])
        self.slim = torch.cat([layer(self.slim[part]) for part in self.slices()])
        self.home = _everyone_at_home(self.dense)

    def change(self, layer: Callable[[Tensor], Tensor]) -> None:
        """Put a layer over each token of both streams."""
        for part in self.slices():
            self.dense[part] = layer(self.dense[part])
            self.slim[part] = layer(self.slim[part])

    def pooled_dense(self, part: slice) -> Tensor:
        """Return the dense stream as means over the tokens that each slim token stands for, [b, N', D].

        Dropped tokens are in none of them.
        """
        dense = self._gather(self.dense[part], part)
        return dense if self.sizes is None else dense / self.sizes[part]

    def pool_weights(self, values: Tensor, part: slice) -> Tensor:
        """Return sums over the original tokens that each slim token stands for: [b, N] -> [b, N']."""
        return self._gather(values[part].unsqueeze(-1), part).squeeze(-1)

    def pool_head_weights(self, values: Tensor, part: slice) -> Tensor:
        """Return sums as `pool_weights`, for each head: [b, H, N] -> [b, H, N']."""
        return self._gather(values[part].transpose(1, 2), part).transpose(1, 2)

    def _gather(self, values: Tensor, part: slice) -> Tensor:
        left = self.slim.shape[1]
        if left == values.shape[1]:
            return values
        pooled = values.new_zeros(values.shape[0], left + 1, values.shape[2])
        pooled.scatter_add_(1, self.home[part].unsqueeze(-1).expand_as(values), values)
        return pooled[:, :left]  # the last took what was dropped

    def enter(self, slim: SlimViT, batches: Iterator[Tensor]) -> None:
        """Merge or drop what the slim model does before its first block, from the images, [b, C, H, W]."""
        if slim.arch.merged:
            self.reduce([slim.input_reduction(slim.patches(images)) for images in batches])

    def reduce(self, reductions: list[Reduction]) -> None:
        """Merge or drop tokens of the slim stream as `reductions` (one per batch) say."""
        tokens: list[Tensor] = []
        sizes: list[Tensor] = []
        homes: list[Tensor] = []
        for part, how in zip(self.slices(), reductions, strict=True):
            left, size = reduce_tokens(self.slim[part], self.sizes_of(part), how)
            tokens.append(left)
            sizes += [] if size is None else [size]
            homes.append(_new_home(self.home[part], how, self.slim.shape[1]))
        self.slim, self.home = torch.cat(tokens), torch.cat(homes)
        self.sizes = torch.cat(sizes) if sizes else None
        self.drifted = True


def tensor_batches(images: Images, device: torch.device) -> Iterator[Tensor]:
    """Yield all images in order, float32 [b, C, H, W] on `device`, as many at once as streams are worked on.

    Raises:
        ImagesError: an image cannot be read; it is named.
    """
    for batch in images.batches(BATCH):
        yield torch.from_numpy(batch).to(device)


def equal_streams(stream: Tensor, weights: list[BlockWeights], kept: Mapping[int, Tensor] | None) -> Streams:
    """Return both streams where they are still equal, [n, N, D], and no token was merged or dropped."""
    return Streams(stream, stream.clone(), None, _everyone_at_home(stream), weights, kept)


def open_streams(
    model: SlimViT, batches: Callable[[], Iterator[Tensor]], progress: Progress, *, weighted: bool
) -> Streams:
    """Embed all images and, if wanted, weigh their tokens.

    Args:
        model: the dense model.
        batches: gives an iterator over images, [b, C, H, W]; called anew for each pass.
        progress: called after each batch.
        weighted: whether `token_weights` are computed; without, each token weighs 1.
    """
    with torch.no_grad():
        stream = torch.cat([model.embed(images) for images in batches()])
    if weighted:
        found = token_weights(model, len(stream), batches(), progress)
    else:
        shapes = [(block.attn.heads, stream, block.dims.tokens_in) for block in model.blocks]
        found = Weighed([_equal_weights(*shape) for shape in shapes], None)
    kept = None if found.streams is None else dict(enumerate(found.streams))
    return equal_streams(stream, found.weights, kept)


def _everyone_at_home(stream: Tensor) -> Tensor:
    """Return where each original token of [n, N, D] lives before any merge: [n, N]."""
    images, tokens = stream.shape[:2]
    return torch.arange(tokens, device=stream.device).repeat(images, 1)


def _equal_weights(heads: int, stream: Tensor, tokens: int) -> BlockWeights:
    one, images = stream.new_ones(()), len(stream)
    whole, per_head = one.expand(images, tokens), one.expand(images, heads, tokens)
    return BlockWeights(attention=whole, mlp=whole, queries=per_head, keys=per_head)


def _new_home(home: Tensor, how: Reduction, tokens: int) -> Tensor:
    """Return where each original token lives after a reduction of `tokens` slim ones: [b, N]."""
    b, prefix, device = home.shape[0], how.prefix, home.device
    moved = home.new_zeros(b, tokens + 1)  # the last: where dropped tokens live so far
    moved[:, :prefix] = torch.arange(prefix, device=device)
    if isinstance(how, TokenMatch):
        moved[:, prefix:tokens], left = _matched_home(how)
    elif how.onehot is not None:
        moved[:, prefix:tokens], left = how.onehot.argmax(dim=1) + prefix, prefix + how.onehot.shape[1]
    else:
        left = prefix + how.kept.shape[1]
        places = torch.arange(prefix, left, device=device).expand(b, -1)
        moved[:, prefix:] = left
        moved[:, prefix:].scatter_(1, how.kept, places)
    moved[:, -1] = left
    return moved.gather(1, home)


def _matched_home(match: TokenMatch) -> tuple[Tensor, int]:
    """Return where each patch of a batch lives after a merge, [b, n], and how many tokens are left."""
    (b, count), others, prefix = match.order.shape, match.onehot.shape[1], match.prefix
    kept, device = count - match.merged, match.order.device
    moved = match.order.new_zeros(b, count + others)
    a = torch.zeros_like(match.order)
    target = match.onehot.argmax(dim=1) + prefix + kept  # [b, merged]
    places = torch.cat([target, (torch.arange(kept, device=device) + prefix).expand(b, -1)], dim=1)
    a.scatter_(1, match.order, places)
    moved[:, 0::2] = a
    moved[:, 1::2] = torch.arange(others, device=device) + prefix + kept
    return moved, prefix + kept + others
