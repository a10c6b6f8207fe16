"""Coupled pruning of the dims inside each head (SCWP): a pure function of the weights.

Dim i of a head is row i of Q and K, and dim i of its values is row i of V and column i of O. They go
together, so they are scored together.
Shapes: H kept heads, K query/key dims, V value dims, C embed width.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from edgevit.errors import PlanError
from edgevit.methods import CoupledDims, Coupling, Score
from edgevit.models.anatomy import read_anatomy
from edgevit.models.group_scores import head_norms
from edgevit.models.layers import SlimAttention, SlimViT
from edgevit.models.rotary import best_pairs
from edgevit.plan import BlockPlan, Indices, Plan
from edgevit.prune.rank import highest
from edgevit.prune.schedule import Schedule, keep_counts


def coupled_dims(model: SlimViT, plan: Plan, options: CoupledDims) -> Plan:
    """Choose the QK and VO dims of every head that stay; each head of a block keeps as many.

    Args:
        model: the dense model.
        plan: what remains so far. Where it cuts heads without naming them, those of the largest norms are
            taken, as plain selection would, and named.
        options: how much goes, and how dims are scored.

    Returns:
        The plan with counts and indices of what was cut; a block that keeps all gets no indices.

    Raises:
        PlanError: a schedule that this model cannot take.

    Reference: Moon et al. 2026, ToaSt, arXiv:2602.15720, structured coupled weight pruning; two index sets
        as in the authors' code, one as in the paper's algorithm.
    Differs: where positions turn pairs of dims (rotary), pairs go, the same in all heads, by their summed
        scores; the paper has no such models. `SlimViT` has LayerScale folded into the output projection, so
        the columns of O are scored with it; the paper's models have none. It has no key bias, and the value
        bias is part of the projection's: the published score reads weights only and the published masks leave
        biases alone, so neither changes anything.
    """
    keep = options.keep_first, options.align
    qk = Schedule("qk_dim", "qk_drop", options.qk_dim, options.qk_drop, *keep)
    vo = Schedule("vo_dim", "vo_drop", options.vo_dim, options.vo_drop, *keep)
    counts = list(zip(*keep_counts(read_anatomy(model.arch), (qk, vo)), strict=True))
    if options.sets == "one":
        _check_equal(counts)
    blocks = [
        _decide(block.attn, of_block, kept, options)
        for block, of_block, kept in zip(model.blocks, plan.blocks, counts, strict=True)
    ]
    return dataclasses.replace(plan, blocks=tuple(blocks))


def _check_equal(counts: list[tuple[int, int]]) -> None:
    for index, (qk, vo) in enumerate(counts):
        if qk != vo:
            raise PlanError(
                f'sets: "one" keeps the same dims in QK and VO; blocks.{index} would keep {qk} and {vo}. '
                'Give both the same, or say "two".'
            )


def _decide(
    attention: SlimAttention, block: BlockPlan, counts: tuple[int, int], options: CoupledDims
) -> BlockPlan:
    """Return what remains of one block."""
    cut_qk, cut_vo = counts[0] < attention.qk_dim, counts[1] < attention.vo_dim
    if not cut_qk and not cut_vo:
        return block
    chosen = block.kept.heads
    if chosen is None and block.heads < attention.heads:
        chosen = tuple(highest(head_norms(attention), block.heads).tolist())
    heads = torch.arange(attention.heads) if chosen is None else torch.tensor(chosen)
    qk, vo = score_dims(attention, heads, options.score, options.coupling)
    turned = attention.rotary is not None
    if options.sets == "one":
        qk = vo = (qk + vo) / 2
    kept = dataclasses.replace(
        block.kept,
        heads=chosen,
        qk=_sets(qk, counts[0], in_pairs=turned) if cut_qk else block.kept.qk,
        vo=_sets(vo, counts[1], in_pairs=turned and options.sets == "one") if cut_vo else block.kept.vo,
    )
    qk_dim = counts[0] if cut_qk else block.qk_dim
    vo_dim = counts[1] if cut_vo else block.vo_dim
    return dataclasses.replace(block, qk_dim=qk_dim, vo_dim=vo_dim, kept=kept)


def _sets(scores: Tensor, keep: int, *, in_pairs: bool) -> tuple[Indices, ...]:
    """Return the dims that stay, one set a head; pairs are the same in all."""
    if in_pairs:
        return (tuple(best_pairs(scores, keep).tolist()),) * len(scores)
    return tuple(tuple(row) for row in highest(scores, keep).tolist())


def score_dims(
    attention: SlimAttention, heads: Tensor, score: Score, coupling: Coupling
) -> tuple[Tensor, Tensor]:
    """Score the dims of some heads.

    Args:
        attention: the dense attention.
        heads: which heads, int64 [H].
        score: how rows are scored.
        coupling: which rows: "pairs" is the published one, the others are those of its ablation.

    Returns:
        Scores of the QK dims, float64 [H, K], and of the VO dims, float64 [H, V].
    """
    q, k, v = (
        layer.weight.detach().double().unflatten(0, (attention.heads, -1))[heads]
        for layer in (attention.q, attention.k, attention.v)
    )  # [H, K, C], [H, K, C], [H, V, C]
    o = attention.proj.weight.detach().double().T.unflatten(0, (attention.heads, -1))[heads]  # [H, V, C]
    match coupling:
        case "pairs":
            return score_rows(torch.cat([q, k], dim=2), score), score_rows(torch.cat([v, o], dim=2), score)
        case "averaged":
            qk = (score_rows(q, score) + score_rows(k, score)) / 2
            return qk, (score_rows(v, score) + score_rows(o, score)) / 2
        case "q-v":
            return score_rows(q, score), score_rows(v, score)
        case "k-o":
            return score_rows(k, score), score_rows(o, score)
        case "q-o":
            return score_rows(q, score), score_rows(o, score)


def score_rows(rows: Tensor, score: Score) -> Tensor:
    """Score each row of [H, K, E] within its head: [H, K]. A median of an even number is the lower one."""
    match score:
        case "median":
            median: Tensor = rows.median(dim=1, keepdim=True).values
            return (rows - median).square().sum(dim=2).sqrt()
        case "l1":
            return rows.abs().sum(dim=2)
        case "l2":
            return rows.square().sum(dim=2)
