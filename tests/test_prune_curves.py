"""KL of a cut between and beyond the counts at which it was measured."""

from __future__ import annotations

import pytest

from edgevit.prune.curves import Curve, Sensitivity, sensitivity_of, sensitivity_text

PLAIN = Curve("tokens", 100, (90, 60), (0.001, 0.016))
SHAPED = Curve("qk_dim", 4, (3, 1), (0.002, 0.1), errors=(10.0, 5.0, 1.0, 0.1, 0.0))


@pytest.mark.parametrize("curve", [PLAIN, SHAPED])
def test_curve_is_what_was_measured_and_0_for_no_cut(curve: Curve) -> None:
    assert [curve.at(count) for count in curve.counts] == pytest.approx(curve.kl)
    assert curve.at(curve.most) == 0.0


def test_curve_without_errors_follows_a_power_of_what_goes() -> None:
    assert PLAIN.at(80) == pytest.approx(0.001 * 2**2)
    assert PLAIN.at(20) == pytest.approx(0.001 * 8**2)
    assert PLAIN.at(95) == pytest.approx(0.001 / 2**2)


def test_curve_with_errors_follows_their_shape() -> None:
    middle = SHAPED.at(2)
    assert 0.002 < middle < 0.1
    straight = Curve("qk_dim", 4, (3, 1), (0.002, 0.1), errors=(10.0, 5.0, 4.0, 0.1, 0.0))
    assert straight.at(2) > middle


def test_curve_below_the_least_error_is_proportional_to_it() -> None:
    curve = Curve("vo_dim", 4, (2,), (0.04,), errors=(10.0, 5.0, 1.0, 0.25, 0.0))
    assert curve.at(3) == pytest.approx(0.01, rel=1e-3)
    assert curve.at(1) == pytest.approx(0.2, rel=1e-3)


def test_curve_never_makes_the_larger_cut_the_cheaper_one() -> None:
    noisy = Curve("heads", 6, (5, 4, 3), (0.02, 0.01, 0.03))
    values = [noisy.at(count) for count in (6, 5, 4, 3, 2)]
    assert values == sorted(values)


def test_sensitivities_come_back_from_their_text() -> None:
    found = Sensitivity(((SHAPED, PLAIN), (SHAPED,)), 8)
    assert sensitivity_of(sensitivity_text(found)) == found
    assert found.curve(0, "tokens") == PLAIN
    assert found.curve(1, "tokens") is None


def test_sensitivities_of_another_schema_are_refused() -> None:
    text = sensitivity_text(Sensitivity((), 8)).replace('"schema": 1', '"schema": 9')
    with pytest.raises(ValueError, match="expected sensitivities of schema 1, got 9"):
        sensitivity_of(text)
