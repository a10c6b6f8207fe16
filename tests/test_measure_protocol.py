from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_backend import FakeClock, FakeSession
from small_onnx import draw_images, write_classifier

from edgevit.backends import get_backend
from edgevit.board import LEAD_RUNS, MIN_BURSTS, OVERTIME
from edgevit.measure.protocol import Ratio, judge, measure_pair
from edgevit.target import Runtime, Target, Timing

SAMPLE = np.zeros((1, 4), np.float32)
TIMING = Timing(warmup_s=0.1, seconds=4.0)


def _noise(median_ms: float, seed: int) -> list[float]:
    return list(median_ms * (1 + 0.01 * np.random.default_rng(seed).standard_normal(100_000)))


def _session(clock: FakeClock, median_ms: float, seed: int = 0) -> FakeSession:
    times = _noise(median_ms, seed)
    return FakeSession(clock, lambda run: times[run])


def test_measure_pair_of_steady_sessions_gives_their_speedup_and_is_trusted() -> None:
    clock = FakeClock()
    found = measure_pair(_session(clock, 9.0, 1), _session(clock, 6.0, 2), SAMPLE, TIMING, clock=clock)
    assert found.verdict == "trusted", found.why
    assert found.speedup is not None
    assert found.speedup.low < 1.5 < found.speedup.high
    assert found.speedup.high - found.speedup.low < 0.02
    assert found.candidate is not None
    assert found.candidate.median == pytest.approx(6.0, rel=0.01)
    assert found.candidate.low <= found.candidate.median <= found.candidate.high
    assert found.candidate.median < found.candidate.p90 < found.candidate.p99
    assert len(found.candidate.samples_ms) == len(found.reference.samples_ms) >= TIMING.min_samples
    assert len(found.reference.samples_ms) % found.runs_per_burst == 0


def test_measure_pair_with_one_session_has_no_ratio() -> None:
    clock = FakeClock()
    found = measure_pair(_session(clock, 9.0), None, SAMPLE, TIMING, clock=clock)
    assert found.verdict == "trusted"
    assert found.candidate is None
    assert found.speedup is None
    assert found.reference.median == pytest.approx(9.0, rel=0.01)
    assert "interval of the median" in found.why


def test_measure_pair_keeps_to_the_time_budget() -> None:
    clock = FakeClock()
    measure_pair(_session(clock, 9.0), _session(clock, 6.0), SAMPLE, TIMING, clock=clock)
    assert 4.0e9 <= clock.now_ns - 0.2e9 < 4.4e9  # both warm-ups, and at most one pair of bursts too many


def test_measure_pair_of_fast_sessions_ends_at_the_most_samples() -> None:
    clock = FakeClock()
    timing = Timing(warmup_s=0.0, seconds=100.0, max_samples=300)
    found = measure_pair(_session(clock, 1.0), None, SAMPLE, timing, clock=clock)
    assert 300 <= len(found.reference.samples_ms) < 300 + found.runs_per_burst
    assert clock.now_ns < 1e9


def test_measure_pair_of_slow_sessions_takes_the_fewest_samples_anyway() -> None:
    clock = FakeClock()
    found = measure_pair(_session(clock, 300.0), _session(clock, 200.0), SAMPLE, TIMING, clock=clock)
    assert found.verdict == "trusted", found.why
    assert len(found.reference.samples_ms) == TIMING.min_samples


def test_measure_pair_of_far_too_slow_sessions_stops_and_is_untrusted() -> None:
    clock = FakeClock()
    found = measure_pair(_session(clock, 3000.0), _session(clock, 2000.0), SAMPLE, TIMING, clock=clock)
    assert clock.now_ns < (OVERTIME + 12) * TIMING.seconds * 1e9
    assert found.verdict == "untrusted"
    assert "too few samples: " in found.why
    assert "raise timing.seconds" in found.why


def test_measure_pair_leaves_the_first_runs_of_a_burst_untimed() -> None:
    clock = FakeClock()
    order: list[str] = []

    def _after_the_other(name: str, steady: float) -> FakeSession:
        def latency_ms(run: int) -> float:
            fresh = order[-LEAD_RUNS:].count(name) < LEAD_RUNS
            order.append(name)
            return 10 * steady if fresh else steady

        return FakeSession(clock, latency_ms)

    found = measure_pair(
        _after_the_other("dense", 9.0), _after_the_other("slim", 6.0), SAMPLE, TIMING, clock=clock
    )
    assert found.reference.samples_ms == pytest.approx([9.0] * len(found.reference.samples_ms))
    assert found.reference.first_ms == pytest.approx(90.0)
    assert found.speedup is not None
    assert found.speedup.value == pytest.approx(1.5)


def test_measure_pair_cancels_a_slow_phase_of_the_whole_machine() -> None:
    clock = FakeClock()

    def slowed(median_ms: float) -> FakeSession:
        return FakeSession(clock, lambda run: median_ms * (1.0 + 0.08 * (clock.now_ns > 2e9)))

    found = measure_pair(slowed(9.0), slowed(6.0), SAMPLE, TIMING, clock=clock)
    assert found.speedup is not None
    assert found.speedup.value == pytest.approx(1.5, rel=0.01)


def _throttling(clock: FakeClock) -> FakeSession:
    """Return a session that becomes slower for good after two seconds."""
    return FakeSession(clock, lambda run: 9.0 * (1.0 + 0.5 * (clock.now_ns > 2e9)))


def test_measure_pair_that_throttles_is_untrusted_and_names_the_drift() -> None:
    clock, once = FakeClock(), TIMING.model_copy(update={"attempts": 1})
    found = measure_pair(_throttling(clock), _session(clock, 6.0), SAMPLE, once, clock=clock)
    assert (found.verdict, found.attempts) == ("untrusted", 1)
    assert "the reference ran 50.0% slower in its second half than in its first, allowed 10.0%" in found.why


def test_measure_pair_is_taken_anew_when_the_machine_has_settled() -> None:
    clock = FakeClock()
    found = measure_pair(_throttling(clock), _session(clock, 6.0), SAMPLE, TIMING, clock=clock)
    assert (found.verdict, found.attempts) == ("trusted", 2)
    assert min(found.reference.samples_ms) == 13.5  # none of the first, faster seconds


def test_measure_pair_on_a_restless_machine_is_untrusted_and_names_the_interval() -> None:
    clock = FakeClock()
    rng = np.random.default_rng(0)
    restless = FakeSession(clock, lambda run: 6.0 * rng.lognormal(0, 1.5))
    found = measure_pair(_session(clock, 9.0), restless, SAMPLE, TIMING, clock=clock)
    assert (found.verdict, found.attempts) == ("untrusted", TIMING.attempts)
    assert "the 95 % interval of the speed-up is" in found.why


def test_measure_pair_reports_progress_up_to_one() -> None:
    clock = FakeClock()
    shares: list[float] = []
    measure_pair(_session(clock, 9.0), None, SAMPLE, TIMING, clock=clock, progress=shares.append)
    assert shares == sorted(shares)
    assert len(shares) > MIN_BURSTS
    assert shares[-1] == 1.0


def test_measure_pair_alternates_the_two_in_random_order() -> None:
    clock = FakeClock()
    order: list[str] = []
    dense = FakeSession(clock, lambda run: order.append("dense") or 9.0)
    slim = FakeSession(clock, lambda run: order.append("slim") or 6.0)
    found = measure_pair(dense, slim, SAMPLE, Timing(warmup_s=0.0, seconds=4.0), clock=clock)
    timed = order[2 * (LEAD_RUNS + 1) :]
    starts = timed[:: LEAD_RUNS + found.runs_per_burst]
    assert starts.count("dense") == starts.count("slim")
    firsts = starts[::2]
    assert 0.2 < firsts.count("dense") / len(firsts) < 0.8


def test_judge_of_one_burst_never_trusts_its_zero_interval() -> None:
    reasons = judge([np.full((1, 50), 9.0)], None, Timing())
    assert reasons == ["too few samples: 50 in 1 bursts, wanted 50 in 10; raise timing.seconds"]


def test_judge_lists_every_reason() -> None:
    series = [np.full((20, 10), 9.0), np.full((20, 10), 6.0)]
    series[0][10:] *= 1.2
    series[1][10:] *= 0.8
    reasons = judge(series, Ratio(1.5, 1.3, 1.7), Timing())
    assert [reason.split(" in ")[0] for reason in reasons[1:]] == [
        "the reference ran 20.0% slower",
        "the candidate ran 20.0% faster",
    ]
    assert reasons[0].startswith("the 95 % interval of the speed-up is 26.7% wide, allowed 10.0%")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_measure_pair_of_an_artefact_with_itself_on_a_runtime_finds_no_speedup(
    tmp_path: Path, runtime: Runtime
) -> None:
    backend, target = get_backend(runtime), Target(name="test", runtime=runtime, threads=1)
    artefact = backend.build(write_classifier(tmp_path / "m.onnx"), target, "fp32", tmp_path / "built")
    timing = Timing(warmup_s=0.02, seconds=0.3)
    with backend.load(artefact, target, "fp32") as dense, backend.load(artefact, target, "fp32") as slim:
        found = measure_pair(dense, slim, draw_images(1), timing)
    assert found.speedup is not None
    assert 0.5 < found.speedup.value < 2.0  # only the order of magnitude: tests share the machine
    assert min(found.reference.samples_ms) > 0.0
