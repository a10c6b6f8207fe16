"""What can be cut in a model, and the dims that a plan leaves of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from edgevit.models.arch import Arch, BlockDims
from edgevit.models.narrow import narrow_arch
from edgevit.plan import Anatomy, BlockAnatomy, Kind, Plan


def read_anatomy(arch: Arch) -> Anatomy:
    """Read from a model's dims what can be cut, and what cannot with the reason."""
    refused: dict[Kind, str] = {}
    if arch.qk_norm:
        refused["qk_dim"] = (
            "this model normalises queries and keys over the whole head (qk-norm): after a cut the norm "
            "would see other statistics, so QK dims stay. Cut vo_dim, hidden, heads or tokens."
        )
    if arch.rotary:
        refused["tokens"] = (
            "this model turns queries and keys by the token's place (rotary positions), and a merged token "
            "has no place, so tokens stay. Cut heads, qk_dim, vo_dim or hidden."
        )
    if any(block.window is not None for block in arch.blocks):
        refused["tokens"] = (
            "this model attends inside windows of a grid, and merges its patches 2 x 2: without some of the "
            "tokens there is no grid, so all stay. Cut heads, qk_dim, vo_dim or hidden."
        )
    # Tokens that an earlier slimming dropped as dead can come back: they were not merged into others.
    tokens = [b.tokens_out if b.queries == b.tokens_in else b.tokens_in for b in arch.blocks]
    blocks = tuple(
        BlockAnatomy(b.heads, b.qk_dim, b.vo_dim, b.hidden, count, b.choice, b.per_image, b.mlp_inputs)
        for b, count in zip(arch.blocks, tokens, strict=True)
    )
    together: dict[Kind, int] = {"qk_dim": 2} if arch.rotary else {}
    return Anatomy(blocks, arch.embed, arch.prefix, arch.read_tokens, refused, together)


def slim_arch(arch: Arch, plan: Plan) -> Arch:
    """Return the dims of the model that `plan` leaves of `arch`."""
    blocks: list[BlockDims] = []
    tokens = arch.blocks[0].tokens_in if plan.input is None else plan.input.tokens
    for index, (dense, block) in enumerate(zip(arch.blocks, plan.blocks, strict=True)):
        if dense.downsampled_from is not None:
            tokens = dense.tokens_in
        last = index == len(plan.blocks) - 1
        dead = last and plan.dead_tokens and arch.read_tokens is not None
        queries = arch.read_tokens if dead and arch.read_tokens is not None else tokens
        left = queries if dead else block.tokens
        dims = dataclasses.replace(
            dense,
            heads=block.heads,
            qk_dim=block.qk_dim,
            vo_dim=block.vo_dim,
            hidden=block.hidden,
            tokens_in=tokens,
            tokens_out=left,
            queries=queries,
            choice=block.choice,
            per_image=block.per_image,
            mlp_inputs=block.mlp_inputs,
        )
        blocks.append(dims)
        tokens = left
    choice = arch.choice if plan.input is None else plan.input.choice
    slim = dataclasses.replace(arch, blocks=tuple(blocks), choice=choice)
    return slim if plan.channels is None else narrow_arch(slim, [len(kept) for kept in plan.channels])


@dataclass(frozen=True)
class BlockCounts:
    """Everything that a block may keep less of."""

    tokens_in: int
    tokens_out: int
    """Fewer than enter where pairs are merged behind the attention. In the last block of a plan that drops
    dead tokens: the tokens that the head reads, the only ones for which it has queries and an MLP."""
    heads: int
    qk_dim: int
    vo_dim: int
    hidden: int


def block_with(arch: Arch, index: int, counts: BlockCounts, *, dead_tokens: bool) -> BlockDims:
    """Return the dims of a block of a dense model that keeps `counts`.

    Args:
        arch: of the dense model.
        index: which block.
        counts: what it keeps.
        dead_tokens: whether the plan drops tokens that nothing reads.
    """
    dead = dead_tokens and index == len(arch.blocks) - 1
    return dataclasses.replace(
        arch.blocks[index],
        heads=counts.heads,
        qk_dim=counts.qk_dim,
        vo_dim=counts.vo_dim,
        hidden=counts.hidden,
        tokens_in=counts.tokens_in,
        tokens_out=counts.tokens_out,
        queries=counts.tokens_out if dead else counts.tokens_in,
    )


def with_counts(dims: BlockDims, counts: Mapping[Kind, int]) -> BlockDims:
    """Return a block's dims with some counts in place of its own; those of tokens are the ones that leave."""
    return dataclasses.replace(
        dims,
        heads=counts.get("heads", dims.heads),
        qk_dim=counts.get("qk_dim", dims.qk_dim),
        vo_dim=counts.get("vo_dim", dims.vo_dim),
        hidden=counts.get("hidden", dims.hidden),
        tokens_out=counts.get("tokens", dims.tokens_out),
    )
