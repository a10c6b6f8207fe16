"""The command line: the only place that prints or exits; one module per command or two.

Commands import what they need when they run, so that `edgevit --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from edgevit.cli import build, check, inspect, measure, report, schema, sweep, targets
from edgevit.version import __version__

app = typer.Typer(
    help="Make a Vision Transformer smaller, and measure how much faster it really is on the device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 fine, 2 recipe or usage, 3 accuracy gate, 4 latency gate, 5 parity or export, "
    "6 runtime or device missing, 7 measurement untrusted, 1 anything else.",
)


def main() -> None:
    """Run the command line."""
    app(prog_name="edgevit")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make a Vision Transformer smaller, and measure how much faster it really is on the device."""


_COMMANDS = (
    build.build,
    sweep.sweep,
    inspect.inspect,
    inspect.init,
    measure.measure,
    report.report,
    check.check,
    targets.targets,
    schema.schema,
)
"""In the order of `edgevit --help`."""

for _command in _COMMANDS:
    app.command()(_command)
