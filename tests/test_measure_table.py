from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from toy_tables import ARCH, ON, TABLE, UNIT_MS

from edgevit.errors import MeasurementError
from edgevit.measure.table import (
    LatencyCost,
    LatencyTable,
    TimedModel,
    TimedPart,
    block_terms,
    fit_terms,
    fit_whole,
    make_table,
    part_terms,
)
from edgevit.models.anatomy import BlockCounts, read_anatomy, slim_arch
from edgevit.models.arch import Arch
from edgevit.plan import Counts, plan_from_counts


def _slim(counts: Counts, *, dead: bool = False) -> Arch:
    return slim_arch(ARCH, plan_from_counts(read_anatomy(ARCH), counts, dead_tokens=dead))


def test_fit_of_exact_sums_finds_the_units() -> None:
    rng = np.random.default_rng(0)
    counted = [{"a": 1.0, "b": float(b), "c": float(c)} for b, c in rng.uniform(0.1, 3, (9, 2))]
    times = np.array([0.3 + 2.0 * terms["b"] + 0.7 * terms["c"] for terms in counted])
    found = fit_terms(counted, times)
    assert found == pytest.approx({"a": 0.3, "b": 2.0, "c": 0.7})


def test_fit_of_times_that_fall_is_constant_instead_of_falling() -> None:
    counted = [{"block": 1.0, "mlp": size} for size in (1.0, 2.0, 3.0)]
    found = fit_terms(counted, np.array([1.02, 1.0, 0.98]))
    assert found["mlp"] == 0.0
    assert found["block"] == pytest.approx(1.0, abs=0.02)


def test_fit_weighs_errors_as_shares() -> None:
    counted = [{"block": 1.0}] * 2
    found = fit_terms(counted, np.array([1.0, 100.0]))
    assert found["block"] == pytest.approx(1.01 / 1.0001)  # least (x - 1)² + (x / 100 - 1)²


def test_block_terms_never_fall_where_a_dim_grows() -> None:
    full = ARCH.blocks[0]
    for kind, count in itertools.product(("heads", "qk_dim", "vo_dim", "hidden", "queries"), (1, 2)):
        more = getattr(full, kind)
        fewer = dataclasses.replace(full, **{kind: more - count})
        low, high = (block_terms(ARCH, block, sized=True) for block in (fewer, full))
        assert all(low[name] <= high[name] for name in high), kind
        assert any(low[name] < high[name] for name in high), kind


def test_block_terms_of_a_few_dims_less_fall_only_where_whole_registers_and_tiles_go() -> None:
    full = dataclasses.replace(ARCH.blocks[0], vo_dim=48, hidden=320)
    odd = dataclasses.replace(full, vo_dim=40, hidden=288)
    low, high = (block_terms(ARCH, block, sized=False) for block in (odd, full))
    assert low["vo product"] < high["vo product"]
    assert low["vo registers"] == high["vo registers"]
    assert low["mlp"] < high["mlp"]
    assert low["mlp tiles"] == high["mlp tiles"]


def test_block_terms_of_a_merge_grow_with_what_is_merged() -> None:
    full = ARCH.blocks[0]
    few, many = (dataclasses.replace(full, tokens_out=full.tokens_in - count) for count in (2, 6))
    plain, low, high = (block_terms(ARCH, block, sized=False) for block in (full, few, many))
    assert "merge" not in plain
    assert (low["merge"], high["merge"]) == (1.0, 1.0)
    assert low["pooling"] < high["pooling"]
    assert low["mlp"] > high["mlp"]


def test_part_of_all_blocks_has_stem_and_head_and_copies_no_tokens() -> None:
    terms = part_terms(ARCH, range(4))
    assert (terms["stem"], terms["head"], terms["copied"], terms["block"]) == (1.0, 1.0, 0.0, 4.0)
    assert "part" not in terms


def test_part_in_the_middle_copies_tokens_in_and_out() -> None:
    arch = _slim(Counts(tokens=[17, 17, 11, 11]))
    terms = part_terms(arch, range(2, 3))
    assert terms["part"] == 1.0
    assert terms["copied"] == pytest.approx((17 + 11) * arch.embed / 1e6)
    assert "stem" not in terms
    assert "head" not in terms


def test_parts_behind_a_merge_have_sizes() -> None:
    arch = _slim(Counts(tokens=[17, 11, 11, 11]))
    assert ["sizes" in part_terms(arch, range(i, i + 1)) for i in range(4)] == [False, False, True, True]


def test_table_of_exact_parts_predicts_another_model() -> None:
    counts = [
        Counts(tokens=[17, 13, 9, 7], qk_dim=[8, 4, 2, 8], hidden=[40, 20, 30, 10]),
        Counts(tokens=[15, 15, 10, 10], vo_dim=[2, 8, 4, 6], heads=[3, 1, 2, 3]),
        Counts(qk_dim=4, vo_dim=6, hidden=24, heads=[1, 2, 3, 1]),
        Counts(tokens=[12, 9, 9, 9], hidden=[8, 16, 24, 32]),
    ]
    archs = [_slim(one) for one in counts] + [_slim(Counts(tokens=[17, 11, 11, 11]), dead=True), ARCH]
    timed = []
    for arch, start, count in itertools.product(archs, range(4), (1, 2)):
        terms = part_terms(arch, range(start, min(start + count, 4)))
        ms = sum(UNIT_MS[name] * amount for name, amount in terms.items())
        timed.append(TimedPart(f"{len(timed)}", terms, ms))
    table = make_table(ON, timed, 0.0)
    assert max(map(abs, table.errors)) < 1e-6
    other = _slim(Counts(tokens=[14, 14, 14, 14], qk_dim=6, hidden=17))
    assert table.total_ms(other) == pytest.approx(TABLE.total_ms(other))


def test_total_is_the_rest_and_every_block() -> None:
    arch = _slim(Counts(tokens=[17, 11, 11, 11], hidden=20))
    assert TABLE.total_ms(arch) == pytest.approx(0.6 + sum(TABLE.blocks_ms(arch)))
    assert len(TABLE.blocks_ms(arch)) == 4


@pytest.mark.parametrize("dead", [False, True])
def test_latency_cost_adds_up_to_the_table_of_the_slim_model(dead: bool) -> None:
    counts = Counts(tokens=[17, 11, 11, 11], qk_dim=[8, 4, 4, 8], vo_dim=6, hidden=[40, 30, 20, 10])
    arch = _slim(counts, dead=dead)
    cost = LatencyCost(TABLE, ARCH, dead_tokens=dead)
    blocks = [
        cost.block(i, BlockCounts(b.tokens_in, b.tokens_out, b.heads, b.qk_dim, b.vo_dim, b.hidden))
        for i, b in enumerate(arch.blocks)
    ]
    assert tuple(blocks) == pytest.approx(TABLE.blocks_ms(arch))
    assert cost.blocks(arch) == TABLE.blocks_ms(arch)
    assert cost.rest() + sum(blocks) == pytest.approx(TABLE.total_ms(arch))


SLIM = {
    "narrower": Counts(qk_dim=4, vo_dim=4, hidden=20),
    "merged once": Counts(tokens=[17, 11, 11, 11]),
    "merged a little": Counts(tokens=[17, 15, 15, 15]),
    "merged twice": Counts(tokens=[14, 14, 9, 9]),
    "both": Counts(tokens=[17, 13, 13, 13], qk_dim=6, hidden=30),
}
WHOLE = dataclasses.replace(TABLE, factor=1.04, surplus={"block": 0.02, "weights": 0.5, "merge": 0.15})


def _timed(table: LatencyTable, slower: float = 1.0) -> tuple[TimedModel, list[TimedModel]]:
    """Return the dense model and slim ones as a table predicts them; those that merge may be slower."""
    models = [TimedModel(name, _slim(counts, dead=True), 0.0) for name, counts in SLIM.items()]
    timed = [
        dataclasses.replace(m, ms=table.total_ms(m.arch) * (slower if "merged" in m.name else 1.0))
        for m in models
    ]
    return TimedModel("dense", ARCH, table.total_ms(ARCH)), timed


def test_whole_models_as_their_parts_leave_the_table_as_it_is() -> None:
    found = fit_whole(TABLE, *_timed(TABLE))
    assert found.factor == pytest.approx(1.0)
    assert max(found.surplus.values()) == pytest.approx(0.0, abs=1e-9)


def test_whole_models_that_take_longer_than_their_parts_are_predicted() -> None:
    dense, slim = _timed(WHOLE)
    found = fit_whole(TABLE, dense, slim)
    assert found.total_ms(ARCH) == pytest.approx(dense.ms)
    for model in slim:
        assert found.total_ms(model.arch) == pytest.approx(model.ms, rel=0.01)
    assert found.surplus["merge"] > 0.05
    unseen = _slim(Counts(tokens=[17, 17, 10, 10], vo_dim=6, hidden=24), dead=True)
    assert found.total_ms(unseen) == pytest.approx(WHOLE.total_ms(unseen), rel=0.01)
    assert TABLE.total_ms(unseen) < 0.95 * WHOLE.total_ms(unseen)


def test_whole_models_are_each_predicted_from_the_others() -> None:
    found = fit_whole(TABLE, *_timed(WHOLE))
    assert [check.name for check in found.checks] == list(SLIM)
    for check in found.checks:
        assert check.predicted_ms == pytest.approx(check.measured_ms, rel=0.03)
    dense, (narrower, *others) = _timed(WHOLE)
    odd = dataclasses.replace(narrower, ms=1.5 * narrower.ms)
    first, *_ = fit_whole(TABLE, dense, [odd, *others]).checks
    assert first.predicted_ms == pytest.approx(found.checks[0].predicted_ms)  # it does not see itself


def test_one_slim_model_alone_moves_the_table_little() -> None:
    dense, slim = _timed(WHOLE)
    found = fit_whole(TABLE, dense, slim[:1])
    assert found.total_ms(ARCH) == pytest.approx(dense.ms)
    assert found.surplus["merge"] == 0.0


def test_total_of_a_whole_model_is_the_rest_and_every_block() -> None:
    arch = _slim(SLIM["both"])
    assert WHOLE.total_ms(arch) == pytest.approx(WHOLE.rest_ms() + sum(WHOLE.blocks_ms(arch)))


def test_blocks_of_a_part_take_what_they_would_in_a_whole_model() -> None:
    arch = _slim(SLIM["merged once"])
    terms = part_terms(arch, range(1, 2))
    part = TimedPart("merge", terms, sum(UNIT_MS[name] * count for name, count in terms.items()))
    assert WHOLE.blocks_of_part_ms(part) == pytest.approx(WHOLE.blocks_ms(arch)[1])


def test_table_that_tells_nothing_of_blocks_is_refused() -> None:
    noise = dataclasses.replace(TABLE, ms_per_unit={"stem": 0.0, "head": 0.0, "part": 1.0, "copied": 2.0})
    with pytest.raises(MeasurementError, match="times that do not depend on their blocks"):
        fit_whole(noise, TimedModel("dense", ARCH, 3.0), [])
