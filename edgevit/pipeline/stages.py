"""Running the stages of a build: through the store, with what each has cost."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgevit.progress import Progress
from edgevit.report.model import StageFacts
from edgevit.store import JSON, Store


@dataclass(frozen=True)
class Stages:
    """The store of a build, who hears of progress, and what each stage has cost so far."""

    store: Store
    progress: Progress
    facts: list[StageFacts] = field(default_factory=list)

    def run(
        self,
        stage: str,
        key: Mapping[str, JSON],
        make: Callable[[Path], None],
        *,
        of: str = "",
        shared: bool = False,
    ) -> Path:
        """Run a stage through the store and note time, memory and whether the output was there.

        Args:
            stage: its name in the store.
            key: everything its output depends on.
            make: writes the output into a folder.
            of: what the stage was run for, in the report.
            shared: whether its output is also taken over from a build beside this one.
        """
        made = []
        name = f"{stage} {of}".rstrip()
        begin = time.perf_counter()

        def noted(folder: Path) -> None:
            made.append(folder)
            self.progress(name, 0, 1)
            make(folder)
            self.progress(name, 1, 1)

        folder = self.store.run(stage, key, noted, shared=shared)
        self.note(name, begin, reused=not made)
        return folder

    def note(self, stage: str, begin: float, *, reused: bool) -> None:
        """Note what a stage cost that began at `begin` on `time.perf_counter`."""
        seconds = round(time.perf_counter() - begin, 3)
        self.facts.append(
            StageFacts(name=stage, seconds=seconds, reused=reused, peak_rss_bytes=_peak_rss_bytes())
        )


def _peak_rss_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
