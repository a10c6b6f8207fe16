from __future__ import annotations

import socket
import sys
import types
from pathlib import Path

import pytest
from toy_build import write_toy

from edgevit.errors import BackendUnavailableError, RecipeError
from edgevit.recipe import load_recipe
from edgevit.sweep.on_ray import require_ray
from edgevit.sweep.points import read_points
from edgevit.sweep.run import SweepOptions, run_sweep


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray seem to be installed."""
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))


def test_ray_that_is_not_installed_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailableError, match=r"Ray is not installed .*pip install 'edgevit\[ray\]'"):
        require_ray("local")


@pytest.mark.usefixtures("fake_ray")
def test_address_that_is_none_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"--ray here: expected an address, such as 10\.0\.0\.5:6379"):
        require_ray("here")


@pytest.mark.usefixtures("fake_ray")
def test_address_at_which_nothing_answers_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        require_ray(f"127.0.0.1:{port}")
        require_ray(f"ray://127.0.0.1:{port}")
    with pytest.raises(BackendUnavailableError, match=rf"--ray 127\.0\.0\.1:{port}: nothing answers there"):
        require_ray(f"127.0.0.1:{port}")


@pytest.mark.slow
def test_points_made_on_a_local_ray_are_those_of_processes(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'edgevit[ray]'")
    found = {}
    for name, options in (("ray", SweepOptions(ray="local")), ("here", SweepOptions(jobs=1))):
        folder = tmp_path / name
        write_toy(folder, plan="[budget]\nmacs = 0.6\n")
        tasks = list[str]()
        points = read_points(load_recipe(str(folder / "toy.toml")), "0.8,0.6,0.01", None, folder / "out")
        run_sweep(points, options, lambda task, done, total, tasks=tasks: tasks.append(task))
        assert ("making points" in tasks) == (name == "ray")
        assert "slim" not in tasks  # what was made there is not made here again
        files = ("macs-0.8/plan.json", "macs-0.6/plan.json", "macs-0.6/model.safetensors")
        found[name] = [(folder / "out" / file).read_bytes() for file in files]
    assert found["ray"] == found["here"]
