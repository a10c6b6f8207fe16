"""`edgevit sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgevit.cli.guard import guarded
from edgevit.cli.output import Json, progress_bars
from edgevit.errors import EdgevitError, MeasurementError, RecipeError

if TYPE_CHECKING:
    from edgevit.sweep.run import Swept


@guarded
def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    budgets: Annotated[
        str,
        typer.Option(metavar="VALUES", help="Values for the recipe's [budget], for example 0.9,0.8,0.7."),
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="What they are of, where the recipe has no [budget]: macs, params, speedup or latency_ms.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|PATH", help="Build for this instead of the recipe's targets."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The sweep's directory; default: build/<name>-sweep.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Points made at once; default: one for every two cores."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Make the points on this Ray cluster; timed is on this machine."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Build RECIPE with several budgets, and show accuracy against latency."""
    from edgevit.recipe import check_targets, load_recipe, naming_recipe
    from edgevit.sweep.points import read_points
    from edgevit.tune.processes import is_launched

    if is_launched():
        raise RecipeError("edgevit sweep: started several times by a launcher. Start it once, with --jobs N.")
    loaded = load_recipe(recipe)
    folder = out or Path("build") / f"{loaded.recipe.name}-sweep"
    points = read_points(loaded, budgets, kind, folder)
    with naming_recipe(loaded.path):
        check_targets(loaded, tuple(target or ()))

    from edgevit.sweep.run import SweepOptions, run_sweep

    with progress_bars(json=json) as bars:
        swept = run_sweep(points, SweepOptions(tuple(target or ()), jobs, ray), bars)
    _show(swept, folder, json=json)
    _require_trusted(swept)


def _show(swept: Swept, folder: Path, *, json: bool) -> None:
    from edgevit.report.model import to_json
    from edgevit.report.terminal import render_sweep

    if json:
        typer.echo(to_json(swept.sweep), nl=False)
        return
    render_sweep(swept.sweep, Console())
    typer.echo(f"\nReport: {folder / 'sweep.html'}")


def _require_trusted(swept: Swept) -> None:
    """Fail where a timing cannot be trusted, or where every point misses a gate.

    Raises:
        EdgevitError: of the class of the first.
    """
    total = len(swept.sweep.points)
    untrusted = [error for error in swept.errors if isinstance(error, MeasurementError)]
    if untrusted:
        raise MeasurementError(
            f"the timing of {len(untrusted)} of {total} points cannot be trusted. Quieten the machine: the"
            " same command times those again, and nothing else."
        )
    built = sum(point.failed is None for point in swept.sweep.points)
    if len(swept.errors) == built:
        first: EdgevitError = swept.errors[0]
        raise type(first)(f"every point misses a gate; the first: {first}")
