from __future__ import annotations

import pytest
from sample_report import result

from edgevit.errors import AccuracyGateError, LatencyGateError, MeasurementError
from edgevit.gates import choose, require_gates
from edgevit.recipe import Gates
from edgevit.report.model import AgainstFp32, Drop, Result


def candidate(precision: str, slim_ms: float, **changes: object) -> Result:
    """Return a result with 0.6 points of drop and agreement 0.943, dense at 10 ms."""
    return result(precision, 10.0, slim_ms).model_copy(update=changes)


def chosen(results: tuple[Result, ...]) -> list[str]:
    return [one.precision for one in results if one.chosen]


def median(result: Result) -> float:
    return result.slim.latency_ms.median


def test_choose_fastest_refuses_the_slower_one_and_says_how_much() -> None:
    results = choose([candidate("fp32", 6.0), candidate("bf16", 5.0)], Gates(), "fastest")
    assert chosen(results) == ["bf16"]
    assert results[0].refused is not None
    assert results[0].refused.startswith("not faster than bf16 on this target: 6.0")


def test_choose_all_keeps_each_that_is_fit() -> None:
    results = choose([candidate("fp32", 6.0), candidate("bf16", 5.0)], Gates(), "all")
    assert chosen(results) == ["fp32", "bf16"]


def test_choose_prefers_a_slower_one_that_keeps_the_accuracy_gate() -> None:
    poor = candidate("bf16", 5.0, drop=Drop(points=2.5, interval=(1.0, 4.0)))
    results = choose([candidate("fp32", 6.0), poor], Gates(max_drop=1.0), "fastest")
    assert chosen(results) == ["fp32"]
    assert results[1].refused == (
        f"misses the gate: top-1 drops by 2.50 points, max_drop is 1 (median {median(results[1]):.3f} ms)"
    )


def test_choose_refuses_int8_that_keeps_its_own_top1_but_not_that_of_fp32() -> None:
    lost = Drop(points=9.0, interval=(7.0, 11.0))
    broken = AgainstFp32(dense_agreement=0.85, dense_drop=lost, agreement=0.84, drop=lost)
    gates = Gates(max_drop=1.0, min_agreement=0.9)
    results = choose([candidate("fp32", 6.0), candidate("int8", 3.0, fp32=broken)], gates, "fastest")
    assert chosen(results) == ["fp32"]
    assert results[1].refused == (
        "misses the gate: top-1 drops by 9.00 points against fp32, max_drop is 1;"
        f" agreement with fp32 is 0.8400, min_agreement is 0.9 (median {median(results[1]):.3f} ms)"
    )


@pytest.mark.parametrize("prefer", ["fastest", "all"])
def test_choose_never_takes_an_untrusted_timing(prefer: str) -> None:
    noisy = candidate("bf16", 5.0, verdict="untrusted", why="drift")
    results = choose([candidate("fp32", 6.0), noisy], Gates(), "all" if prefer == "all" else "fastest")
    assert chosen(results) == ["fp32"]
    assert results[1].refused == "untrusted timing: drift"


def test_choose_one_of_equal_times() -> None:
    results = choose([candidate("fp32", 5.0), candidate("bf16", 5.0)], Gates(), "fastest")
    assert chosen(results) in (["fp32"], ["bf16"])


def test_require_gates_all_kept_passes() -> None:
    gates = Gates(max_drop=0.6, min_agreement=0.943, max_latency_ms=7.0, min_speedup=1.5)
    results = choose([candidate("fp32", 6.0)], gates, "fastest")
    require_gates(results, gates)
    assert chosen(results) == ["fp32"]


def test_require_gates_drop_too_large_is_an_accuracy_error() -> None:
    results = choose([candidate("fp32", 6.0)], Gates(max_drop=0.5), "fastest")
    with pytest.raises(
        AccuracyGateError, match=r"openvino-cpu fp32: top-1 drops by 0\.60 points, max_drop is 0\.5"
    ):
        require_gates(results, Gates(max_drop=0.5))


def test_require_gates_agreement_of_a_finished_build_is_checked_on_what_was_chosen() -> None:
    results = choose([candidate("fp32", 6.0)], Gates(), "fastest")
    with pytest.raises(AccuracyGateError, match=r"agreement is 0\.9430, min_agreement is 0\.95"):
        require_gates(results, Gates(min_agreement=0.95))


def test_require_gates_one_precision_that_keeps_the_limit_is_enough() -> None:
    poor = candidate("bf16", 5.0, drop=Drop(points=2.5, interval=(1.0, 4.0)))
    gates = Gates(max_drop=1.0)
    results = choose([candidate("fp32", 6.0), poor], gates, "fastest")
    assert chosen(results) == ["fp32"]
    require_gates(results, gates)


def test_require_gates_limit_without_labels_is_missed() -> None:
    results = [candidate("fp32", 6.0, drop=None, chosen=True)]
    with pytest.raises(AccuracyGateError, match="needs labelled evaluation images"):
        require_gates(results, Gates(max_drop=1.0))


@pytest.mark.parametrize(
    ("gates", "text"),
    [
        (Gates(max_latency_ms=5.0), r"median latency is 6\.\d+ ms, max_latency_ms is 5"),
        (Gates(min_speedup=3.0), r"speed-up is 1\.\d+, min_speedup is 3"),
    ],
)
def test_require_gates_too_slow_is_a_latency_error(gates: Gates, text: str) -> None:
    with pytest.raises(LatencyGateError, match=text):
        require_gates(choose([candidate("fp32", 6.0)], gates, "fastest"), gates)


def test_require_gates_accuracy_comes_before_latency() -> None:
    gates = Gates(max_drop=0.1, min_speedup=9.0)
    with pytest.raises(AccuracyGateError, match="top-1 drops"):
        require_gates(choose([candidate("fp32", 6.0)], gates, "fastest"), gates)


def test_require_gates_names_every_limit_that_is_missed() -> None:
    gates = Gates(max_drop=0.1, min_agreement=0.95, max_latency_ms=5.0, min_speedup=9.0)
    with pytest.raises(AccuracyGateError, match="top-1 drops") as caught:
        require_gates(choose([candidate("fp32", 6.0)], Gates(), "fastest"), gates)
    assert str(caught.value) == (
        "accuracy gate missed:\n"
        "  openvino-cpu fp32: top-1 drops by 0.60 points, max_drop is 0.1\n"
        "  openvino-cpu fp32: agreement is 0.9430, min_agreement is 0.95\n"
        "Cut less, or calibrate on more images.\n"
        "latency gate missed:\n"
        "  openvino-cpu fp32: median latency is 6.000 ms, max_latency_ms is 5\n"
        "  openvino-cpu fp32: speed-up is 1.667, min_speedup is 9\n"
        "Cutting more costs accuracy: loosen a limit, or choose another precision."
    )


def test_require_gates_latency_of_a_build_that_chose_nothing_is_judged_too() -> None:
    strict, slow = Gates(max_drop=0.1), Gates(max_latency_ms=5.0)
    refused = choose([candidate("fp32", 6.0)], strict, "fastest")
    assert chosen(refused) == []
    with pytest.raises(LatencyGateError, match=r"median latency is 6\.\d+ ms"):
        require_gates(refused, slow)
    require_gates(refused, Gates(max_latency_ms=7.0))


def test_require_gates_untrusted_beside_a_chosen_one_is_not_named() -> None:
    noisy = candidate("bf16", 5.0, verdict="untrusted", why="drift")
    results = choose([candidate("fp32", 6.0), noisy], Gates(), "fastest")
    with pytest.raises(AccuracyGateError, match="fp32: top-1 drops") as caught:
        require_gates(results, Gates(max_drop=0.1))
    assert "drift" not in str(caught.value)


@pytest.mark.parametrize("gates", [Gates(max_latency_ms=99.0), Gates(max_drop=1.0)])
def test_require_gates_only_untrusted_timings_is_a_measurement_error(gates: Gates) -> None:
    noisy = choose([candidate("fp32", 6.0, verdict="untrusted", why="drift")], Gates(), "fastest")
    with pytest.raises(MeasurementError, match="openvino-cpu fp32: drift"):
        require_gates(noisy, gates)


def test_require_gates_names_every_target_that_misses() -> None:
    both = [candidate("fp32", 6.0, chosen=True), candidate("fp32", 6.0, chosen=True, target="other")]
    with pytest.raises(LatencyGateError, match=r"(?s)openvino-cpu fp32: speed-up.*other fp32: speed-up"):
        require_gates(both, Gates(min_speedup=9.0))
