from __future__ import annotations

import pytest
from sample_sweep import sweep


def test_front_has_the_trusted_points_that_no_artefact_beats() -> None:
    found = sweep()
    front = [(point.asked, r.precision) for point in found.points for r in point.results if r.front]
    # 0.5 is slower and worse than 0.6; bf16 is slower than fp32 and loses as much; int8 is not trusted.
    assert front == [(0.8, "fp32"), (0.6, "fp32")]


def test_points_have_the_interval_of_what_they_are_ranked_by() -> None:
    first = sweep().points[0].results[0]
    assert first.slim.top1 == pytest.approx(0.791)
    assert first.slim.interval == pytest.approx((0.792 - 0.01, 0.792 + 0.006))
    unlabelled = sweep(labelled=False).points[0].results[0]
    assert unlabelled.slim.top1 is None
    assert unlabelled.slim.interval == pytest.approx((0.9224, 0.9583), abs=5e-4)  # 0.943 of 648 images


def test_points_say_why_they_failed_or_what_they_missed() -> None:
    points = sweep().points
    assert [point.failed is None for point in points] == [True, True, False, True]
    assert points[3].missed == "latency gate missed: openvino-cpu fp32: median latency is 7.000 ms"
    assert points[2].folder == "macs-0.1"


def test_warnings_of_all_points_stand_once() -> None:
    assert sweep().warnings == ("2 of 650 evaluation images were corrupt and skipped",)
