"""`edgevit build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevit.cli.guard import guarded, launchable
from edgevit.cli.output import Json, progress_bars, show_report
from edgevit.errors import AccuracyGateError, LatencyGateError, MeasurementError


@launchable
@guarded
def build(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one (quickstart).")],
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|PATH", help="Build for this instead of the recipe's targets."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Build directory; default: build/<name>.")
    ] = None,
    depfile: Annotated[
        Path | None, typer.Option(metavar="F", help="Write what the build read, for Make and Ninja.")
    ] = None,
    json: Json = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Threads for slimming; default: all. The same N gives the same bytes."
        ),
    ] = None,
) -> None:
    """Make the slim model of RECIPE, build it for each target, and measure it."""
    from edgevit.recipe import check_targets, load_recipe, naming_recipe

    loaded = load_recipe(recipe)
    with naming_recipe(loaded.path):
        check_targets(loaded, tuple(target or ()))
    folder = out or Path("build") / loaded.recipe.name

    from edgevit.pipeline import BuildOptions
    from edgevit.pipeline import build as run
    from edgevit.pipeline.threads import compute_with
    from edgevit.report.model import load_report

    try:
        with compute_with(jobs), progress_bars(json=json) as bars:
            report = run(loaded, folder, BuildOptions(tuple(target or ()), depfile), bars)
    except (AccuracyGateError, LatencyGateError, MeasurementError):
        show_report(load_report(folder), folder, json=json)  # the report says what the gate found
        raise
    show_report(report, folder, json=json)
