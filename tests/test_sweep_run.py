"""Sweeps of the toy recipe, from end to end."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from toy_build import write_toy

from edgevit.errors import OutputError, PlanError
from edgevit.plan import plan_from_json
from edgevit.progress import Progress, silent
from edgevit.recipe import load_recipe
from edgevit.report.model import load_report, to_json
from edgevit.report.sweep import Sweep
from edgevit.store import Store
from edgevit.sweep.make import Task
from edgevit.sweep.points import read_points
from edgevit.sweep.processes import make_here
from edgevit.sweep.run import SweepOptions, Swept, run_sweep

BUDGET = "[budget]\nmacs = 0.6\n"


def run(folder: Path, budgets: str, jobs: int = 1, progress: Progress = silent) -> Swept:
    points = read_points(load_recipe(str(folder / "toy.toml")), budgets, None, folder / "out")
    return run_sweep(points, SweepOptions(jobs=jobs), progress)


def made(folder: Path) -> set[str]:
    """Name the stages that the last build of a point has made."""
    return {stage.name for stage in load_report(folder).stages if not stage.reused}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Swept, Path]:
    """Return a finished sweep, of two points that can be built and one that cannot, and its folder."""
    folder = tmp_path_factory.mktemp("sweep")
    write_toy(folder, plan=BUDGET)
    return run(folder, "0.8,0.6,0.01"), folder


def test_sweep_builds_a_point_for_each_budget_in_their_order(swept: tuple[Swept, Path]) -> None:
    sweep = swept[0].sweep
    assert [point.asked for point in sweep.points] == [0.8, 0.6, 0.01]
    first, second, _ = (point.slim for point in sweep.points)
    assert first is not None
    assert second is not None
    assert second.macs <= 0.6 * sweep.dense.macs < first.macs <= 0.8 * sweep.dense.macs
    report = load_report(swept[1] / "out" / "macs-0.6")
    assert (report.name, report.models.slim) == ("toy-macs-0.6", second)
    assert sweep.points[1].results[0].slim.latency_ms.median == report.results[0].slim.latency_ms.median


def test_budget_that_cannot_be_met_is_a_point_with_its_reason(swept: tuple[Swept, Path]) -> None:
    point = swept[0].sweep.points[2]
    assert point.failed is not None
    assert point.failed.startswith("budget.macs: expected at least ")
    assert (point.results, point.slim) == ((), None)


def test_sweep_writes_its_report_as_json_and_as_a_page(swept: tuple[Swept, Path]) -> None:
    found, folder = swept
    text = (folder / "out" / "sweep.json").read_text()
    assert text == to_json(found.sweep)
    assert json.loads(text)["schema"] == 1
    assert Sweep.model_validate_json(text) == found.sweep
    page = (folder / "out" / "sweep.html").read_text()
    assert 'href="macs-0.6/report.html"' in page
    assert "expected at least" in page


def test_what_points_share_is_made_once(swept: tuple[Swept, Path]) -> None:
    for name in ("macs-0.8", "macs-0.6"):
        again = made(swept[1] / "out" / name)
        assert not {"load", "sensitivity", "export dense", "evaluate dense, short fp32"} & again
        assert "evaluate slim, short fp32" in again


def test_sweep_of_other_budgets_reuses_points_and_sensitivities(swept: tuple[Swept, Path]) -> None:
    folder = swept[1]
    tasks = list[str]()
    sweep = run(folder, "0.7,0.8", progress=lambda task, done, total: tasks.append(task)).sweep
    assert [point.asked for point in sweep.points] == [0.7, 0.8]
    assert "sensitivity" not in tasks
    assert "macs 0.7: slim" in tasks
    assert "macs 0.8: slim" not in tasks
    assert (folder / "out" / "macs-0.6" / "report.json").is_file()


@pytest.mark.slow
def test_processes_make_the_same_bytes_and_nothing_is_timed_beside_them(
    swept: tuple[Swept, Path], tmp_path: Path
) -> None:
    tasks = list[str]()
    write_toy(tmp_path, plan=BUDGET)
    run(tmp_path, "0.8,0.6", jobs=2, progress=lambda task, done, total: tasks.append(task))
    for name in ("macs-0.8/model.safetensors", "macs-0.6/plan.json", "macs-0.6/onnx/fp32.onnx"):
        assert (tmp_path / "out" / name).read_bytes() == (swept[1] / "out" / name).read_bytes()
    making = [place for place, task in enumerate(tasks) if task.startswith("macs ")]
    timing = [place for place, task in enumerate(tasks) if task.startswith("timing ")]
    assert {tasks[place].split(":")[0] for place in making} == {"macs 0.8", "macs 0.6"}
    assert max(making) < min(timing)


def test_sweep_that_was_stopped_goes_on(tmp_path: Path) -> None:
    def stop(task: str, done: int, total: int) -> None:
        if task == "macs 0.8: export slim":
            raise KeyboardInterrupt

    write_toy(tmp_path, plan=BUDGET)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "0.8", progress=stop)
    tasks = list[str]()
    run(tmp_path, "0.8", progress=lambda task, done, total: tasks.append(task))
    assert "macs 0.8: export slim" in tasks
    assert not {"sensitivity", "export dense", "macs 0.8: slim"} & set(tasks)


def test_sweep_without_a_point_that_can_be_built_is_an_error(swept: tuple[Swept, Path]) -> None:
    with pytest.raises(PlanError, match=r"no point of the sweep can be built\. macs 0\.01: .*at least"):
        run(swept[1], "0.01,0.02")


def test_sweep_into_the_directory_of_a_build_is_refused(tmp_path: Path) -> None:
    write_toy(tmp_path, plan=BUDGET)
    Store.open(tmp_path / "out", "toy").work_path("any", {})
    with pytest.raises(OutputError, match=r"expected the build of 'toy-sweep', found that of 'toy'"):
        run(tmp_path, "0.8")


@pytest.fixture
def tasks(swept: tuple[Swept, Path], tmp_path: Path) -> list[Task]:
    """Return two points of the finished sweep, to be made again elsewhere."""
    recipe = load_recipe(str(swept[1] / "toy.toml"))
    points = read_points(recipe, "0.8,0.6", None, tmp_path / "elsewhere").points
    plan = plan_from_json(json.loads((swept[1] / "out" / "macs-0.6" / "plan.json").read_text()))
    return [Task(point, plan, ()) for point in points]


@pytest.mark.slow
def test_process_that_is_killed_is_a_point_with_its_reason(tasks: list[Task]) -> None:
    def kill(task: str, done: int, total: int) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    reasons = [str(error) for _, error in make_here(tasks, 2, kill) if error is not None]
    assert reasons
    assert "its process ended with signal 9, as when memory runs out: try a smaller --jobs" in reasons[0]


def test_point_whose_directory_is_in_use_ends_the_sweep(tasks: list[Task]) -> None:
    with (
        Store.open(tasks[1].point.folder, "toy-macs-0.6"),
        pytest.raises(OutputError, match=r"macs-0\.6: another edgevit build uses this directory"),
    ):
        list(make_here(tasks, 2, silent))
    assert not multiprocessing.active_children()
