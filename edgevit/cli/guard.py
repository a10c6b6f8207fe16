"""What stands around each command: errors in words, exit codes, quiet libraries, processes that help."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ParamSpec

import typer

from edgevit.errors import EdgevitError

if TYPE_CHECKING:
    from edgevit.tune.processes import Team

P = ParamSpec("P")

_TRACEBACK = "EDGEVIT_TRACEBACK"
_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def guarded(function: Callable[P, None]) -> Callable[P, None]:
    """Print errors in words and exit with their codes; keep the talk of libraries from the terminal."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with _guard():
            function(*args, **kwargs)

    return run


@contextlib.contextmanager
def _guard() -> Iterator[None]:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except EdgevitError as error:
        _complain(str(error))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        _complain("stopped. Stages that were finished are kept: the same command goes on from there.")
        raise typer.Exit(_INTERRUPTED) from error
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:  # the last stop before the user
        if isinstance(error, BrokenPipeError) and _reader_left():
            raise  # which typer takes as the end, quietly
        text = " ".join(str(error).split()) or "no message"
        hint = "" if os.environ.get(_TRACEBACK) else f" Run it again with {_TRACEBACK}=1 to see where."
        _complain(
            f"unexpected {type(error).__name__}: {text}. This is a fault of edgevit, please report it.{hint}"
        )
        raise typer.Exit(1) from error
    finally:
        logging.disable(before)


def _reader_left() -> bool:
    """Say whether whoever read stdout has gone, as `head` does when it has seen enough."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


def _follow(team: Team) -> int:
    try:
        return team.follow()
    except KeyboardInterrupt:  # the leader says what that means
        return _INTERRUPTED


def launchable(function: Callable[P, None]) -> Callable[P, None]:
    """Let the first of several processes that a launcher started run a command, and the others help it."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from edgevit.tune.processes import Team, is_launched

        if not is_launched():
            function(*args, **kwargs)
            return
        with _guard():
            team = Team.join()
        if not team.leads:
            with _guard():
                raise typer.Exit(_follow(team))
        code = 1
        try:
            function(*args, **kwargs)
            code = 0
        except typer.Exit as exit_:
            code = exit_.exit_code
            raise
        finally:
            team.end(code)  # after the message: a launcher may end this process as soon as another has ended

    return run


def _complain(message: str) -> None:
    if os.environ.get(_TRACEBACK):
        traceback.print_exc()
    typer.echo(f"edgevit: {message}", err=True)
