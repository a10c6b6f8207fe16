"""A build on several processes: the first does it, and the others join it wherever it trains.

A launcher (`accelerate launch`, `torchrun`) starts one command several times. The first process, the leader,
does everything that is done once; it alone writes. The others wait. Each training that the leader comes to
goes to them as well (`on_all_processes`), so a stage that trains knows nothing of processes. At its end the
leader tells them its exit code, and they end with it.

Nobody waits for the dead: a process that ends in the middle of a training closes its connections, and the
others fail at their next exchange; and a launcher ends them all when one fails.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from edgevit.errors import EdgevitError, TrainingError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_PATIENCE = timedelta(days=30)  # closed forms and timings take long, and meanwhile the others wait
_LEADER = 0


def is_launched() -> bool:
    """Say whether a launcher started this process as one of several; needs no torch."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


class _Call(NamedTuple):
    """What the leader asks the others to do."""

    function: Callable[..., object]
    arguments: tuple[object, ...]
    threads: int
    """With which torch computes."""


class Team:
    """All processes of a build."""

    _led: Team | None = None
    """The one that this process leads."""

    def __init__(self, group: ProcessGroup, rank: int) -> None:
        """Take over a group that `join` has made."""
        self._group = group
        self.leads = rank == _LEADER
        self._training = False
        if self.leads:
            Team._led = self

    @classmethod
    def join(cls) -> Team:
        """Connect to the other processes of the launcher, waiting until all are there."""
        import torch.distributed as dist
        from accelerate import PartialState

        from edgevit.gpu import CPU, torch_device

        rank = PartialState(cpu=torch_device() == CPU).process_index
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        assert isinstance(group, dist.ProcessGroup)  # it is a number where this process is not in it
        return cls(group, rank)

    def follow(self) -> int:
        """Join the leader's trainings until it ends, and return its exit code.

        Raises:
            EdgevitError: another process ended without a word.
        """
        import torch

        with _naming_losses():
            while isinstance(message := self._exchange(None), _Call):
                torch.set_num_threads(message.threads)
                try:
                    message.function(*message.arguments)
                except TrainingError:
                    continue  # raised by all processes alike: the leader says it, and how this ends
                except EdgevitError as error:
                    return error.exit_code
        assert isinstance(message, int)
        return message

    def end(self, code: int) -> None:
        """Tell the others that the build is over, and with which exit code."""
        import torch.distributed as dist

        Team._led = None
        if self._training:
            return  # they are in the middle of it, and learn it from the closed connection
        with contextlib.suppress(RuntimeError):  # nobody is left to be told
            self._exchange(code)
            dist.destroy_process_group()

    def start(self, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        """Let the others make a call that this process is about to make."""
        import torch

        self._exchange(_Call(function, arguments, torch.get_num_threads()))
        self._training = True

    def stop(self) -> None:
        """Note that the others have come to the end of that call."""
        self._training = False

    def _exchange(self, message: _Call | int | None) -> object:
        import torch.distributed as dist

        box = [message]
        dist.broadcast_object_list(box, src=_LEADER, group=self._group)
        return box[0]


@contextlib.contextmanager
def on_all_processes(function: Callable[..., object], *arguments: object) -> Iterator[None]:
    """Have the other processes of a launched build call `function` while the body does the same here.

    Elsewhere, and in those others, this does nothing.

    Args:
        function: found by its name in its module.
        arguments: of `function`, picklable.

    Raises:
        EdgevitError: another process has ended.
    """
    team = Team._led
    if team is None:
        yield
        return
    team.start(function, arguments)
    try:
        with _naming_losses():
            yield
    except TrainingError:
        team.stop()
        raise
    team.stop()


@contextlib.contextmanager
def _naming_losses() -> Iterator[None]:
    """Say in words that an exchange failed because another process is gone.

    Raises:
        EdgevitError: in place of what torch raises then.
    """
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        if not isinstance(error, DistError) and "gloo" not in str(error):
            raise
        raise EdgevitError(
            "another process of this build has ended; see what it said."
            " The same command goes on from the last checkpoint."
        ) from error
