"""Points made on a Ray cluster, one task each.

Its nodes have edgevit installed, and see the recipe, what it names and the sweep's directory under the same
paths as this machine.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

from edgevit.errors import BackendUnavailableError, EdgevitError, RecipeError
from edgevit.progress import Progress
from edgevit.sweep.make import Task, make_point
from edgevit.sweep.processes import Made

_HOST_PORT = re.compile(r"(?:ray://)?(?P<host>[^/:\s]+|\[[^\]]+\]):(?P<port>\d+)")
_KNOCK_S = 5.0
_NAMES = ("local", "auto")


def require_ray(address: str) -> None:
    """Make sure, before long work, that Ray is installed and that somebody listens at the address.

    Raises:
        RecipeError: that is no address.
        BackendUnavailableError: Ray is not installed, or nothing answers.
    """
    _import_ray()
    _knock(address)


def make_on_ray(address: str, tasks: Sequence[Task], jobs: int | None, progress: Progress) -> Iterator[Made]:
    """Make points on a cluster, and yield each when it is done.

    Args:
        address: host:port of the cluster's head, ray://host:port of its client server, "auto" for the one
            that runs on this machine, "local" for one that lives as long as the sweep.
        tasks: the points.
        jobs: how many at once; None: all.
        progress: hears of finished points.

    Raises:
        BackendUnavailableError: Ray is not installed, does not connect, or does not share this file system.
        EdgevitError: what would meet the other points too.
    """
    with _connected(address) as ray:
        at_once = min(jobs or len(tasks), len(tasks))
        threads = _threads(ray, at_once)
        gpus = 1 if tasks[0].point.recipe.recipe.tune and ray.cluster_resources().get("GPU", 0) >= 1 else 0
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(make_point)
        waiting = [replace(task, threads=threads) for task in reversed(tasks)]
        running: dict[object, Task] = {}
        done = 0
        while waiting or running:
            while waiting and len(running) < at_once:
                task = waiting.pop()
                running[remote.remote(task)] = task
            progress("making points", done, len(tasks))
            finished, _ = ray.wait(list(running), num_returns=1)
            task = running.pop(finished[0])
            yield task, _result(ray, finished[0], task)
            done += 1
        progress("making points", done, len(tasks))


def _result(ray: ModuleType, reference: object, task: Task) -> EdgevitError | None:
    try:
        failed: EdgevitError | None = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from error
    except ray.exceptions.RayError as error:
        return EdgevitError(f"its task was lost: {' '.join(str(error).split())[:300]}")
    if failed is None and not task.point.folder.is_dir():
        raise BackendUnavailableError(
            f"{task.point.folder}: the cluster made this point, and it is not here. The sweep's directory,"
            " the recipe and what it names have to be on a file system that all nodes share: see --out."
        )
    return failed


def _threads(ray: ModuleType, at_once: int) -> int:
    """Share the cluster's cores among the points that are made at once; a task has to fit on one node."""
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min(max(cores, default=1), sum(cores) // at_once))


@contextmanager
def _connected(address: str) -> Iterator[ModuleType]:
    """Connect with a cluster, and leave it at the end."""
    ray = _import_ray()
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        said = " ".join(str(error).split())[:300]
        raise BackendUnavailableError(f"--ray {address}: no connection ({said}). {_HELP}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


_HELP = (
    "Give host:port of a running cluster's head, auto for the one of this machine, or local; without --ray"
    " the points are made in processes of this machine."
)


def _import_ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise BackendUnavailableError(
            f"--ray: Ray is not installed ({error}). Install it with pip install 'edgevit[ray]', or leave"
            " --ray out: the points are then made in processes of this machine."
        ) from error
    module: ModuleType = ray
    return module


def _knock(address: str) -> None:
    """Make sure that somebody listens: Ray itself would try for a minute, and may end this process."""
    if address in _NAMES:
        return
    match = _HOST_PORT.fullmatch(address)
    if match is None:
        raise RecipeError(f"--ray {address}: expected an address, such as 10.0.0.5:6379. {_HELP}")
    try:
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), _KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise BackendUnavailableError(f"--ray {address}: nothing answers there ({error}). {_HELP}") from error
