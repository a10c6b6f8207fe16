from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from toy_build import write_images, write_toy

from edgevit.tune.processes import is_launched, on_all_processes

TUNE = '[tune]\nepochs = 2\nimages = 24\nbatch = 8\nprecision = "fp32"\n'
SEARCH = 'search = { images = 24, batch = 8, epochs = 2, precision = "fp32" }\n'
GATES = (
    f'[prune]\nmethod = "effiselect"\nweights = "searched"\nheads_drop = 0.34\nhidden_drop = 0.5\n{SEARCH}'
)
ROWS = f'[prune]\nmethod = "intra-head"\nmacs = 0.7\nalign = 4\n{SEARCH}'
ENDLESS = TUNE.replace("epochs = 2", "epochs = 1000000\ncheckpoint_steps = 1")

_PATIENCE_S = 300


def start(arguments: list[str], rank: int, port: int) -> subprocess.Popen[str]:
    """Start one of two processes of a build, as a launcher does."""
    env = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "edgevit", "build", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def start_two(recipe: Path, out: Path, *more: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [str(recipe), "--out", str(out), *more]
    return [start(arguments, rank, port) for rank in (0, 1)]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for both, and return their exit codes and what they printed."""
    try:
        texts = [process.communicate(timeout=_PATIENCE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def wait_for(found: Callable[[], object], processes: list[subprocess.Popen[str]]) -> None:
    while not found() and all(process.poll() is None for process in processes):
        time.sleep(0.05)


def test_process_alone_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert not is_launched()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not is_launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_launched()


def test_call_of_a_process_alone_is_made_once() -> None:
    calls: list[int] = []
    with on_all_processes(calls.append, 1):
        calls.append(2)
    assert calls == [2]


def build_on_two_and_on_one(recipe: Path, folder: Path) -> list[dict[str, Any]]:
    """Build into "two" and "one" of a folder, and return both reports."""
    for _ in range(5):
        (code, stdout, stderr), other = ends(start_two(recipe, folder / "two", "--json"))
        if code != 7:  # a busy machine: the next build takes only the times again
            break
    assert (code, other[0]) == (0, 0), stderr + other[2]
    assert other[1:] == ("", "")
    subprocess.run(
        [sys.executable, "-m", "edgevit", "build", recipe, "--out", folder / "one"],
        capture_output=True, timeout=_PATIENCE_S,
    )  # fmt: skip
    return [json.loads(stdout), json.loads((folder / "one" / "report.json").read_text())]


def assert_near(found: Path, wanted: Path) -> None:
    """Compare the tensors of two files but for the rounding of sums."""
    tensors = load_file(found)
    for name, value in load_file(wanted).items():
        assert float((tensors[name] - value).abs().max()) <= 1e-4 * max(1.0, float(value.abs().max()))


@pytest.mark.slow
def test_build_on_two_processes_reports_what_one_does(tmp_path: Path) -> None:
    two, one = build_on_two_and_on_one(write_toy(tmp_path, more=TUNE), tmp_path)
    assert (two["tune"]["processes"], one["tune"]["processes"]) == (2, 1)
    for key in ("loss_first", "loss_last"):
        assert two["tune"][key] == pytest.approx(one["tune"][key], rel=1e-4)
    assert two["results"][0]["slim"]["agreement"] == one["results"][0]["slim"]["agreement"]
    assert_near(tmp_path / "two" / "model.safetensors", tmp_path / "one" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("prune", [GATES, ROWS], ids=["gates", "row gates"])
def test_search_on_two_processes_learns_what_one_does(tmp_path: Path, prune: str) -> None:
    write_images(tmp_path / "evaluation", 24, seed=1)
    two, one = build_on_two_and_on_one(write_toy(tmp_path, plan=prune), tmp_path)
    found, wanted = two["searches"][0], one["searches"][0]
    assert (found["processes"], wanted["processes"]) == (2, 1)
    for key in ("loss_first", "loss_last"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-4)
    for file in ("scores.safetensors", "model.safetensors"):
        paths = [next((tmp_path / out).glob(f".edgevit/stages/search-*/{file}")) for out in ("two", "one")]
        assert_near(*paths)
    assert two["plan"] == one["plan"]


@pytest.mark.slow
def test_build_on_two_processes_fails_before_training_and_says_so_once(tmp_path: Path) -> None:
    first, other = ends(start_two(tmp_path / "absent.toml", tmp_path / "out"))
    assert (first[0], other[0]) == (2, 2)
    assert "absent.toml" in first[2]
    assert other[1:] == ("", "")


@pytest.mark.slow
def test_build_on_two_processes_whose_loss_is_no_number_says_so_once(tmp_path: Path) -> None:
    recipe = write_toy(tmp_path, more=TUNE.replace("epochs = 2", "epochs = 40\nlr = 1e30"))
    first, other = ends(start_two(recipe, tmp_path / "out"))
    assert (first[0], other[0]) == (1, 1)
    assert "training: the" in first[2]
    assert other[1:] == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_build_whose_process_is_killed_in_the_training_ends(tmp_path: Path, killed: int) -> None:
    recipe, work = write_toy(tmp_path, more=ENDLESS), tmp_path / "out" / ".edgevit" / "work"
    processes = start_two(recipe, tmp_path / "out")
    wait_for(lambda: list(work.glob("tune-*/*.safetensors")), processes)
    processes[killed].kill()
    found = ends(processes)
    assert found[killed][0] == -signal.SIGKILL
    code, stdout, stderr = found[1 - killed]
    assert (code, stdout) == (1, "")
    assert "another process of this build has ended" in stderr


@pytest.mark.slow
def test_build_on_two_processes_stopped_in_the_training_keeps_its_checkpoint(tmp_path: Path) -> None:
    recipe, work = write_toy(tmp_path, more=ENDLESS), tmp_path / "out" / ".edgevit" / "work"
    processes = start_two(recipe, tmp_path / "out")
    wait_for(lambda: list(work.glob("tune-*/*.safetensors")), processes)
    for process in processes:
        process.send_signal(signal.SIGINT)
    first, other = ends(processes)
    assert (first[0], other[0]) == (130, 130), first[2] + other[2]
    assert "the same command goes on" in first[2]
    assert list(work.glob("tune-*/*.safetensors"))
