from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fake_ssh import use_fake_ssh, write_script

from edgevit.errors import BackendError, BackendUnavailableError, EdgevitError, RecipeError
from edgevit.measure import ssh
from edgevit.measure.ssh import Board, connect, parse_board

HERE = Board("board", "me", 2222, sys.executable)


def _greet(board: Board) -> ssh.Answer:
    with connect(board) as connection:
        connection.send_line({"runtime": "onnxruntime", "device": "CPUExecutionProvider", "settings": {}})
        return connection.answer()


@pytest.mark.parametrize(
    ("text", "board"),
    [
        ("ssh://board", Board("board")),
        ("ssh://me@board.local:2222", Board("board.local", "me", 2222)),
        ("ssh://Alias_7/", Board("Alias_7")),
        ("ssh://me@[fe80::1]:22", Board("fe80::1", "me", 22)),
    ],
)
def test_parse_board_reads_an_address_and_writes_it_again(text: str, board: Board) -> None:
    assert parse_board(text, "python3") == board
    assert str(board) == text.removesuffix("/")


@pytest.mark.parametrize(
    "text",
    [
        "board",
        "http://board",
        "ssh://",
        "ssh://me@",
        "ssh://me:secret@board",
        "ssh://board/tmp",
        "ssh://board:0",
        "ssh://board:65536",
        "ssh://board:ssh",
        "ssh://-oProxyCommand=x",
        "ssh://-x@board",
        "ssh://a board",
    ],
)
def test_parse_board_of_something_else_shows_the_form(text: str) -> None:
    with pytest.raises(RecipeError, match=r"--host: expected ssh://\[user@\]board\[:port\], got ") as caught:
        parse_board(text, "python3")
    assert f"got {text}." in str(caught.value)


def test_parse_board_python_in_the_home_is_relative_to_it() -> None:
    assert parse_board("ssh://board", "~/venv/bin/python").python == "venv/bin/python"


def test_connect_asks_nothing_and_gives_up_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_ssh(tmp_path, monkeypatch)
    assert _greet(HERE)["answer"] == "installed"
    arguments = (tmp_path / "ssh.txt").read_text().split("\n")
    assert {"BatchMode=yes", "ConnectTimeout=10"} < set(arguments)
    assert arguments[arguments.index("-p") :][:5] == ["-p", "2222", "-l", "me", "board"]


def test_answer_passes_over_what_a_login_script_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_ssh(tmp_path, monkeypatch)
    chatty = write_script(tmp_path / "python", f"echo Welcome; echo '{{}}'; exec '{sys.executable}' \"$@\"")
    assert _greet(Board("board", python=str(chatty)))["answer"] == "installed"


@pytest.mark.parametrize(
    ("script", "kind", "text"),
    [
        (
            "echo 'me@board: Permission denied (publickey).' >&2; exit 255",
            BackendUnavailableError,
            r"ssh://me@board:2222: .*ssh says: me@board: Permission denied \(publickey\)\."
            r" .*works: ssh -p 2222 -l me board true",
        ),
        (
            "echo 'python3: command not found' >&2; exit 127",
            BackendUnavailableError,
            r"expected the program .*python.*, found none \(python3: command not found\)",
        ),
        (
            "echo 'edgevit: Python 3.6.9' >&2; exit 1",
            BackendUnavailableError,
            r"expected Python 3\.8 or newer, .* is 3\.6\.9\. Name a newer one with --python",
        ),
        (
            "echo 'This account is not available.'; exit 1",
            BackendError,
            r"expected an answer in JSON, .* exit code 1 and said: This account is not available\.",
        ),
        ("exit 0", BackendError, r"expected an answer in JSON, .* said: nothing\."),
    ],
    ids=["refused", "no-python", "old-python", "no-json", "silent"],
)
def test_answer_that_does_not_come_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, kind: type[EdgevitError], text: str
) -> None:
    use_fake_ssh(tmp_path, monkeypatch, script)
    with pytest.raises(kind, match=text) as caught:
        _greet(HERE)
    assert type(caught.value) is kind


def test_answer_of_a_board_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_ssh(tmp_path, monkeypatch, "exec 3>&1 cat > /dev/null")  # 3: stdout stays open
    monkeypatch.setattr(ssh, "_SILENCE_S", 0.2)
    with pytest.raises(BackendError, match=r"expected an answer within 0\.2 s, got none\. Look whether"):
        _greet(HERE)


def test_connection_that_breaks_after_an_answer_is_no_missing_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_ssh(
        tmp_path, monkeypatch, """echo '{"answer": "installed"}'; echo 'Connection reset' >&2; exit 255"""
    )
    with connect(HERE) as connection:
        assert connection.answer() == {"answer": "installed"}
        with pytest.raises(
            BackendError, match=r"connection or the process .*\(exit code 255\).* Connection reset"
        ):
            connection.answer()


def test_connect_without_ssh_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(BackendUnavailableError, match=r"found none\. .*apt install openssh-client"),
        connect(HERE),
    ):
        pass
