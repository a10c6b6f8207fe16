from __future__ import annotations

import pytest

from edgevit.export.int8_layers import Int8Layer
from edgevit.pipeline.int8_control import Loss, choose_float_layers, holds, order_of_return
from edgevit.pipeline.int8_sensitivity import LayerSensitivity
from edgevit.recipe import Int8Section

# KL per MAC: b, then d, then a, then c.
FOUND = [
    LayerSensitivity(Int8Layer(name, macs), 30.0, kl)
    for name, macs, kl in (("a", 100, 0.1), ("b", 10, 0.2), ("c", 100, 0.05), ("d", 20, 0.04))
]


def loss_of(in_float: tuple[str, ...]) -> Loss:
    kl = sum(one.kl for one in FOUND if one.layer.name not in in_float)
    return Loss(expected_drop=10 * kl, agreement=1 - kl, kl=kl)


def test_order_of_return_weighs_loss_by_macs() -> None:
    assert [one.layer.name for one in order_of_return(FOUND)] == ["b", "d", "a", "c"]


def test_order_of_return_of_equals_is_that_of_the_graph() -> None:
    same = [LayerSensitivity(Int8Layer(name, 5), 30.0, 0.1) for name in ("z", "a", "m")]
    assert [one.layer.name for one in order_of_return(same)] == ["z", "a", "m"]


def test_choose_without_limits_leaves_every_layer_in_int8() -> None:
    found = choose_float_layers(FOUND, loss_of, Int8Section())
    assert found.in_float == ()
    assert found.after == found.before == loss_of(())


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Int8Section(max_drop=2.0), ("b",)),
        (Int8Section(max_drop=1.6), ("b", "d")),
        (Int8Section(min_agreement=0.94), ("b", "d", "a")),
        (Int8Section(max_drop=2.0, min_agreement=0.84), ("b", "d")),
    ],
)
def test_choose_returns_the_fewest_layers_that_hold_the_limits(
    limits: Int8Section, expected: tuple[str, ...]
) -> None:
    found = choose_float_layers(FOUND, loss_of, limits)
    assert found.in_float == expected
    assert holds(found.after, limits)
    assert not holds(found.before, limits)
    assert not holds(loss_of(expected[:-1]), limits)


def test_choose_leaves_one_layer_in_int8_where_no_choice_holds() -> None:
    found = choose_float_layers(FOUND, loss_of, Int8Section(max_drop=0.0))
    assert found.in_float == ("b", "d", "a")
    assert found.after.expected_drop == pytest.approx(0.5)


def test_choose_among_one_layer_keeps_it() -> None:
    found = choose_float_layers(FOUND[:1], loss_of, Int8Section(max_drop=0.0))
    assert found.in_float == ()
    assert found.after == found.before


def test_choose_measures_few_losses() -> None:
    many = [LayerSensitivity(Int8Layer(str(index), 1), 30.0, 0.01) for index in range(100)]
    asked = []

    def counting(in_float: tuple[str, ...]) -> Loss:
        asked.append(len(in_float))
        return Loss(100 - len(in_float), 1.0, 0.0)

    found = choose_float_layers(many, counting, Int8Section(max_drop=63))
    assert len(found.in_float) == 37
    assert len(asked) == len(set(asked)) <= 9
