from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_ssh import put_on_path, use_fake_ssh, write_script
from small_onnx import write_classifier

from edgevit.backends import get_backend
from edgevit.board import read_machine
from edgevit.errors import BackendError, BackendUnavailableError, RecipeError
from edgevit.measure.remote import Answered, take_on_board
from edgevit.measure.ssh import Board
from edgevit.progress import silent
from edgevit.target import Runtime, Target, Timing

BOARD = Board("board", python=sys.executable)
SSHD = shutil.which(
    "sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
)


def _target(runtime: Runtime) -> Target:
    timing = Timing(warmup_s=0.0, seconds=0.05, min_samples=20, max_samples=200)
    return Target(name="test", runtime=runtime, threads=1, timing=timing)


def _build(folder: Path, runtime: Runtime, **form: object) -> Path:
    folder.mkdir(exist_ok=True)
    onnx = write_classifier(folder / "m.onnx", **form)
    return get_backend(runtime).build(onnx, _target(runtime), "fp32", folder / "built")


def _take(*artefacts: Path, runtime: Runtime = "onnxruntime", board: Board = BOARD) -> Answered:
    return take_on_board(board, artefacts, _target(runtime), "fp32", silent)


def assert_samples(answered: Answered, artefacts: int) -> None:
    bursts = np.array(answered.taken.bursts_ns)
    assert bursts.shape[0] == len(answered.taken.first_ns) == artefacts
    assert bursts.shape[2] == answered.taken.runs_per_burst
    assert bursts[0].size >= 20
    assert bursts.min() > 0
    assert answered.device["threads"] == "1"


def _put_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> None:
    """Let the board import this instead of a runtime."""
    (folder / "modules").mkdir()
    (folder / "modules" / f"{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder / "modules"))


@pytest.fixture
def board_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let ssh be a fake; return the folder where the board has its temporary files."""
    return use_fake_ssh(tmp_path, monkeypatch)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_take_on_board_of_two_artefacts_gives_samples_of_both(
    tmp_path: Path, board_tmp: Path, runtime: Runtime
) -> None:
    artefact = _build(tmp_path, runtime)
    answered = _take(artefact, artefact, runtime=runtime)
    assert_samples(answered, artefacts=2)
    assert answered.machine.cpu == read_machine({}).cpu
    assert set(answered.machine.versions) == {runtime, "numpy"}
    assert list(board_tmp.iterdir()) == []


def test_take_on_board_of_a_dynamic_batch_with_external_data_sends_that_too(
    tmp_path: Path, board_tmp: Path
) -> None:
    assert_samples(_take(_build(tmp_path, "onnxruntime", batch="batch", external=True)), artefacts=1)
    assert list(board_tmp.iterdir()) == []


def test_take_on_board_tells_the_progress_of_sending_and_timing(tmp_path: Path, board_tmp: Path) -> None:
    told: list[tuple[str, int, int]] = []
    artefact = _build(tmp_path, "openvino")
    take_on_board(BOARD, [artefact], _target("openvino"), "fp32", lambda *step: told.append(step))
    assert [task for task, _, _ in told] == [
        "sending model.xml, kB",
        "sending model.bin, kB",
        "timing model.xml",
    ]
    assert all(done == total for _, done, total in told)


def test_take_on_board_of_other_input_shapes_names_both(tmp_path: Path, board_tmp: Path) -> None:
    one = _build(tmp_path / "one", "onnxruntime")
    four = _build(tmp_path / "four", "onnxruntime", batch=4)
    expected = r"four/.*: expected an input of shape \[1, 3, 2, 2\] as .*one/.* has, got \[4, 3, 2, 2\]"
    with pytest.raises(RecipeError, match=expected):
        _take(one, four)
    assert list(board_tmp.iterdir()) == []


def test_take_on_board_of_a_truncated_artefact_says_what_the_runtime_there_said(
    tmp_path: Path, board_tmp: Path
) -> None:
    good, broken = _build(tmp_path / "good", "openvino"), _build(tmp_path / "broken", "openvino")
    broken.write_text(broken.read_text()[:500])
    expected = r"broken/.*: did not load on ssh://board: OpenVINO 20.* The file \(500 bytes\) is truncated"
    with pytest.raises(BackendError, match=expected):
        _take(good, broken, runtime="openvino")
    assert list(board_tmp.iterdir()) == []


def test_take_on_board_of_an_artefact_without_its_weights_sends_nothing(
    tmp_path: Path, board_tmp: Path
) -> None:
    artefact = _build(tmp_path, "openvino")
    artefact.with_suffix(".bin").unlink()
    with pytest.raises(BackendError, match=r"model\.bin: expected a model file for openvino, found none"):
        _take(artefact, runtime="openvino")
    assert not (tmp_path / "ssh.txt").exists()


def test_take_on_board_without_numpy_gives_the_pip_command(tmp_path: Path, board_tmp: Path) -> None:
    bare = write_script(tmp_path / "python", f"exec '{sys.executable}' -S \"$@\"")
    expected = r"ssh://board: numpy: not installed .*/python -m pip install numpy onnxruntime\. .*--python"
    with pytest.raises(BackendUnavailableError, match=expected):
        _take(_build(tmp_path, "onnxruntime"), board=Board("board", python=str(bare)))


def test_take_on_board_without_the_runtime_gives_the_pip_command(
    tmp_path: Path, board_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put_module(tmp_path, monkeypatch, "openvino", "raise ImportError('No module named openvino')")
    expected = r"openvino: not installed .*\(No module named openvino\)\. .*pip install numpy openvino"
    with pytest.raises(BackendUnavailableError, match=expected):
        _take(_build(tmp_path, "openvino"), runtime="openvino")


def test_take_on_board_without_the_device_names_the_board(tmp_path: Path, board_tmp: Path) -> None:
    target = _target("openvino").model_copy(update={"device": "npu"})
    with pytest.raises(
        BackendUnavailableError, match=r"ssh://board: openvino: expected the device NPU, found CPU"
    ):
        take_on_board(BOARD, [_build(tmp_path, "openvino")], target, "fp32", silent)
    assert list(board_tmp.iterdir()) == []


def test_take_on_board_that_ends_in_the_middle_shows_its_last_words(
    tmp_path: Path, board_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = _build(tmp_path, "onnxruntime")
    _put_module(
        tmp_path,
        monkeypatch,
        "onnxruntime",
        "import os\n__version__ = '0'\ndef get_available_providers(): return []\n"
        "def SessionOptions():\n    os.write(2, b'Out of memory')\n    os._exit(137)\n",
    )
    with pytest.raises(
        BackendError, match=r"expected samples, .*\(exit code 137\)\. It said: Out of memory\."
    ):
        _take(artefact)


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Board]:
    """Let ssh speak with a real sshd that this test starts for each connection, with keys of its own."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("OpenSSH's sshd and ssh are not installed")
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    (tmp_path / "sshd_config").write_text(
        f"HostKey {tmp_path}/host_key\nAuthorizedKeysFile {tmp_path}/user_key.pub\nStrictModes no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n"
    )
    daemon = [SSHD, "-f", str(tmp_path / "sshd_config")]
    test = subprocess.run([*daemon, "-t"], capture_output=True, text=True)
    if test.returncode:
        pytest.skip(f"sshd does not start here: {test.stderr.strip()}")
    host_key = (tmp_path / "host_key.pub").read_text()
    (tmp_path / "known_hosts").write_text(f"board {host_key}")
    (tmp_path / "ssh_config").write_text(
        f"IdentityFile {tmp_path}/user_key\nIdentitiesOnly yes\nIdentityAgent none\n"
        f"UserKnownHostsFile {tmp_path}/known_hosts\nProxyCommand {' '.join(daemon)} -i\n"
    )
    real = write_script(
        tmp_path / "ssh-with-config" / "ssh",
        f"exec '{shutil.which('ssh')}' -F '{tmp_path}/ssh_config' \"$@\"",
    )
    put_on_path(real, monkeypatch)
    return lambda: Board("board", getpass.getuser(), python=sys.executable)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_take_on_board_over_a_real_ssh_gives_samples(
    tmp_path: Path, sshd: Callable[[], Board], runtime: Runtime
) -> None:
    artefact = _build(tmp_path, runtime)
    assert_samples(_take(artefact, artefact, runtime=runtime, board=sshd()), artefacts=2)


def test_take_on_board_over_a_real_ssh_that_refuses_the_key_shows_its_words(
    tmp_path: Path, sshd: Callable[[], Board]
) -> None:
    (tmp_path / "user_key").unlink()
    with pytest.raises(BackendUnavailableError, match=r"ssh says: .*Permission denied \(publickey\)"):
        _take(_build(tmp_path, "onnxruntime"), board=sshd())


def test_take_on_board_over_a_real_ssh_with_an_unknown_host_key_shows_its_words(
    tmp_path: Path, sshd: Callable[[], Board]
) -> None:
    (tmp_path / "known_hosts").write_text("")
    with pytest.raises(BackendUnavailableError, match=r"ssh says: .*Host key verification failed"):
        _take(_build(tmp_path, "onnxruntime"), board=sshd())
