"""A board's report, taken into that of its build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from kit_builds import SIDES, candidate, write_kit_build
from sample_report import report as sample_report

from edgevit.disk import sha256_file
from edgevit.engine import KIT, SCHEMA
from edgevit.errors import LatencyGateError, MeasurementError, OutputError, ParityError
from edgevit.integrate.manifest import MANIFEST_FILE, Manifest
from edgevit.pipeline.board_results import judge_board, kept_report, kept_results, read_board_report
from edgevit.pipeline.bring_back import bring_back
from edgevit.report.model import FILE_NAME, KitFacts, NotBuilt, load_report, to_json
from edgevit.report.phrases import findings
from edgevit.target import Timing

FOLDER = "orin/kit"


def kit_candidate(precision: str, outliers: float = 0.0, agreement: float | None = None) -> dict[str, object]:
    """Return what a kit says of a precision."""
    allowed = {"relative": 1e-3, "outliers": outliers, "agreement": agreement}
    sides = {side: {"folder": f"{precision}/{side}", "allowed": allowed} for side in SIDES}
    return {"precision": precision, **sides}


def fill(kit: Path, *candidates: dict[str, object]) -> None:
    """Write what a kit says of itself."""
    kit.mkdir(parents=True)
    timing = Timing(min_samples=50).model_dump(mode="json")
    (kit / KIT).write_text(json.dumps({"target": "orin", "timing": timing, "candidates": candidates}))


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """Return a build directory whose kit was not run yet."""
    missing = tuple(NotBuilt(target="orin", precision=name, why="elsewhere") for name in ("fp32", "fp16"))
    facts = KitFacts(target="orin", precisions=("fp32", "fp16"), folder=FOLDER)
    report = sample_report().model_copy(update={"kits": (facts,), "not_built": missing})
    write_kit_build(tmp_path / "build", report, lambda kit: fill(kit, *map(kit_candidate, ("fp32", "fp16"))))
    return tmp_path / "build"


def ask(build: Path, prefer: Literal["fastest", "all"] = "fastest", **gates: float) -> None:
    """Let the build have had these limits in its recipe."""
    report = load_report(build)
    kit = report.kits[0].model_copy(update={"prefer": prefer, "gates": gates})
    (build / FILE_NAME).write_text(to_json(report.model_copy(update={"kits": (kit,)})))


def not_measured(build: Path) -> tuple[str, ...]:
    return Manifest.model_validate_json((build / MANIFEST_FILE).read_bytes()).not_measured


def board(build: Path, *candidates: dict[str, Any], **changes: object) -> Path:
    """Write what a runner writes, and return the file."""
    table = {
        "schema": SCHEMA,
        "kit_sha256": sha256_file(build / FOLDER / KIT),
        "version": "10.3.0",
        "expected_versions": ["8.6", "10.3"],
        "device": {"name": "Orin", "compute_capability": "8.7", "cuda_driver": "12.6"},
        "board": {"kernel": "5.15", "power_mode": "MAXN"},
        "candidates": candidates,
        **changes,
    }
    file = build.parent / "board-report.json"
    file.write_text(json.dumps(table))
    return file


def test_results_of_a_board_take_the_place_of_what_was_not_built(build: Path) -> None:
    before = load_report(build)
    report = bring_back(build, board(build, candidate("fp32", 2.0), candidate("fp16", 1.0)))
    assert report.results[: len(before.results)] == before.results
    fp32, fp16 = report.results[len(before.results) :]
    assert (fp16.target, fp16.precision, fp16.chosen, fp32.chosen) == ("orin", "fp16", True, False)
    assert fp32.refused is not None
    assert fp32.refused.startswith("not faster than fp16")
    assert fp32.speedup.measured == pytest.approx(2.0, rel=1e-3)
    assert (fp32.verdict, fp32.slim.top1, fp32.slim.agreement) == ("trusted", None, None)
    assert fp32.slim.latency_ms.first == 8.0
    assert fp32.protocol["slim_gpu_ms_median"] == 2.5
    assert (fp32.device["tensorrt"], fp32.device["power_mode"]) == ("10.3.0", "MAXN")
    assert report.not_built == ()
    assert load_report(build) == report
    assert "orin" in (build / "report.html").read_text()


def test_board_is_taken_in_again_without_doubles(build: Path) -> None:
    bring_back(build, board(build, candidate("fp32", 2.0)))
    report = bring_back(build, board(build, candidate("fp32", 1.0)))
    (orin,) = (one for one in report.results if one.target == "orin")
    assert orin.speedup.measured == pytest.approx(4.0, rel=1e-3)
    assert [one.precision for one in report.not_built] == ["fp16"]


def test_precision_that_failed_on_the_board_says_why(build: Path) -> None:
    report = bring_back(build, board(build, {"precision": "fp16", "failed": "no kernel for blocks.0"}))
    assert [(one.precision, one.why) for one in report.not_built] == [
        ("fp32", "elsewhere"),
        ("fp16", "on the board: no kernel for blocks.0"),
    ]


@pytest.mark.parametrize(("max_abs", "beyond"), [(0.1, 1), (float("inf"), 0), (float("nan"), 0)])
def test_engine_with_other_outputs_is_refused_and_the_report_stays(
    build: Path, max_abs: float, beyond: int
) -> None:
    before = (build / "report.json").read_bytes()
    message = (
        r"orin fp32: the dense engine gives other outputs: its logits are up to .* allowed 0\.005;"
        r" top-1 is the same on 100\.0% of 32 images and the slim engine .*take another precision"
    )
    with pytest.raises(ParityError, match=message):
        bring_back(build, board(build, candidate("fp32", 2.0, max_abs=max_abs, beyond=beyond)))
    assert (build / "report.json").read_bytes() == before


def test_engine_in_fp16_with_other_outputs_is_not_built_and_fp32_stays(build: Path) -> None:
    wrong = candidate("fp16", 1.0, max_abs=0.1, beyond=1)
    report = bring_back(build, board(build, candidate("fp32", 2.0), wrong))
    (orin,) = (one for one in report.results if one.target == "orin")
    assert (orin.precision, orin.chosen) == ("fp32", True)
    (missing,) = report.not_built
    assert missing.precision == "fp16"
    assert missing.why.startswith("on the board: the dense engine gives other outputs: its logits are up to")


@pytest.mark.parametrize(
    ("top1", "max_abs", "refused"),
    [(1.0, 4.0, ""), (0.90625, 0.5, ""), (0.875, 1e-4, "top-1 on 87.5% of 32 images, expected 90%"),
     (1.0, float("inf"), "top-1 on 100.0% of 32 images, expected 90%; its logits are up to inf")],
)  # fmt: skip
def test_int8_on_a_board_is_judged_by_top1(tmp_path: Path, top1: float, max_abs: float, refused: str) -> None:
    fill(tmp_path / FOLDER, kit_candidate("int8", agreement=0.9))
    found = candidate("int8", 2.0, top1_agreement=top1, max_abs=max_abs, beyond=32)
    judged = judge_board(read_board_report(board(tmp_path, found)), tmp_path / FOLDER, 1.0)
    assert [refused in one.why for one in judged.not_built] == ([True] if refused else [])
    for one in judged.results:
        assert one.parity["slim_onnx_artefact_top1_agreement"] == top1
        assert one.parity["slim_onnx_artefact_min_agreement"] == 0.9
        assert one.parity["slim_onnx_artefact_max_abs"] == max_abs


def test_model_that_chooses_tokens_may_differ_on_a_share_of_the_images(tmp_path: Path) -> None:
    fill(tmp_path / FOLDER, kit_candidate("fp16", outliers=0.5))
    for beyond in (16, 17):
        found = candidate("fp16", 2.0, max_abs=3.0, beyond=beyond)
        judged = judge_board(read_board_report(board(tmp_path, found)), tmp_path / FOLDER, 1.0)
        assert len(judged.results) == (beyond == 16)
    (missing,) = judged.not_built
    assert "allowed 0.005 on all but 16, 17 images are beyond" in missing.why


def test_report_of_another_kit_is_refused(build: Path) -> None:
    file = board(build, candidate("fp32", 2.0), kit_sha256="f" * 64)
    with pytest.raises(
        OutputError, match=r"expected the report of a kit of this build \(orin/kit\), got .*ffffffffffff"
    ):
        bring_back(build, file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"board-report\.json: damaged"),
        ('{"schema": 1}', r"board-report\.json: damaged \(kit_sha256: Field required\)"),
    ],
)
def test_damaged_report_is_named(build: Path, text: str, message: str) -> None:
    file = build.parent / "board-report.json"
    file.write_text(text)
    with pytest.raises(OutputError, match=message):
        bring_back(build, file)


def test_report_that_is_not_there_is_named(build: Path) -> None:
    with pytest.raises(OutputError, match=r"expected the file that a kit's run\.py wrote, found none"):
        bring_back(build, build / "nothing.json")


def test_report_of_another_schema_is_refused(build: Path) -> None:
    with pytest.raises(OutputError, match="expected a board's report of schema 2, got 1"):
        bring_back(build, board(build, candidate("fp32", 2.0), schema=1))


def test_limits_and_preference_of_the_recipe_hold_for_a_board(build: Path) -> None:
    ask(build, "all", max_latency_ms=6.0, min_speedup=1.4)
    report = bring_back(build, board(build, candidate("fp32", 2.0), candidate("fp16", 1.0)))
    assert [one.chosen for one in report.results if one.target == "orin"] == [True, True]
    assert not_measured(build) == ()


def test_board_that_misses_a_limit_leaves_its_report_and_no_manifest(build: Path) -> None:
    ask(build, max_latency_ms=1.5)
    with pytest.raises(
        LatencyGateError, match=r"orin fp32: median latency is 2\.000 ms, max_latency_ms is 1\.5"
    ):
        bring_back(build, board(build, candidate("fp32", 2.0)))
    assert [one.chosen for one in load_report(build).results if one.target == "orin"] == [True]
    assert not (build / MANIFEST_FILE).exists()


def test_accuracy_is_not_judged_on_a_board_and_the_report_says_so(build: Path) -> None:
    ask(build, max_drop=5.0)
    waiting = [one for one in findings(load_report(build)) if "not judged" in one]
    assert waiting == ["orin was not measured: max_drop 5 was not judged."]
    report = bring_back(build, board(build, candidate("fp32", 2.0)))
    said = [one for one in findings(report) if "not judged" in one]
    assert said == ["orin was measured on its board, which knows no accuracy: max_drop 5 was not judged."]


def test_board_report_is_kept_for_later_builds_of_the_same_kit(build: Path) -> None:
    report = bring_back(build, board(build, candidate("fp32", 2.0), {"precision": "fp16", "failed": "no"}))
    kit = build / FOLDER
    kept = kept_results(build, kit, report.models.dense.macs / report.models.slim.macs)
    (mine,) = (one for one in report.results if one.target == "orin")
    assert [one.model_copy(update={"chosen": True}) for one in kept.results] == [mine]
    assert [one.precision for one in kept.not_built] == ["fp16"]
    (kit / KIT).write_text((kit / KIT).read_text() + "\n")
    assert kept_results(build, kit, 1.0).results == ()


def test_times_that_cannot_be_trusted_are_told_and_not_kept(build: Path) -> None:
    shaken = candidate("fp32", 2.0)
    for number, burst in enumerate(shaken["taken"]["bursts_ns"][1]):
        burst[:] = [time * (1 + number % 5) for time in burst]
    with pytest.raises(MeasurementError, match="orin fp32"):
        bring_back(build, board(build, shaken))
    assert [one.verdict for one in load_report(build).results if one.target == "orin"] == ["untrusted"]
    assert not kept_report(build, sha256_file(build / FOLDER / KIT)).exists()


def test_results_of_another_precision_stay(build: Path) -> None:
    bring_back(build, board(build, candidate("fp32", 2.0)))
    report = bring_back(build, board(build, candidate("fp16", 1.0)))
    found = [(one.precision, one.chosen) for one in report.results if one.target == "orin"]
    assert found == [("fp32", False), ("fp16", True)]


def test_precision_that_the_kit_has_not_is_named(build: Path) -> None:
    with pytest.raises(OutputError, match=r"orin: expected the board's report of fp32, fp16.* got int8"):
        bring_back(build, board(build, candidate("int8", 2.0)))
