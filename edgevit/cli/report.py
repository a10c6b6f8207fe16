"""`edgevit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgevit.cli.guard import guarded
from edgevit.cli.output import Json, print_json, show_report
from edgevit.errors import AccuracyGateError, LatencyGateError, MeasurementError

Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Build directories.")]


@guarded
def report(
    folders: Folders,
    html: Annotated[
        Path | None, typer.Option(metavar="F", help="Write one HTML file with all of them.")
    ] = None,
    board: Annotated[
        Path | None,
        typer.Option("--import", metavar="F", help="Take in what a build kit found on its board."),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Show instead what each layer costs in int8.")] = False,
    json: Json = False,
) -> None:
    """Show what builds found, several side by side."""
    from edgevit.report.model import load_report
    from edgevit.report.terminal import render, render_comparison, render_int8

    if board is not None:
        if len(folders) != 1:
            raise typer.BadParameter(f"expected one build directory beside --import, got {len(folders)}.")
        _import_report(folders[0], board, json=json)
    reports = [load_report(folder) for folder in folders]
    if html is not None:
        from edgevit.report.html import write_html

        write_html(reports, html)
    if json:
        dumped = [one.model_dump(mode="json") for one in reports]
        print_json(dumped[0] if len(dumped) == 1 else {"reports": dumped})
    elif int8:
        for one in reports:
            render_int8(one, Console())
    elif len(reports) == 1:
        render(reports[0], Console())
    else:
        render_comparison(reports, Console())
    if html is not None and not json:
        typer.echo(f"\nReport: {html}")


def _import_report(folder: Path, board: Path, *, json: bool) -> None:
    """Take in a board's report; where it misses a gate, show what it says before the error."""
    from edgevit.pipeline.bring_back import bring_back
    from edgevit.report.model import load_report

    try:
        bring_back(folder, board)
    except (AccuracyGateError, LatencyGateError, MeasurementError):
        show_report(load_report(folder), folder, json=json)
        raise
