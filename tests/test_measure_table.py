from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from toy_vits import toy_arch

from edgevit.errors import MeasurementError
from edgevit.measure.table import (
    LatencyCost,
    LatencyTable,
    TableDevice,
    TimedPart,
    block_terms,
    check_table,
    fit_terms,
    make_table,
    part_terms,
    scale_table,
    table_from_json,
    table_to_json,
)
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.models.arch import Arch
from edgevit.plan import Counts, plan_from_counts

ARCH = toy_arch(depth=4)
ON = TableDevice("openvino", {"openvino": "2026.4"}, "cpu", {"cpu": "a CPU"}, 2, "fp32", 1)
UNIT_MS = {
    "stem": 0.5,
    "head": 0.1,
    "part": 0.02,
    "copied": 3.0,
    "block": 0.01,
    "elements": 4.0,
    "qk projection": 7.0,
    "vo projection": 8.0,
    "qk product": 5.0,
    "vo product": 6.0,
    "qk registers": 3.0,
    "vo registers": 2.0,
    "projection tiles": 1.5,
    "mlp tiles": 1.2,
    "softmax": 40.0,
    "mlp": 9.0,
    "neurons": 20.0,
    "weights": 2.0,
    "sizes": 0.03,
    "sized logits": 10.0,
    "merge": 0.1,
    "matching": 30.0,
    "pooling": 11.0,
    "gathering": 12.0,
}
TABLE = LatencyTable(ON, ARCH.embed, 0.0, (), UNIT_MS)


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
        timed.append(TimedPart(f"{len(timed)}", terms, ms, 0.0))
    table = make_table(ON, ARCH.embed, timed, 0.0)
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
        cost.block(i, b.tokens_in, b.tokens_out, b.qk_dim, b.vo_dim, b.heads, b.hidden)
        for i, b in enumerate(arch.blocks)
    ]
    assert tuple(blocks) == pytest.approx(TABLE.blocks_ms(arch))
    assert cost.rest() + sum(blocks) == pytest.approx(TABLE.total_ms(arch))


def test_scaled_table_predicts_what_the_whole_model_took() -> None:
    slim = _slim(Counts(hidden=20))
    scaled = scale_table(TABLE, ARCH, 1.1 * TABLE.total_ms(ARCH))
    assert scaled.scale == pytest.approx(1.1)
    assert scaled.total_ms(slim) == pytest.approx(1.1 * TABLE.total_ms(slim))
    assert scaled.total_ms(slim) == pytest.approx(scaled.rest_ms() + sum(scaled.blocks_ms(slim)))


def test_table_that_tells_nothing_of_blocks_is_refused() -> None:
    noise = dataclasses.replace(TABLE, ms_per_unit={"stem": 0.0, "head": 0.0, "part": 1.0, "copied": 2.0})
    with pytest.raises(MeasurementError, match="times that do not depend on their blocks"):
        scale_table(noise, ARCH, 3.0)


def test_check_sets_the_prediction_beside_the_measurement() -> None:
    checked = check_table(TABLE, "dense", ARCH, TABLE.total_ms(ARCH) / 1.05)
    assert checked.checks[0].error == pytest.approx(0.05)


def test_table_from_its_json_is_equal() -> None:
    part = TimedPart("full", part_terms(ARCH, range(1, 2)), 1.5, 0.1)
    table = check_table(dataclasses.replace(TABLE, parts=(part,)), "dense", ARCH, 3.0)
    assert table_from_json(table_to_json(table), "table.json") == table


@pytest.mark.parametrize("text", ["{}", "[]", "no json", table_to_json(TABLE).replace("drift", "drafts")])
def test_table_from_another_file_is_refused(text: str) -> None:
    with pytest.raises(MeasurementError, match=r"table\.json: expected a latency table"):
        table_from_json(text, "table.json")


def test_table_of_another_schema_is_refused() -> None:
    text = table_to_json(TABLE).replace('"schema": 1', '"schema": 7')
    with pytest.raises(MeasurementError, match="schema 1, got 7"):
        table_from_json(text, "table.json")
