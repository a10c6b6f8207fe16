"""`edgevit targets`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from edgevit.cli.guard import guarded
from edgevit.cli.output import Json, print_json
from edgevit.errors import BackendUnavailableError

if TYPE_CHECKING:
    from edgevit.backends.readiness import Readiness
    from edgevit.target import Target


@guarded
def targets(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|PATH]...", help="Look at these alone; default: all that ship."),
    ] = None,
    json: Json = False,
) -> None:
    """Say which targets this machine can run, in which precisions, and how to get what is missing.

    Exits with 6 where a target that was named can run in none of its precisions.
    """
    from edgevit.backends.readiness import read_readiness
    from edgevit.shipped import shipped_names
    from edgevit.target import load_target

    loaded = [load_target(name, Path()) for name in names or shipped_names("targets")]
    states = [(target, read_readiness(target)) for target in loaded]
    if json:
        print_json({"targets": [_target_json(*state) for state in states]})
    else:
        _show_targets(states)
    if names and not all(readiness.runs for _, readiness in states):
        raise typer.Exit(BackendUnavailableError.exit_code)


def _target_json(target: Target, readiness: Readiness) -> dict[str, object]:
    return {
        "name": target.name,
        "description": target.description,
        "runtime": target.runtime,
        "device": target.device,
        "versions": dict(readiness.versions),
        "precisions": [
            {"precision": precision, "ready": missing is None, "missing": missing}
            for precision, missing in readiness.missing.items()
        ],
    }


def _show_targets(states: Sequence[tuple[Target, Readiness]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in ("target", "here", "runtime", "device", "what it is"):
        table.add_column(header, overflow="fold")
    for target, readiness in states:
        lacking = "by kit" if target.device == "board" else "missing"
        here = [f"{one} {lacking if missing else 'ready'}" for one, missing in readiness.missing.items()]
        # OpenVINO says 2026.4.1-22982-e213a147257-releases/2026/4; the report has all of it.
        versions = [f"{library} {version.split('-')[0]}" for library, version in readiness.versions.items()]
        cells = (target.name, "\n".join(here), "; ".join(versions) or f"{target.runtime} {lacking}")
        table.add_row(*map(Text, (*cells, target.device, target.description)))
    Console().print(table)
    for reason, places in _reasons(states).items():
        typer.echo(f"\n{'; '.join(places)}: {reason}")


def _reasons(states: Sequence[tuple[Target, Readiness]]) -> dict[str, list[str]]:
    """Return what is missing, each reason once, and of which targets and precisions."""
    found: dict[str, list[str]] = {}
    for target, readiness in states:
        for reason, precisions in readiness.reasons().items():
            found.setdefault(reason, []).append(f"{target.name} {', '.join(precisions)}")
    return found
