"""Points made on this machine: one after the other, or several at once in processes of their own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from edgevit.errors import EdgevitError
from edgevit.progress import Progress
from edgevit.sweep.make import Task, make_point

Made = tuple[Task, EdgevitError | None]
"""A point, and why it cannot be built."""


def make_here(tasks: Sequence[Task], jobs: int | None, progress: Progress) -> Iterator[Made]:
    """Make points, `jobs` at once, and yield each when it is done.

    Args:
        tasks: the points.
        jobs: processes, which share the cores; None: one for every two cores.
        progress: hears of every step of every point.

    Raises:
        EdgevitError: what would meet the other points too; those that are being made are stopped.
    """
    cores = len(os.sched_getaffinity(0))
    at_once = min(jobs or max(1, cores // 2), len(tasks))
    if at_once <= 1:
        yield from ((task, make_point(task, _named(task, progress))) for task in tasks)
        return
    shared = [replace(task, threads=max(1, cores // at_once)) for task in tasks]
    yield from _in_processes(shared, at_once, progress)


@dataclass(frozen=True)
class _Done:
    """The last word of a process."""

    failed: EdgevitError | None = None
    """Why the point cannot be built."""
    raised: Exception | None = None
    """What ends the sweep."""


def _in_processes(tasks: Sequence[Task], at_once: int, progress: Progress) -> Iterator[Made]:
    waiting = deque(tasks)
    running: dict[Connection, tuple[Task, SpawnProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                connection, process = _start(waiting[0])
                running[connection] = waiting.popleft(), process
            for heard in wait(list(running)):
                assert isinstance(heard, Connection)
                task, process = running[heard]
                message = _receive(heard, process)
                if not isinstance(message, _Done):
                    _named(task, progress)(*message)
                    continue
                process.join()
                heard.close()
                del running[heard]
                if message.raised is not None:
                    raise message.raised
                yield task, message.failed
    finally:
        for connection, (_, process) in running.items():
            process.terminate()
            process.join()
            connection.close()


def _start(task: Task) -> tuple[Connection, SpawnProcess]:
    """Start a process; not by fork, which would copy the locks of threads that torch has started."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(there, task), daemon=True)
    process.start()
    there.close()  # else its end would not be noticed here
    return here, process


def _receive(connection: Connection, process: SpawnProcess) -> _Done | tuple[str, int, int]:
    try:
        message: _Done | tuple[str, int, int] = connection.recv()
    except EOFError:
        process.join()
        return _Done(failed=EdgevitError(_death(process.exitcode)))
    return message


def _death(code: int | None) -> str:
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    memory = ", as when memory runs out: try a smaller --jobs" if code == -signal.SIGKILL else ""
    return f"its process ended with {how}{memory}. The same command goes on from its finished stages."


def _work(connection: Connection, task: Task) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the sweep, which then ends this process
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        done = _Done(failed=make_point(task, lambda *step: connection.send(step)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the sweep raises it
        error.add_note(traceback.format_exc())
        done = _Done(raised=error)
    connection.send(done)


def _named(task: Task, progress: Progress) -> Progress:
    """Say whose steps they are."""
    return lambda what, done, total: progress(f"{task.point.label}: {what}", done, total)
