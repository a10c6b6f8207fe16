"""A fake ssh that runs the command on this machine, to test control flow; it encrypts and reaches nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def put_on_path(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def use_fake_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str | None = None) -> Path:
    """Put a fake ssh on the PATH, and return the folder where what it starts has its temporary files.

    It notes its arguments in `folder/ssh.txt`. `script` replaces running the command.
    """
    temporary = folder / "board-tmp"
    temporary.mkdir()
    run = f"for command; do :; done\nexport TMPDIR='{temporary}'\nexec sh -c \"exec $command\""
    note = f"printf '%s\\n' \"$@\" > '{folder}/ssh.txt'"
    put_on_path(write_script(folder / "fake-ssh" / "ssh", f"{note}\n{script or run}"), monkeypatch)
    return temporary
