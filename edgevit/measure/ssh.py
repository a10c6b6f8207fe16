"""A Python on a board, reached by the system's OpenSSH, that runs `board.py` and answers in lines of JSON.

Host keys, keys, jumps and aliases are the business of the user's own ssh configuration; nothing is asked.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import edgevit.board
from edgevit.errors import BackendError, BackendUnavailableError, EdgevitError, RecipeError

Answer = dict[str, Any]
"""A line of JSON from `board.py`; `answer` says which of its few kinds it is."""

_CONNECT_S = 10
"""Seconds in which a board has to take the connection."""
_END_S = 5
"""Seconds in which it has to tidy up."""
_SILENCE_S = 900
"""Longest time between two answers: a large model is compiled there, or one burst of it runs."""
_WORDS = 600
"""Characters that a message repeats of what ssh or the board said; the last ones, where errors stand."""

# Says which Python is too old before it reads board.py, which an old one could not parse.
_START = (
    'import sys; sys.version_info >= (3, 8) or sys.exit("edgevit: Python " + sys.version.split()[0]);'
    ' source = open(0, "rb", closefd=False); exec(source.read(int(source.readline()))); main(source)'
)
_TOO_OLD = re.compile(r"edgevit: Python (\S+)")
_SSH_FAILED = 255  # ssh's own failures; its manual, EXIT STATUS
_NOT_FOUND = 127  # what shells answer for a program that is not there
_HOST = re.compile(
    r"ssh://(?:(?P<user>[^\s@/:-][^\s@/:]*)@)?"
    r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s@/:\[\]-][^\s@/:\[\]]*))(?::(?P<port>[0-9]{1,5}))?/?"
)


@dataclass(frozen=True)
class Board:
    """A machine that ssh reaches, and the Python on it that has NumPy and the runtime."""

    host: str
    """Name, address, or an alias of the ssh configuration."""
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    """Found as the user's shell finds it there; a relative path begins in the home directory."""

    def __str__(self) -> str:
        """Return the address as the user gives it."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{f'{self.user}@' if self.user else ''}{name}{f':{self.port}' if self.port else ''}"

    @property
    def login(self) -> list[str]:
        """Return the arguments with which ssh goes there."""
        port = ["-p", str(self.port)] if self.port else []
        return [*port, *(["-l", self.user] if self.user else []), self.host]


def parse_board(text: str, python: str) -> Board:
    """Read the address of a board, ssh://[user@]board[:port].

    Raises:
        RecipeError: `text` is no such address.
    """
    found = _HOST.fullmatch(text)
    port = int(found["port"] or 0) if found else 0
    if found is None or (found["port"] and not 0 < port < 65536):
        raise RecipeError(
            f"--host: expected ssh://[user@]board[:port], got {text}."
            " It takes no password and no path; whatever else ssh needs belongs to ~/.ssh/config."
        )
    # ssh begins in the home directory; in quotes, as it has to be sent, a tilde would be a folder's name.
    return Board(found["address"] or found["name"], found["user"], port or None, python.removeprefix("~/"))


class Connection:
    """What goes to `board.py` and what comes from it."""

    def __init__(self, board: Board, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.board = board
        self._process = process
        self._errors = errors
        self._strays: deque[bytes] = deque(maxlen=20)
        self._answered = False
        self._gave_up = False

    def send(self, data: bytes) -> None:
        """Send bytes; where they do not arrive, the next answer or its absence says why."""
        assert self._process.stdin is not None
        with self._watch(), suppress(BrokenPipeError):
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def send_line(self, data: Mapping[str, object]) -> None:
        """Send a line of JSON, as `send` does."""
        self.send(json.dumps(data).encode() + b"\n")

    def answer(self) -> Answer:
        """Wait for the next answer; lines that are none, such as those of a login script, are passed over.

        Raises:
            BackendUnavailableError: there was no way in, or the Python there is missing or too old.
            BackendError: the board ended or went silent.
        """
        assert self._process.stdout is not None
        with self._watch():
            for line in self._process.stdout:
                found = _read_answer(line)
                if found is not None:
                    self._answered = True
                    return found
                self._strays.append(line)
        raise self._why_it_ended()

    def close(self) -> int:
        """Send nothing more, which ends `board.py`; end ssh if that takes too long. Return its exit code."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """End ssh when the board is silent for too long, which ends whatever waits for it."""
        timer = threading.Timer(_SILENCE_S, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._gave_up = True
        self._process.kill()

    def _why_it_ended(self) -> EdgevitError:
        code = self.close()
        self._errors.seek(0)
        said = " ".join(b" ".join([*self._strays, self._errors.read()]).decode(errors="replace").split())
        words = (said[-_WORDS:] if said else "nothing").rstrip(".")
        board, python = self.board, self.board.python
        if self._gave_up:
            return BackendError(
                f"{board}: expected an answer within {_SILENCE_S:g} s, got none. Look whether the board hangs"
                f" or is out of memory. It said: {words}."
            )
        if self._answered:
            return BackendError(
                f"{board}: expected samples, the connection or the process there ended (exit code {code}). It"
                f" said: {words}. Where that explains nothing: was it killed for want of memory?"
            )
        if code == _SSH_FAILED:
            return BackendUnavailableError(
                f"{board}: expected a way in without a question, ssh says: {words}. See to it that this"
                f" works: ssh {shlex.join(board.login)} true. Keys are installed by ssh-copy-id."
            )
        if old := _TOO_OLD.search(said):
            return BackendUnavailableError(
                f"{board}: expected Python 3.8 or newer, {python} is {old[1]}."
                " Name a newer one with --python."
            )
        if code == _NOT_FOUND:
            return BackendUnavailableError(
                f"{board}: expected the program {python}, found none ({words}). Install Python 3.8 or newer"
                " there, or name the Python that is there with --python."
            )
        return BackendError(
            f"{board}: expected an answer in JSON, {python} ended with exit code {code} and said: {words}."
            f" Try there: {python} -c 'import numpy'."
        )


@contextmanager
def connect(board: Board) -> Iterator[Connection]:
    """Start `board.py` on a board; leaving the context ends it.

    Raises:
        BackendUnavailableError: ssh is not installed here.
    """
    options = ["BatchMode=yes", f"ConnectTimeout={_CONNECT_S}", "ServerAliveInterval=15"]
    command = [
        "ssh", "-T", *(word for option in options for word in ("-o", option)), *board.login,
        f"{shlex.quote(board.python)} -c {shlex.quote(_START)}",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        except FileNotFoundError as exc:
            raise BackendUnavailableError(
                "ssh: expected OpenSSH's client on this machine, found none. Get it from the system's"
                " packages (Debian, Ubuntu: apt install openssh-client)."
            ) from exc
        connection = Connection(board, process, errors)
        try:
            source = Path(edgevit.board.__file__).read_bytes()
            connection.send(f"{len(source)}\n".encode() + source)
            yield connection
        finally:
            connection.close()


def _read_answer(line: bytes) -> Answer | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "answer" in found else None
