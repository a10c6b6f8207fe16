"""Keep what the benchmarks measured: docs/benchmarks.json holds it, docs/benchmarks.md shows it.

    python tools/bench/record.py      # writes docs/benchmarks.md anew from docs/benchmarks.json

A script opens a `Notebook` before it measures and writes rows into sections as it gets them. A row replaces
the one of its name in its section. Every row keeps the run that measured it: command, time, machine,
load, versions, commit. What the page says around the tables is in sections.toml.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import edgevit
from edgevit.board import read_conditions, read_machine
from edgevit.disk import atomic_write

ROOT = Path(__file__).resolve().parents[2]
JSON_FILE = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"

_LIBRARIES = ("numpy", "onnx", "onnxruntime", "openvino", "timm", "torch")
_FLAGS = {  # what decides which kernels a runtime picks, by the kernel's name for it
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "bf16": ("avx512_bf16",),
    "amx": ("amx_tile",),
}

_PLACES = ("--keep", "--out")
"""Options of the scripts that say where files are kept."""


@dataclass(frozen=True)
class Section:
    """One table of the page."""

    key: str
    title: str
    wanted: int
    """How many figures a complete run has to reach."""
    says: str
    """What was measured, for a reader who did not run it."""
    command: str
    """What fills it."""


def _load_page() -> tuple[str, tuple[Section, ...]]:
    data = tomllib.loads(Path(__file__).with_name("sections.toml").read_text())
    return data["head"], tuple(Section(**section) for section in data["section"])


_HEAD, SECTIONS = _load_page()


@dataclass(frozen=True)
class Bound:
    """The figure to reach; equal ends ask for that very number, to the digits shown."""

    low: float | None = None
    high: float | None = None

    def met(self, figure: Figure) -> bool:
        """Say whether a figure reaches it."""
        if self.low is not None and self.low == self.high:
            return float(f"{figure.value:{figure.form}}") == self.low
        return (self.low is None or figure.value >= self.low) and (
            self.high is None or figure.value <= self.high
        )

    def __str__(self) -> str:
        if self.low is None:
            return f"<= {self.high:g}"
        if self.high is None:
            return f">= {self.low:g}"
        return f"= {self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Figure:
    """A measured value, with its 95 % interval and the figure to reach where there are such."""

    value: float
    form: str
    """Format of the value, such as ".2f"."""
    interval: tuple[float, float] | None = None
    bound: Bound | None = None
    counts: bool = True
    """False where the value stands for nothing, such as an untrusted timing: then it meets no bound."""

    @property
    def met(self) -> bool | None:
        """Whether the bound is reached; None without one."""
        return None if self.bound is None else self.counts and self.bound.met(self)

    def __str__(self) -> str:
        text = f"{self.value:{self.form}}"
        if self.interval:
            text += f" ({self.interval[0]:{self.form}} to {self.interval[1]:{self.form}})"
        if self.bound:
            text += f"; wanted {self.bound}: " + ("met" if self.met else "**not met**")
        return text


Cells = Mapping[str, Figure | str]


@dataclass(frozen=True)
class Row:
    """One line of a table: cells by the name of their column."""

    name: str
    cells: Cells


@dataclass(frozen=True)
class Run:
    """What a row must say of the run that measured it."""

    command: str
    started: str
    commit: str
    machine: str
    load_before: float | None
    load_after: float | None
    versions: dict[str, str]

    def is_of(self, other: Run) -> bool:
        """Say whether both are one run, which may have gone on since."""
        return (self.command, self.started) == (other.command, other.started)


@dataclass(frozen=True)
class Entry:
    """A row and its run, as they are kept."""

    row: Row
    run: Run


Entries = dict[str, list[Entry]]


class Notebook:
    """Where a script writes its rows; open it before anything is measured."""

    def __init__(self, *, quick: bool) -> None:
        self._quick = quick
        self._run = _start_run()

    def write(self, section: str, rows: Sequence[Row]) -> None:
        """Print rows, and keep them unless this is a quick run."""
        title = next(one.title for one in SECTIONS if one.key == section)
        print(f"\n{title}\n\n{_table(rows, [''] * len(rows))}", flush=True)
        if self._quick:
            print("(quick: nothing is recorded)", flush=True)
            return
        run = dataclasses.replace(self._run, load_after=read_conditions().load_1min)
        entries = read_entries()
        for row in rows:
            _put(entries.setdefault(section, []), Entry(row, run))
        for kept in entries.values():
            kept[:] = [Entry(entry.row, run) if entry.run.is_of(run) else entry for entry in kept]
        _write_files(entries)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every benchmark has."""
    parser.add_argument("--threads", type=int, default=2, help="of torch and of the runtimes")
    parser.add_argument(
        "--quick", action="store_true", help="a small run that shows it works; records nothing"
    )


def read_entries() -> Entries:
    """Read what was recorded so far, by section."""
    if not JSON_FILE.is_file():
        return {}
    sections = json.loads(JSON_FILE.read_text())["sections"]
    return {key: [_entry_from_json(entry) for entry in kept] for key, kept in sections.items()}


def page_text(entries: Entries) -> str:
    """Return the page."""
    parts = [_HEAD, "## At a glance\n\n" + _glance(entries)]
    parts += [_section_text(section, entries.get(section.key, [])) for section in SECTIONS]
    return "\n".join(parts)


def _put(kept: list[Entry], entry: Entry) -> None:
    for index, old in enumerate(kept):
        if old.row.name == entry.row.name:
            kept[index] = entry
            return
    kept.append(entry)


def _write_files(entries: Entries) -> None:
    sections = {
        section.key: [_entry_to_json(entry) for entry in entries[section.key]]
        for section in SECTIONS
        if section.key in entries
    }
    atomic_write(JSON_FILE, json.dumps({"schema": 1, "sections": sections}, indent=1) + "\n")
    atomic_write(PAGE, page_text(entries))


def _glance(entries: Entries) -> str:
    lines = ["| what | wanted figures | met | not met | not run | measured |", "|---|---|---|---|---|---|"]
    for section in SECTIONS:
        kept = entries.get(section.key, [])
        mets = [cell.met for entry in kept for cell in _figures(entry.row) if cell.met is not None]
        days = ", ".join(sorted({entry.run.started[:10] for entry in kept})) or "**not run**"
        wanted = max(section.wanted, len(mets))
        counts = (wanted, sum(mets), len(mets) - sum(mets), wanted - len(mets))
        lines.append(f"| {section.title} | {' | '.join(map(str, counts))} | {days} |")
    return "\n".join(lines) + "\n"


def _figures(row: Row) -> Iterable[Figure]:
    return (cell for cell in row.cells.values() if isinstance(cell, Figure))


def _section_text(section: Section, kept: list[Entry]) -> str:
    head = f"## {section.title}\n\n{section.says}\n\n"
    if not kept:
        return f"{head}Not run. `{section.command}`\n"
    runs: list[Run] = []
    for entry in kept:
        if entry.run not in runs:
            runs.append(entry.run)
    marks = [str(runs.index(entry.run) + 1) if len(runs) > 1 else "" for entry in kept]
    table = _table([entry.row for entry in kept], marks)
    return f"{head}{table}\n" + "".join(
        _run_text(run, str(number) if len(runs) > 1 else "") for number, run in enumerate(runs, start=1)
    )


def _table(rows: Sequence[Row], marks: Sequence[str]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row.cells))
    last = ["run"] if any(marks) else []
    lines = ["| " + " | ".join(["", *columns, *last]) + " |", "|---" * (1 + len(columns) + len(last)) + "|"]
    for row, mark in zip(rows, marks, strict=True):
        cells = [row.name, *(str(row.cells.get(column, "")) for column in columns), *([mark] if last else [])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _run_text(run: Run, mark: str) -> str:
    load = f"{_number(run.load_before)} before, {_number(run.load_after)} after"
    libraries = ", ".join(f"{name} {found}" for name, found in run.versions.items())
    return (
        f"- Run{f' {mark}' if mark else ''}: `{run.command}`, {run.started}, commit {run.commit}."
        f" {run.machine}; load average {load}. {libraries}.\n"
    )


def _number(load: float | None) -> str:
    return "unknown" if load is None else f"{load:.2f}"


def _start_run() -> Run:
    return Run(
        command=command_text(Path(sys.argv[0]), sys.argv[1:]),
        started=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        commit=_commit(),
        machine=_machine_text(),
        load_before=read_conditions().load_1min,
        load_after=None,
        versions={"edgevit": edgevit.__version__} | {name: version(name) for name in _LIBRARIES},
    )


def command_text(script: Path, arguments: Sequence[str]) -> str:
    """Return the command that measures the same elsewhere: nothing in it is a place on this machine.

    Args:
        script: what was run.
        arguments: given to it; those of `_PLACES` change no figure and are left out.
    """
    told = ["python", _portable(str(script.resolve()))]
    left = iter(arguments)
    for argument in left:
        if argument in _PLACES:
            next(left, None)
        elif argument.partition("=")[0] not in _PLACES:
            told.append(_portable(argument))
    return shlex.join(told)


def _portable(argument: str) -> str:
    """Return a path as the checkout has it, one outside by its name alone, and anything else as it is."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _commit() -> str:
    """Return the commit, and whether code differed from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True)
        code = ["edgevit", "targets", "tools", "pyproject.toml"]
        changes = subprocess.run([*git, "status", "--porcelain", *code], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"
    return head.stdout.decode().strip() + (" with uncommitted changes" if changes.stdout.strip() else "")


def _machine_text() -> str:
    machine = read_machine({})
    cores = len(machine.affinity) if machine.affinity else machine.cores
    flags = [name for name, names in _FLAGS.items() if any(flag in machine.flags for flag in names)]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    name = f"{machine.cpu or 'unknown CPU'} ({', '.join(flags) or 'no vector flags'})"
    return f"{name}, {cores} cores, {memory:.0f} GB"


def _entry_to_json(entry: Entry) -> dict[str, Any]:
    cells = {
        column: {**dataclasses.asdict(cell), "met": cell.met} if isinstance(cell, Figure) else cell
        for column, cell in entry.row.cells.items()
    }
    return {"name": entry.row.name, "cells": cells, "run": dataclasses.asdict(entry.run)}


def _entry_from_json(data: Mapping[str, Any]) -> Entry:
    cells: dict[str, Figure | str] = {}
    for column, cell in data["cells"].items():
        if isinstance(cell, str):
            cells[column] = cell
            continue
        interval = tuple(cell["interval"]) if cell["interval"] else None
        bound = Bound(**cell["bound"]) if cell["bound"] else None
        cells[column] = Figure(cell["value"], cell["form"], interval, bound, cell["counts"])
    return Entry(Row(data["name"], cells), Run(**data["run"]))


if __name__ == "__main__":
    _write_files(read_entries())
