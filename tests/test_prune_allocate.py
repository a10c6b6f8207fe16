"""The solver of budgets, against an exact solver and on curves made up for it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from toy_vits import ARCH, toy_arch

from edgevit.cost import model_cost
from edgevit.errors import PlanError
from edgevit.models.anatomy import BlockCounts, read_anatomy, slim_arch
from edgevit.models.arch import Arch
from edgevit.plan import Kind
from edgevit.prune.allocate import (
    Allocation,
    ArchCosts,
    Choices,
    FitsAttention,
    allocate,
    any_attention,
    choices_of,
)
from edgevit.prune.curves import Curve, Sensitivity


def deep_arch(depth: int) -> Arch:
    """Return DeiT-Tiny's dims with another depth."""
    block = dataclasses.replace(
        ARCH.blocks[0], heads=3, qk_dim=64, vo_dim=64, hidden=768, tokens_in=197, tokens_out=197,
        queries=197, embed=192,
    )  # fmt: skip
    return dataclasses.replace(ARCH, image=(3, 224, 224), patch=(16, 16), blocks=(block,) * depth)


def made_up(arch: Arch, seed: int) -> Sensitivity:
    """Return curves of powers with random strengths."""
    random, blocks = np.random.default_rng(seed), []
    for index, block in enumerate(arch.blocks):
        mosts: dict[Kind, int] = {"heads": block.heads, "qk_dim": block.qk_dim, "vo_dim": block.vo_dim}
        mosts |= {"hidden": block.hidden, "tokens": block.tokens_in}
        if index == len(arch.blocks) - 1:
            del mosts["tokens"]
        curves = []
        for kind, most in mosts.items():
            first, last = max(1, most // 2), max(1, most // 4)
            counts = (first,) if first == last else (first, last)
            strength, power = random.uniform(0.005, 0.05), random.uniform(1.2, 2.5)
            strength *= 10 if kind == "tokens" else 1
            kl = tuple(strength * (1 - count / most) ** power for count in counts)
            curves.append(Curve(kind, most, counts, kl))
        blocks.append(tuple(curves))
    return Sensitivity(tuple(blocks), 8)


def thinned(choices: Choices, tokens: int, widths: int) -> Choices:
    """Leave a few counts of each kind, so that an exact solver is quick."""

    def few(counts: tuple[int, ...], left: int) -> tuple[int, ...]:
        return counts[:: max(1, math.ceil(len(counts) / left))]

    blocks = tuple(
        dataclasses.replace(
            block,
            qk_dim=few(block.qk_dim, widths), vo_dim=few(block.vo_dim, widths), heads=block.heads[:1],
            hidden=few(block.hidden, widths), tokens=few(block.tokens, tokens),
        )
        for block in choices.blocks
    )  # fmt: skip
    return dataclasses.replace(choices, blocks=blocks)


class Column(NamedTuple):
    """One thing that a block may be, as the integer programme chooses it."""

    block: int
    first: int
    """Level of the tokens that enter; `second` of those that leave."""
    second: int
    kl: float
    cost: float


def columns_of(sensitivity: Sensitivity, choices: Choices, costs: ArchCosts) -> Iterator[Column]:
    """Yield all that each block may be, with its cost asked as it is."""

    def kl(index: int, kind: Kind, count: float) -> float:
        curve = sensitivity.curve(index, kind)
        return 0.0 if curve is None else curve.at(count)

    last = len(choices.blocks) - 1
    for index, block in enumerate(choices.blocks):
        widths = list(itertools.product(block.qk_dim, block.vo_dim, block.hidden))
        for (first, before), (second, after) in itertools.product(enumerate(block.tokens), repeat=2):
            gone = before - after
            most = 0 if index == last else (before - choices.anatomy.prefix + 1) // 2
            if not 0 <= gone <= most:
                continue
            merged = kl(index, "tokens", 197 - gone * (197 / before) ** 2) if gone else 0.0
            for qk, vo, hidden in widths:
                loss = (
                    merged + kl(index, "qk_dim", qk) + kl(index, "vo_dim", vo) + kl(index, "hidden", hidden)
                )
                out = 1 if index == last else after
                cost = costs.block(index, BlockCounts(before, out, block.heads[0], qk, vo, hidden))
                yield Column(index, first, second, loss, cost)


def exact_kl(sensitivity: Sensitivity, choices: Choices, costs: ArchCosts, limit: float) -> float:
    """Return the least KL within a limit, by integer programming."""
    columns = [c for c in columns_of(sensitivity, choices, costs) if c.block or not c.first]
    last, levels = len(choices.blocks) - 1, len(choices.blocks[0].tokens)
    flow = np.zeros((1 + last * levels, len(columns)))  # one block first; then as many leave as enter
    for place, column in enumerate(columns):
        if column.block == 0:
            flow[0, place] = 1.0
        else:
            flow[1 + (column.block - 1) * levels + column.first, place] = -1.0
        if column.block < last:
            flow[1 + column.block * levels + column.second, place] = 1.0
    wanted = np.zeros(len(flow))
    wanted[0] = 1.0
    found = milp(
        c=[column.kl for column in columns],
        constraints=[
            LinearConstraint(flow, wanted, wanted),
            LinearConstraint(np.array([[column.cost for column in columns]]), ub=limit - costs.rest()),
        ],
        integrality=np.ones(len(columns)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-3},
    )
    assert found.success
    return float(found.fun)


def solve(arch: Arch, share: float, seed: int = 0) -> tuple[Allocation, float]:
    """Allocate a share of the MACs; return what came out and the limit."""
    sensitivity = made_up(arch, seed)
    choices = choices_of(read_anatomy(arch), sensitivity, {}, dead_tokens=True)
    limit = share * model_cost(arch).total.macs
    return allocate(sensitivity, choices, ArchCosts(arch, "macs", dead_tokens=True), limit), limit


@pytest.mark.parametrize(("share", "seed"), [(0.5, 0), (0.7, 1), (0.85, 0)])
def test_allocation_is_near_the_exact_optimum(share: float, seed: int) -> None:
    arch = deep_arch(3)
    sensitivity = made_up(arch, seed)
    choices = thinned(choices_of(read_anatomy(arch), sensitivity, {}, dead_tokens=True), 3, 3)
    costs = ArchCosts(arch, "macs", dead_tokens=True)
    limit = share * model_cost(arch).total.macs

    found = allocate(sensitivity, choices, costs, limit)
    best = exact_kl(sensitivity, choices, costs, limit)

    assert found.cost <= limit
    assert 0.999 * best <= found.kl <= 1.05 * best


@pytest.mark.parametrize("share", [0.45, 0.6, 0.8])
def test_allocation_costs_what_its_plan_counts(share: float) -> None:
    arch = deep_arch(5)
    found, limit = solve(arch, share)

    assert found.cost == model_cost(slim_arch(arch, found.plan)).total.macs
    assert 0.99 * limit < found.cost <= limit
    assert found.kl == pytest.approx(sum(found.block_kls))


def test_allocation_of_more_cost_loses_less() -> None:
    arch = deep_arch(5)
    losses = [solve(arch, share)[0].kl for share in (0.5, 0.65, 0.8)]

    assert losses == sorted(losses, reverse=True)


def test_allocation_twice_is_the_same() -> None:
    assert solve(deep_arch(5), 0.6)[0] == solve(deep_arch(5), 0.6)[0]


def test_allocation_of_all_cuts_nothing() -> None:
    arch = deep_arch(2)
    found, _ = solve(arch, 1.0)

    assert found.kl == 0.0
    assert all(block.tokens == 197 and block.hidden == 768 for block in found.plan.blocks)


def test_allocation_below_the_smallest_names_it() -> None:
    with pytest.raises(PlanError, match=r"expected at least \d.*, the smallest that cuts reach, got"):
        solve(deep_arch(2), 0.05)


def test_params_are_saved_without_merging_tokens() -> None:
    arch = deep_arch(4)
    sensitivity = made_up(arch, 0)
    choices = choices_of(read_anatomy(arch), sensitivity, {}, dead_tokens=True)
    limit = 0.7 * model_cost(arch).total.params

    found = allocate(sensitivity, choices, ArchCosts(arch, "params", dead_tokens=True), limit)

    assert {block.tokens for block in found.plan.blocks} == {197}
    assert model_cost(slim_arch(arch, found.plan)).total.params <= limit


def test_choices_keep_to_the_multiples_of_a_target() -> None:
    arch = deep_arch(2)
    multiples: dict[Kind, int] = {"qk_dim": 16, "hidden": 64, "tokens": 8}
    choices = choices_of(read_anatomy(arch), made_up(arch, 0), multiples, dead_tokens=True)

    block = choices.blocks[0]
    assert block.qk_dim == (64, 48, 32, 16)
    assert all(count % 64 == 0 for count in block.hidden)
    assert block.tokens[:3] == (197, 192, 184)
    assert block.vo_dim == (64, 56, 48, 40, 32, 24, 16)


def test_attention_that_is_cut_keeps_to_what_a_target_computes_as_one_kernel() -> None:
    arch = deep_arch(4)
    limit = 0.35 * model_cost(arch).total.macs
    costs = ArchCosts(arch, "macs", dead_tokens=True)

    def pairs(fits: FitsAttention) -> set[tuple[int, int]]:
        choices = choices_of(read_anatomy(arch), made_up(arch, 0), {}, dead_tokens=True, fits=fits)
        found = allocate(made_up(arch, 0), choices, costs, limit)
        return {(block.qk_dim, block.vo_dim) for block in found.plan.blocks}

    assert any(qk != vo for qk, vo in pairs(any_attention))
    kept = pairs(lambda _index, qk, vo: qk == vo and qk in {16, 32})
    assert kept <= {(64, 64), (32, 32), (16, 16)}
    assert kept != {(64, 64)}


def test_choices_leave_whole_what_has_no_curve() -> None:
    arch = toy_arch("class")
    bare = Sensitivity(((),) * len(arch.blocks), 8)
    choices = choices_of(read_anatomy(arch), bare, {}, dead_tokens=True)

    assert all(len(counts) == 1 for block in choices.blocks for counts in _lists(block))


def _lists(block: object) -> Sequence[tuple[int, ...]]:
    return [getattr(block, kind) for kind in ("heads", "qk_dim", "vo_dim", "hidden", "tokens")]


def test_tokens_fall_and_keep_a_quarter() -> None:
    arch = deep_arch(6)
    found, _ = solve(arch, 0.6)
    tokens = [block.tokens for block in found.plan.blocks]

    assert tokens == sorted(tokens, reverse=True)
    assert tokens[-1] >= 197 // 4
