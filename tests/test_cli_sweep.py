from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from toy_build import write_toy
from typer.testing import CliRunner

from edgevit.cli import app
from edgevit.report.sweep import Sweep

BUDGET = "[budget]\nmacs = 0.6\n"


def sweep(*args: str | Path) -> Result:
    """Run the command; where a busy machine made a timing untrusted, it is taken again."""
    for _ in range(10):
        result = CliRunner().invoke(app, ["sweep", *map(str, args)])
        if result.exit_code != 7:
            break
    return result


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the toy recipe and, in `out`, a sweep of it."""
    folder = tmp_path_factory.mktemp("toy")
    recipe = write_toy(folder, plan=BUDGET)
    result = sweep(recipe, "--budgets", "0.6,0.01", "--out", folder / "out", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    (folder / "stdout.txt").write_text(result.stdout)
    return folder


def test_sweep_prints_the_table_and_the_path_of_the_page(toy: Path) -> None:
    text = (toy / "stdout.txt").read_text()
    assert "macs 0.01 was not built: budget.macs: expected at least" in " ".join(text.split())
    assert str(toy / "out" / "sweep.html") in text


def test_sweep_json_prints_the_object_and_nothing_else(toy: Path) -> None:
    result = sweep(toy / "toy.toml", "--budgets", "0.6,0.01", "--out", toy / "out", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (toy / "out" / "sweep.json").read_text()
    assert [point.asked for point in Sweep.model_validate_json(result.stdout).points] == [0.6, 0.01]


def test_gate_that_every_point_misses_ends_with_its_code_after_the_report(toy: Path) -> None:
    recipe = write_toy(toy, plan=BUDGET, more="[gates]\nmax_latency_ms = 1e-9\n")
    result = sweep(recipe, "--budgets", "0.6", "--out", toy / "out", "--json")
    write_toy(toy, plan=BUDGET)
    assert result.exit_code == 4
    assert json.loads(result.stdout)["points"][0]["missed"].startswith("latency gate missed: short fp32")
    assert result.stderr.startswith("edgevit: every point misses a gate; the first: latency gate missed")


@pytest.mark.parametrize(
    ("plan", "args", "message"),
    [
        (BUDGET, ["--budgets", ""], "--budgets: expected at least one value"),
        (BUDGET, ["--budgets", "0.8,1.5"], "budget.macs: expected a number < 1.0 or text, got 1.5"),
        ("", ["--budgets", "0.8"], "budget: missing; the values of --budgets take the place of its value"),
        (BUDGET, ["--budgets", "0.8", "--target", "nowhere"], 'no target is named "nowhere"'),
    ],
)
def test_bad_input_exits_with_2_and_leaves_no_folder(
    tmp_path: Path, plan: str, args: list[str], message: str
) -> None:
    result = sweep(write_toy(tmp_path, plan=plan), *args, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_cluster_that_does_not_answer_exits_with_6_before_any_work(tmp_path: Path) -> None:
    recipe = write_toy(tmp_path, plan=BUDGET)
    result = sweep(recipe, "--budgets", "0.8", "--ray", "127.0.0.1:1", "--out", tmp_path / "out")
    assert result.exit_code == 6
    assert "--ray" in result.stderr
    assert not (tmp_path / "out").exists()


def test_sweep_under_a_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = sweep(write_toy(tmp_path, plan=BUDGET), "--budgets", "0.8")
    assert result.exit_code == 2
    assert "started several times by a launcher" in result.stderr
