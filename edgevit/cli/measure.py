"""`edgevit measure`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevit.cli.guard import guarded
from edgevit.cli.output import Json, print_json, progress_bars
from edgevit.errors import MeasurementError

if TYPE_CHECKING:
    from edgevit.pipeline.timing import Timed

_BUSY = 0.5  # load average of each core from which a machine was not quiet


@guarded
def measure(
    artefact: Annotated[
        Path, typer.Argument(metavar="ARTEFACT|DIR", help="An artefact, its folder, or a build directory.")
    ],
    target: Annotated[str, typer.Option(metavar="NAME|PATH", help="The target to measure on.")],
    host: Annotated[
        str | None,
        typer.Option(metavar="ssh://[USER@]BOARD[:PORT]", help="Measure there instead of on this machine."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="The reference of the speed-up; of a build: dense.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Default: the build's choice, the name of the artefact's folder, the target's first."
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="With --host: the Python there that has the runtime; default: python3."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Time an artefact on this machine or on a board, alone or interleaved with another."""
    from edgevit.measure.ssh import parse_board
    from edgevit.pipeline.timing import choose_artefacts, time_here, time_on_board
    from edgevit.target import load_target

    if python is not None and host is None:
        raise typer.BadParameter("--python names the Python of a board: give its --host, too")
    board = parse_board(host, python or "python3") if host is not None else None
    loaded = load_target(target, Path())
    chosen = choose_artefacts(artefact, against, loaded, precision)
    with progress_bars(json=json) as bars:
        timed = (
            time_here(chosen, loaded, bars) if board is None else time_on_board(board, chosen, loaded, bars)
        )
    _show_times(timed, loaded.name, json=json)
    if timed.found.verdict == "untrusted":
        raise MeasurementError(f"timing cannot be trusted: {timed.found.why}.")


def _show_times(timed: Timed, target: str, *, json: bool) -> None:
    if json:
        print_json(_times_json(timed, target))
        return
    found, chosen = timed.found, timed.chosen
    mine = found.candidate or found.reference
    rows = [(chosen.artefact, mine)]
    if chosen.against is not None and found.candidate is not None:
        rows.insert(0, (chosen.against, found.reference))
    for path, times_ms in rows:
        typer.echo(
            f"{path}: median {times_ms.median:.4g} ms ({times_ms.low:.4g}-{times_ms.high:.4g}),"
            f" p90 {times_ms.p90:.4g}, p99 {times_ms.p99:.4g}, {len(times_ms.samples_ms)} samples"
        )
    if found.speedup is not None:
        speedup = found.speedup
        interval = f"{speedup.low:.3f}-{speedup.high:.3f}"
        typer.echo(f"speed-up {speedup.value:.3f}x ({interval}), {target} {chosen.precision}")
    typer.echo(f"on {timed.host or 'this machine'}: {', '.join(_machine_facts(timed))}")
    load, cores = timed.conditions[0].load_1min, timed.machine.cores
    if load is not None and cores is not None and load > _BUSY * cores:
        typer.echo(
            f"Warning: other programs were running, the load was {load:.1f} on {cores} cores before timing."
            " Time it again when they are done."
        )
    typer.echo(f"{found.verdict}: {found.why}")


def _machine_facts(timed: Timed) -> Iterator[str]:
    """Say in a few words what the machine is and how it was; what it does not show is left out."""
    machine, after = timed.machine, timed.conditions[1]
    yield machine.cpu or timed.device.get("name", "unknown CPU")
    yield f"{timed.device['threads']} threads of {machine.cores} cores"
    yield from (f"{library} {version.split('-')[0]}" for library, version in machine.versions.items())
    yield f"Python {machine.python}"
    if machine.governor is not None:
        yield f"governor {machine.governor}"
    if after.load_1min is not None:
        yield f"load {after.load_1min:g}"
    if after.temperature_c is not None:
        yield f"{after.temperature_c:g} °C"


def _times_json(timed: Timed, target: str) -> dict[str, object]:
    """Say in the words of report.json what timing found."""
    from edgevit.pipeline.candidate import report_latency

    found, ratio, chosen = timed.found, timed.found.speedup, timed.chosen
    mine = report_latency(found.candidate or found.reference)
    reference = report_latency(found.reference) if found.candidate is not None else None
    before, after = map(asdict, timed.conditions)
    return {
        "artefact": str(chosen.artefact),
        "against": str(chosen.against) if chosen.against is not None else None,
        "target": target,
        "precision": chosen.precision,
        "host": timed.host,
        "device": timed.device,
        "machine": asdict(timed.machine),
        "conditions": {name: [before[name], after[name]] for name in before},
        "latency_ms": mine.model_dump(mode="json"),
        "reference_ms": reference.model_dump(mode="json") if reference is not None else None,
        "speedup": {"measured": ratio.value, "interval": [ratio.low, ratio.high]} if ratio else None,
        "verdict": found.verdict,
        "why": found.why,
    }
