"""MACs, params and bytes of a model, from its dims alone.

MACs are multiply-accumulates of convolutions and matrix products (activation by activation ones too),
counted as the ViT literature does: DeiT-T/S/B have 1.254 / 4.599 / 17.564 G. What a paper calls FLOPs of a
ViT is this number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from edgevit.models.arch import Arch, BlockDims
from edgevit.plan import Choice


@dataclass(frozen=True)
class Cost:
    """What one image costs: MACs, and the params read for it."""

    macs: int
    params: int

    @property
    def bytes(self) -> int:
        """Return the size of the params in float32."""
        return 4 * self.params

    def __add__(self, other: Cost) -> Cost:
        """Add two costs."""
        return Cost(self.macs + other.macs, self.params + other.params)


@dataclass(frozen=True)
class ModelCost:
    """Cost of stem (patch embedding, positions), of each block, and of the head (last norm, classifier)."""

    stem: Cost
    blocks: tuple[Cost, ...]
    head: Cost

    @property
    def total(self) -> Cost:
        """Return the cost of the whole model."""
        return sum(self.blocks, self.stem + self.head)


def model_cost(arch: Arch) -> ModelCost:
    """Count a model from its dims."""
    stem = _embedding_cost(arch) + Cost(0, _positions(arch) + (2 * arch.embed if arch.pre_norm else 0))
    stem += Cost(_reduction_macs(arch.patches, arch.merged, arch.choice, (arch.embed, arch.embed)), 0)
    heads = 2 if arch.reads == "class+distillation" else 1
    head = Cost(
        macs=heads * arch.features * arch.classes,
        params=heads * (arch.features + 1) * arch.classes + _last_norm_params(arch),
    )
    if arch.reads == "sequence":
        head += Cost(2 * arch.blocks[-1].tokens_out * arch.features, arch.features)
    return ModelCost(stem, tuple(block_cost(arch, block) for block in arch.blocks), head)


def _last_norm_params(arch: Arch) -> int:
    return 0 if arch.norm == "none" or arch.blocks[-1].full is not None else 2 * arch.features


def _embedding_cost(arch: Arch) -> Cost:
    """Count what makes tokens of an image: one convolution, or those of a tokenizer."""
    if arch.tokenizer is None:
        area = arch.image[0] * arch.patch[0] * arch.patch[1]
        return Cost(arch.patches * area * arch.embed, (area + 1) * arch.embed)
    cost, form = Cost(0, 0), arch.tokenizer
    widths = pairwise((arch.image[0], *form.inner, arch.embed))
    for (before, after), size in zip(widths, form.sizes(arch.image[1:])[:-1], strict=True):
        params = before * after * form.kernel**2
        cost += Cost(math.prod(size) * params, params)
    return cost


def _positions(arch: Arch) -> int:
    """Count the params of prefix tokens and positions."""
    return (arch.tokens if arch.position else arch.prefix) * arch.embed


def block_cost(arch: Arch, block: BlockDims) -> Cost:
    """Count one block: patch merging, attention for `queries`, fewer tokens, MLP over `tokens_out`."""
    qk, vo = block.heads * block.qk_dim, block.heads * block.vo_dim
    projections = (block.queries + block.tokens_in) * block.embed * (qk + vo)
    products = block.queries * block.attended * (qk + vo)
    read = (2 if arch.gated else 1) * block.mlp_width * block.hidden
    mlp = block.tokens_out * (read + block.hidden_used * block.embed)
    patches = block.queries - arch.prefix
    reduction = _reduction_macs(patches, block.merged, block.choice, (qk, block.embed))
    macs = projections + products + reduction + mlp
    return Cost(macs, _block_params(arch, block)) + _downsample_cost(block)


def _downsample_cost(block: BlockDims) -> Cost:
    """Count the patch merging in front of a block: a norm of four tokens side by side, and a product."""
    four = 4 * (block.downsampled_from or 0)
    beside = 2 * four if block.downsampled_full is None else block.embed  # a norm, or the bias it is in
    return Cost(block.tokens_in * four * block.embed, beside + four * block.embed)


def _reduction_macs(patches: int, removed: int, choice: Choice | None, widths: tuple[int, int]) -> int:
    """Count the products by which `removed` of the patches are found and pooled (tokens and their sizes).

    `widths` are those of what patches are compared by and of the tokens.
    """
    compared, embed = widths
    if not removed:
        return 0
    if choice is None:
        a, c = (patches + 1) // 2, patches // 2
        return a * c * compared + c * removed * (embed + 1)
    scores = 0 if choice.score == "avg" else patches**2 * compared  # a mean needs no product of all pairs
    pairs = (patches - removed) * patches if choice.strategy == "clusters" else 0
    return scores + pairs * (compared + embed + 1)


def _block_params(arch: Arch, block: BlockDims) -> int:
    qk, vo = block.heads * block.qk_dim, block.heads * block.vo_dim
    biases = qk * (arch.qkv_bias + (arch.qkv_bias and arch.qk_norm)) if block.full is None else 2 * qk
    own = 2 if block.full is None else arch.norm2_on_stream  # of two norms, those that have weights
    norms = 2 * own * block.embed + (4 * block.qk_dim if arch.qk_norm else 0)
    bias_of_pairs = 0 if block.window is None else block.heads * block.window.area**2
    attention = 2 * block.embed * (qk + vo) + biases + bias_of_pairs + block.embed
    mlp = (block.mlp_width + 1) * block.hidden * (2 if arch.gated else 1) + (block.hidden + 1) * block.embed
    return norms + attention + mlp
