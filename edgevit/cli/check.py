"""`edgevit check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevit.cli.guard import guarded
from edgevit.cli.output import Json, print_json
from edgevit.errors import EdgevitError


@guarded
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A build directory.")],
    max_latency_ms: Annotated[float | None, typer.Option(help="Median latency of slim.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Measured, slim against dense.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Points of top-1 that slim may lose.")] = None,
    min_agreement: Annotated[float | None, typer.Option(help="Share of equal answers, 0 to 1.")] = None,
    json: Json = False,
) -> None:
    """Fail with an exit code of its own when a finished build misses a limit."""
    from edgevit.gates import require_gates, require_measured
    from edgevit.recipe import Gates
    from edgevit.report.model import load_report, unmeasured
    from edgevit.report.phrases import label
    from edgevit.schema import check_table

    limits = {
        "max_latency_ms": max_latency_ms,
        "min_speedup": min_speedup,
        "max_drop": max_drop,
        "min_agreement": min_agreement,
    }
    given = {name: limit for name, limit in limits.items() if limit is not None}
    gates = check_table(given, Gates, "check")
    if gates == Gates():
        raise typer.BadParameter("give at least one limit, for example --max-drop 1.0")
    found = load_report(folder)
    judged = [label(result) for result in found.results if result.chosen]
    waiting = unmeasured(found.kits, found.results)
    boards = sorted({result.target for result in found.results if result.on_board})
    accuracy = gates.max_drop is not None or gates.min_agreement is not None
    facts = {
        "name": found.name,
        "limits": given,
        "chosen": judged,
        "not_measured": list(waiting),
        "accuracy_not_judged": boards if accuracy else [],
    }
    try:
        require_measured(found.results, waiting, gates)
        require_gates(found.results, gates)
    except EdgevitError as error:
        if json:
            print_json({**facts, "kept": False, "why": str(error)})
        raise
    if json:
        print_json({**facts, "kept": True, "why": None})
    else:
        typer.echo(f"{found.name}: every limit is kept by {', '.join(judged)}")
        for target in waiting:
            typer.echo(
                f"{target} was not measured: no limit was judged for it. Run its kit, import its report."
            )
        for target in boards if accuracy else ():
            typer.echo(f"{target} was measured on its board, which knows no accuracy: that was not judged.")
