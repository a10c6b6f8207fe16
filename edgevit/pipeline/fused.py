"""Attention that targets compute as one kernel: what plans keep to, and what is said where one does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgevit.models.arch import Arch, BlockDims
from edgevit.pipeline.inputs import Inputs
from edgevit.prune.allocate import FitsAttention
from edgevit.target import FusedAttention

_LISTED = 4
"""Most dims that are all named."""


@dataclass(frozen=True)
class Fusing:
    """A target that computes attention as one kernel, in precisions that a build asks of it."""

    target: str
    precisions: tuple[str, ...]
    rule: FusedAttention

    def text(self) -> str:
        """Say which attention that is."""
        dims = [str(dim) for dim in sorted(self.rule.dims)]
        named = ", ".join(dims if len(dims) <= _LISTED else [*dims[:2], f"... {dims[-1]}"])
        equal = ", query/key and value alike" if self.rule.equal_dims else ""
        tokens = f", with at most {self.rule.max_tokens} tokens" if self.rule.max_tokens else ""
        computes = f"{self.target} computes attention in {' and '.join(self.precisions)} as one kernel"
        return f"{computes} for heads of {named} dims{equal}{tokens}"


def fusing_targets(inputs: Inputs) -> tuple[Fusing, ...]:
    """List the targets of a build that compute attention as one kernel, once for each of their rules."""
    found = []
    for wanted in inputs.wanted:
        for rule in wanted.target.fused_attention:
            if shared := tuple(one for one in wanted.precisions if one in rule.precisions):
                found.append(Fusing(wanted.target.name, shared, rule))
    return tuple(found)


def kept_fused(fusing: Sequence[Fusing], dense: Arch) -> FitsAttention:
    """Return which attention may be chosen so that every target computes it as one kernel.

    A rule for fewer tokens than there are binds nothing: no dims would make that attention one kernel.
    """

    def fits(index: int, qk_dim: int, vo_dim: int) -> bool:
        tokens = dense.blocks[index].attended
        rules = [one.rule for one in fusing if not 0 < one.rule.max_tokens < tokens]
        return all(rule.takes(qk_dim, vo_dim, tokens) for rule in rules)

    return fits


def fused_warnings(fusing: Sequence[Fusing], dense: Arch, slim: Arch) -> Iterator[str]:
    """Say where cuts make several kernels of an attention that was one.

    Args:
        fusing: what the targets compute as one kernel.
        dense: dims of the dense model.
        slim: those of the slim one.
    """
    for one in fusing:
        split: dict[tuple[int, int], list[int]] = {}
        for index, (before, after) in enumerate(zip(dense.blocks, slim.blocks, strict=True)):
            if _is_fused(one.rule, before) and not _is_fused(one.rule, after):
                split.setdefault((after.qk_dim, after.vo_dim), []).append(index)
        if split:
            dims = "; ".join(
                f"query/key {qk} and value {vo} in blocks {', '.join(map(str, blocks))}"
                for (qk, vo), blocks in split.items()
            )
            yield f"{one.text()}: the plan has {dims}, which take several"


def _is_fused(rule: FusedAttention, block: BlockDims) -> bool:
    return rule.takes(block.qk_dim, block.vo_dim, block.attended)
