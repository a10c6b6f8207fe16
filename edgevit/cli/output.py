"""How commands print: the option `--json`, progress bars, a build's report."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgevit.bars import Bars

if TYPE_CHECKING:
    from edgevit.report.model import Report

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def print_json(data: object) -> None:
    """Print an object as JSON."""
    typer.echo(json_.dumps(data, indent=1, ensure_ascii=False))


def progress_bars(*, json: bool) -> Bars:
    """Make progress bars on stderr, silent beside `--json`."""
    return Bars(Console(stderr=True), wanted=not json)


def show_report(report: Report, folder: Path, *, json: bool) -> None:
    """Print a build's report: as tables with the place of its page, or as JSON."""
    from edgevit.report.html import FILE_NAME
    from edgevit.report.model import to_json
    from edgevit.report.terminal import render

    if json:
        typer.echo(to_json(report), nl=False)
        return
    render(report, Console())
    typer.echo(f"\nReport: {folder / FILE_NAME}")
