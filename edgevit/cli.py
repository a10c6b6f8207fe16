"""The command line: the only place that prints or exits.

Commands import what they need when they run, so that `edgevit --help` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import json as json_
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from edgevit.bars import Bars
from edgevit.errors import (
    AccuracyGateError,
    BackendUnavailableError,
    EdgevitError,
    LatencyGateError,
    MeasurementError,
)
from edgevit.version import __version__

if TYPE_CHECKING:
    from edgevit.backends.readiness import Readiness
    from edgevit.models.arch import Arch
    from edgevit.pipeline.timing import Timed
    from edgevit.report.model import Report
    from edgevit.target import Target
    from edgevit.tune.processes import Team

P = ParamSpec("P")

_TRACEBACK = "EDGEVIT_TRACEBACK"
_BUSY = 0.5  # load average of each core from which a machine was not quiet
_INTERRUPTED = 130  # 128 + SIGINT, as shells count

app = typer.Typer(
    help="Make a Vision Transformer smaller, and measure how much faster it really is on the device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 fine, 2 recipe or usage, 3 accuracy gate, 4 latency gate, 5 parity or export, "
    "6 runtime or device missing, 7 measurement untrusted, 1 anything else.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Build directories.")]


def main() -> None:
    """Run the command line."""
    app(prog_name="edgevit")


def _command(function: Callable[P, None]) -> Callable[P, None]:
    """Print errors in words and exit with their codes; keep the talk of libraries from the terminal."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        with _guard():
            function(*args, **kwargs)

    return guarded


@contextlib.contextmanager
def _guard() -> Iterator[None]:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except EdgevitError as error:
        _complain(str(error))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        _complain("stopped. Stages that were finished are kept: the same command goes on from there.")
        raise typer.Exit(_INTERRUPTED) from error
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:  # the last stop before the user
        text = " ".join(str(error).split()) or "no message"
        hint = "" if os.environ.get(_TRACEBACK) else f" Run it again with {_TRACEBACK}=1 to see where."
        _complain(
            f"unexpected {type(error).__name__}: {text}. This is a fault of edgevit, please report it.{hint}"
        )
        raise typer.Exit(1) from error
    finally:
        logging.disable(before)


def _follow(team: Team) -> int:
    try:
        return team.follow()
    except KeyboardInterrupt:  # the leader says what that means
        return _INTERRUPTED


def _launchable(function: Callable[P, None]) -> Callable[P, None]:
    """Let the first of several processes that a launcher started run a command, and the others help it."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from edgevit.tune.processes import Team, is_launched

        if not is_launched():
            function(*args, **kwargs)
            return
        with _guard():
            team = Team.join()
        if not team.leads:
            with _guard():
                raise typer.Exit(_follow(team))
        code = 1
        try:
            function(*args, **kwargs)
            code = 0
        except typer.Exit as exit_:
            code = exit_.exit_code
            raise
        finally:
            team.end(code)  # after the message: a launcher may end this process as soon as another has ended

    return run


def _complain(message: str) -> None:
    if os.environ.get(_TRACEBACK):
        traceback.print_exc()
    typer.echo(f"edgevit: {message}", err=True)


def _print_json(data: object) -> None:
    typer.echo(json_.dumps(data, indent=1, ensure_ascii=False))


def _bars(*, json: bool) -> Bars:
    return Bars(Console(stderr=True), wanted=not json)


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


@app.command()
@_launchable
@_command
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
    from edgevit.report.model import load_report

    try:
        with _threads(jobs), _bars(json=json) as bars:
            report = run(loaded, folder, BuildOptions(tuple(target or ()), depfile), bars)
    except (AccuracyGateError, LatencyGateError, MeasurementError):
        _show_report(load_report(folder), folder, json=json)  # the report says what the gate found
        raise
    _show_report(report, folder, json=json)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch and NumPy's BLAS compute with this many threads; None: as many as they like."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        with threadpool_limits(count, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _show_report(report: Report, folder: Path, *, json: bool) -> None:
    from edgevit.report.model import to_json
    from edgevit.report.terminal import render

    if json:
        typer.echo(to_json(report), nl=False)
        return
    render(report, Console())
    typer.echo(f"\nReport: {folder / 'report.html'}")


@app.command()
@_command
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL|DIR", help="A timm name, or what edgevit saved.")],
    groups: Annotated[
        bool, typer.Option("--groups", help="Show instead which dims of which layers only go together.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --groups: also draw the matrix into FILE.")
    ] = None,
    json: Json = False,
) -> None:
    """Show heads, dims, tokens, MACs, params and bytes block by block, and what can be cut."""
    from edgevit.inspection import inspect_model, render

    if html is not None and not groups:
        raise typer.BadParameter("--html draws the matrix of --groups: give that, too")
    found = inspect_model(model)
    if groups:
        _show_groups(model, found.arch, html, json=json)
    elif json:
        _print_json(found.to_json())
    else:
        render(found, Console())


def _show_groups(name: str, arch: Arch, html: Path | None, *, json: bool) -> None:
    from edgevit.models.relations import read_relations
    from edgevit.relation_view import groups_to_json, render_groups, write_groups_html

    relations = read_relations(arch)
    if html is not None:
        write_groups_html(name, relations, html)
    if json:
        _print_json(groups_to_json(name, relations))
    else:
        render_groups(name, relations, Console())


@app.command()
@_command
def init(
    model: Annotated[str, typer.Argument(metavar="MODEL|DIR", help="A timm name, or what edgevit saved.")],
) -> None:
    """Print a commented recipe for MODEL to start from."""
    from edgevit.init_recipe import recipe_text
    from edgevit.inspection import inspect_model

    found = inspect_model(model)
    typer.echo(recipe_text(model, found.arch, found.anatomy), nl=False)


@app.command()
@_command
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
    with _bars(json=json) as bars:
        timed = (
            time_here(chosen, loaded, bars) if board is None else time_on_board(board, chosen, loaded, bars)
        )
    _show_times(timed, loaded.name, json=json)
    if timed.found.verdict == "untrusted":
        raise MeasurementError(f"timing cannot be trusted: {timed.found.why}.")


def _show_times(timed: Timed, target: str, *, json: bool) -> None:
    if json:
        _print_json(_times_json(timed, target))
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


@app.command()
@_command
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
        _print_json(dumped[0] if len(dumped) == 1 else {"reports": dumped})
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
        _show_report(load_report(folder), folder, json=json)
        raise


@app.command()
@_command
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
    judged = [f"{result.target} {result.precision}" for result in found.results if result.chosen]
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
            _print_json({**facts, "kept": False, "why": str(error)})
        raise
    if json:
        _print_json({**facts, "kept": True, "why": None})
    else:
        typer.echo(f"{found.name}: every limit is kept by {', '.join(judged)}")
        for target in waiting:
            typer.echo(
                f"{target} was not measured: no limit was judged for it. Run its kit, import its report."
            )
        for target in boards if accuracy else ():
            typer.echo(f"{target} was measured on its board, which knows no accuracy: that was not judged.")


@app.command()
@_command
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
        _print_json({"targets": [_target_json(*state) for state in states]})
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
    for target, readiness in states:
        for reason, precisions in readiness.reasons().items():
            typer.echo(f"\n{target.name} {', '.join(precisions)}: {reason}")


@app.command()
@_command
def schema(
    kind: Annotated[
        str | None, typer.Argument(help="recipe, target, set, report or manifest; default: all.")
    ] = None,
) -> None:
    """Print the JSON schema of recipes, targets, image sets, reports and manifests."""
    from pydantic import BaseModel

    from edgevit.images import ImageSet
    from edgevit.integrate.manifest import Manifest
    from edgevit.recipe import Recipe
    from edgevit.report.model import Report
    from edgevit.target import Target

    kinds: dict[str, type[BaseModel]] = {
        "recipe": Recipe,
        "target": Target,
        "set": ImageSet,
        "report": Report,
        "manifest": Manifest,
    }
    if kind is not None and kind not in kinds:
        from edgevit.schema import did_you_mean

        raise typer.BadParameter(
            f"no kind {kind!r}.{did_you_mean(kind, kinds)} There are: {', '.join(kinds)}."
        )
    schemas = {name: model.model_json_schema() for name, model in kinds.items()}
    _print_json(schemas if kind is None else schemas[kind])


if __name__ == "__main__":
    main()
