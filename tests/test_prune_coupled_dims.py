"""Coupled pruning of the dims inside each head."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import pytest
import torch
from toy_dinos import toy_dino
from toy_vits import ARCH, noise_images, toy_model, toy_plan

from edgevit.errors import PlanError
from edgevit.methods import CoupledDims, Coupling, Score
from edgevit.plan import Counts, Plan
from edgevit.prune.coupled_dims import coupled_dims, score_dims, score_rows
from edgevit.slim.select import slim_by_selection

DENSE = toy_model()
ALL = toy_plan(DENSE, Counts())
HALF = CoupledDims(method="coupled-dims", qk_drop=0.5, vo_drop=0.25)


def decide(options: CoupledDims, plan: Plan = ALL) -> Plan:
    return coupled_dims(DENSE, plan, options)


def test_plan_has_counts_and_one_index_set_a_head() -> None:
    plan = decide(HALF)
    assert [(b.heads, b.qk_dim, b.vo_dim, b.hidden) for b in plan.blocks] == [(3, 8, 8, 40)] + 2 * [
        (3, 4, 6, 40)
    ]
    assert plan.blocks[0] == ALL.blocks[0]
    for block in plan.blocks[1:]:
        assert block.kept.qk is not None
        assert block.kept.vo is not None
        assert [len(set(dims)) for dims in block.kept.qk] == [4, 4, 4]
        assert [len(set(dims)) for dims in block.kept.vo] == [6, 6, 6]
        assert all(dims == tuple(sorted(dims)) for dims in (*block.kept.qk, *block.kept.vo))


def test_plan_of_one_kind_leaves_the_other_alone() -> None:
    block = decide(CoupledDims(method="coupled-dims", vo_dim=(8, 8, 3))).blocks[2]
    assert (block.qk_dim, block.vo_dim, block.kept.qk) == (8, 3, None)


def test_plan_keeps_what_others_decided() -> None:
    counts = Counts(hidden=[40, 9, 40], tokens=[17, 12, 12])
    plan = decide(HALF, toy_plan(DENSE, counts, dead_tokens=True))
    assert plan.dead_tokens
    assert [(b.hidden, b.tokens) for b in plan.blocks] == [(40, 17), (9, 12), (40, 12)]


@pytest.mark.parametrize("score", ["l1", "l2"])
def test_dead_dims_are_what_goes_and_the_output_stays(score: Score) -> None:
    dense = toy_model()
    dead = {0: (1, 4, 5), 1: (0, 2, 7), 2: (3, 5, 6)}
    for block in dense.blocks:
        rows = [8 * head + dim for head, dims in dead.items() for dim in dims]
        block.attn.k.weight[rows] = 0
        block.attn.q.weight[rows] = 0
        block.attn.v.weight[rows] = 0
        block.attn.proj.weight[:, rows] = 0
    options = CoupledDims(method="coupled-dims", qk_dim=5, vo_dim=5, score=score, keep_first=False)
    plan = coupled_dims(dense, ALL, options)
    expected = tuple(tuple(sorted(set(range(8)) - set(dims))) for dims in dead.values())
    assert plan.blocks[0].kept.qk == plan.blocks[0].kept.vo == expected
    images = noise_images(3)
    torch.testing.assert_close(slim_by_selection(dense, plan)(images), dense(images), rtol=1e-4, atol=1e-5)


def test_score_rows_by_hand() -> None:
    rows = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [1.0, 0.0], [9.0, -9.0]]], dtype=torch.float64)
    # The lower median of (0, 1, 3, 9) is 1, that of (-9, 0, 0, 4) is 0.
    assert score_rows(rows, "median").tolist() == [[1.0, 20**0.5, 0.0, 145**0.5]]
    assert score_rows(rows, "l1").tolist() == [[0.0, 7.0, 1.0, 18.0]]
    assert score_rows(rows, "l2").tolist() == [[0.0, 25.0, 1.0, 162.0]]


@pytest.mark.parametrize("score", get_args(Score))
def test_couplings_score_the_weights_they_name(score: Score) -> None:
    attention, heads = DENSE.blocks[1].attn, torch.tensor([0, 2])
    q, k, v = (
        layer.weight.double().unflatten(0, (3, 8))[heads] for layer in (attention.q, attention.k, attention.v)
    )
    o = torch.stack([attention.proj.weight.double()[:, 8 * head : 8 * head + 8].T for head in (0, 2)])
    one = [score_rows(side, score) for side in (q, k, v, o)]
    expected: dict[Coupling, tuple[torch.Tensor, torch.Tensor]] = {
        "pairs": (score_rows(torch.cat([q, k], 2), score), score_rows(torch.cat([v, o], 2), score)),
        "averaged": ((one[0] + one[1]) / 2, (one[2] + one[3]) / 2),
        "q-v": (one[0], one[2]),
        "k-o": (one[1], one[3]),
        "q-o": (one[0], one[3]),
    }
    assert set(expected) == set(get_args(Coupling))
    for coupling, pair in expected.items():
        torch.testing.assert_close(score_dims(attention, heads, score, coupling), pair)


def test_couplings_choose_differently() -> None:
    chosen = {decide(HALF.model_copy(update={"coupling": coupling})) for coupling in get_args(Coupling)}
    assert len(chosen) == len(get_args(Coupling))


def test_one_set_is_the_same_for_qk_and_vo() -> None:
    options = CoupledDims(method="coupled-dims", qk_drop=0.5, vo_drop=0.5, sets="one")
    kept = decide(options).blocks[1].kept
    assert kept.qk == kept.vo
    two = decide(options.model_copy(update={"sets": "two"})).blocks[1].kept
    assert kept.qk != two.qk


def test_one_set_refuses_unequal_counts() -> None:
    options = CoupledDims(method="coupled-dims", qk_drop=0.5, vo_drop=0.25, sets="one")
    with pytest.raises(
        PlanError, match=r'^sets: "one" keeps the same dims in QK and VO; blocks\.1 would keep 4 and 6'
    ):
        decide(options)


def test_heads_that_a_plan_cuts_without_naming_are_named() -> None:
    plan = decide(HALF, toy_plan(DENSE, Counts(heads=2)))
    for block in plan.blocks[1:]:
        assert block.kept.heads is not None
        assert block.kept.qk is not None
        assert (len(block.kept.heads), len(block.kept.qk)) == (2, 2)
    bare = toy_plan(DENSE, Counts(heads=2))
    heads = [slim_by_selection(DENSE, p).blocks[0].attn.q.weight for p in (plan, bare)]
    assert torch.equal(*heads)


def test_named_heads_are_the_ones_that_are_scored() -> None:
    first = decide(HALF).blocks[1]
    block = dataclasses.replace(
        ALL.blocks[1], heads=2, kept=dataclasses.replace(ALL.blocks[1].kept, heads=(0, 2))
    )
    plan = decide(HALF, dataclasses.replace(ALL, blocks=(block,) * 3))
    assert first.kept.qk is not None
    assert plan.blocks[1].kept.qk == (first.kept.qk[0], first.kept.qk[2])


@pytest.mark.parametrize("sets", ["two", "one"])
def test_rotary_dims_go_in_pairs_the_same_in_all_heads(sets: Literal["two", "one"]) -> None:
    dense = toy_dino()
    dead = [row for row in range(24) if row % 8 in (1, 3, 5, 7)]  # dims j and j + 4 are turned together
    for block in dense.blocks:
        for layer in (block.attn.q, block.attn.k, block.attn.v):
            layer.weight[dead] = 0
        block.attn.proj.weight[:, dead] = 0
    options = CoupledDims(
        method="coupled-dims", qk_drop=0.5, vo_drop=0.5, keep_first=False, score="l2", sets=sets
    )
    plan = coupled_dims(dense, toy_plan(dense, Counts()), options)
    assert {block.kept.qk for block in plan.blocks} == {((0, 2, 4, 6),) * 3}
    image = noise_images(3, dense.arch)
    torch.testing.assert_close(slim_by_selection(dense, plan)(image), dense(image), rtol=1e-5, atol=1e-5)


def test_qk_norm_refuses_qk_and_takes_vo() -> None:
    normed = toy_model(dataclasses.replace(ARCH, qk_norm=True))
    with pytest.raises(PlanError, match=r"^qk_drop: this model normalises"):
        coupled_dims(normed, ALL, HALF)
    plan = coupled_dims(normed, ALL, CoupledDims(method="coupled-dims", vo_drop=0.5))
    assert [block.vo_dim for block in plan.blocks] == [8, 4, 4]
