"""Progress bars with rate and remaining time, drawn by the command line while work reports how far it is."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_SHOW_AFTER_S = 1.0
_REDRAW_S = 0.25


class Bars:
    """Progress bars on stderr, each from its second second on; silent where stderr is no terminal.

    Nothing is drawn but between the steps of the work, so that bars do not disturb what is being timed.
    """

    def __init__(self, console: Console, *, wanted: bool) -> None:
        self._console = console
        self._wanted = wanted and console.is_terminal
        self._bars: RichProgress | None = None
        self._tasks: dict[str, tuple[TaskID, float]] = {}
        self._drawn = 0.0

    def __call__(self, task: str, done: int, total: int) -> None:
        """Move the bar of `task`; a bar that is full goes away."""
        if not self._wanted:
            return
        bars = self._bars = self._bars or _new_bars(self._console)
        now = time.monotonic()
        if task not in self._tasks:
            self._tasks[task] = (bars.add_task(task, total=total, visible=False), now)
        number, begin = self._tasks[task]
        full = done >= total
        # A task of one step moves no more until it is over: it is shown at once, or nobody would see it.
        due = total == 1 or now - begin > _SHOW_AFTER_S
        bars.update(number, completed=done, total=total, visible=due and not full)
        if full:
            bars.remove_task(number)
            del self._tasks[task]
        if full or now - self._drawn > _REDRAW_S:
            bars.refresh()
            self._drawn = now

    def __enter__(self) -> Self:
        """Return the bars."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the bars away."""
        if self._bars is not None:
            self._bars.stop()


def _new_bars(console: Console) -> RichProgress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.1f}/s" if task.speed else "", style="progress.data.speed")

    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
        console=console, transient=True, auto_refresh=False,
    )  # fmt: skip
    bars.start()
    return bars
