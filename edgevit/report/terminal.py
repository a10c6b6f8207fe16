"""The report as tables for a terminal; prints on the console that is passed in, nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgevit.report import phrases
from edgevit.report.comparison import fastest_first
from edgevit.report.model import (
    ArtefactFacts,
    Latency,
    ModelSize,
    ModelSizes,
    Report,
    Result,
    SlimFacts,
)
from edgevit.report.sweep import Sweep, SweepLatency, SweepPoint, SweepResult

_WIDE = 140
"""From this many columns on, one table holds everything; below it, sizes and times have one each."""

_WORDS = {"budget", "build", "candidate", "computed in", "layer", "model", "verdict"}
"""Columns of words; all others hold numbers."""


def render(report: Report, console: Console) -> None:
    """Print what was measured, dense beside slim, and one sentence that says what it means."""
    source = report.source
    console.print(Text.assemble((report.name, "bold"), f"  {source.name}, weights: {source.weights}"))
    for warning in report.warnings:
        console.print(Text(f"Warning: {warning}", style="yellow"))
    if not report.results:
        console.print(_models(report))
    elif console.width >= _WIDE:
        console.print(_everything(report))
    else:
        console.print(_sizes(report))
        console.print()
        console.print(_times(report))
    console.print()
    for finding in phrases.findings(report):
        console.print(Text(finding))


def render_int8(report: Report, console: Console) -> None:
    """Print what each layer of the int8 graphs costs, the worst bargain first, and which are in float."""
    if not report.int8:
        console.print(Text(f"{report.name} has no graph in int8."))
    for facts in report.int8:
        console.print(Text(phrases.int8(facts)))
        table = _table("layer", "MACs", "SQNR dB", "KL", "computed in")
        largest = max(layer.macs for layer in facts.layers)
        for layer in facts.layers:
            kind = "int8" if layer.returned is None else f"float ({layer.returned}.)"
            table.add_row(
                layer.name,
                phrases.count(layer.macs, largest),
                f"{layer.sqnr_db:.1f}",
                f"{layer.kl:.2e}",
                kind,
            )
        console.print(table)
        console.print()


def render_comparison(reports: Sequence[Report], console: Console) -> None:
    """Print the chosen candidates of several builds, one row each, the fastest of each target first."""
    table = _table("build", *["MACs", "top-1", "drop", "agree", "ms", "speed-up", "kept"])
    for _, report, result in fastest_first(reports):
        table.add_row(
            Text.assemble((report.name, "bold"), f"\n{phrases.label(result)}"),
            phrases.count(report.models.slim.macs, report.models.dense.macs),
            phrases.share(result.slim.top1),
            phrases.NONE if result.drop is None else phrases.points(result.drop.points),
            phrases.share(result.slim.agreement),
            _median(result.slim),
            _speedup(result),
            phrases.kept(result.speedup.promise),
        )
    console.print(table)
    console.print(Text("drop in points of top-1; ms and speed-up with their 95 % intervals."))


def render_sweep(sweep: Sweep, console: Console) -> None:
    """Print the points of a sweep, the chosen candidates of each, and which none beats."""
    table = _table("budget", *["MACs", "top-1", "drop", "agree", "ms", "speed-up", "kept"])
    for warning in sweep.warnings:
        console.print(Text(f"Warning: {warning}", style="yellow"))
    for point in sweep.points:
        for result in [r for r in point.results if r.chosen] or point.results:
            table.add_row(*_sweep_cells(sweep, point, result), end_section=True)
        if not point.results:
            why = "not built" if point.failed is not None else "not measured here"
            name = Text.assemble((phrases.budget_text(sweep, point), "bold"), f"\n{why}")
            table.add_row(name, end_section=True)
    console.print(table)
    console.print(Text("unbeaten: none is faster and as accurate; drop in points; 95 % intervals below."))
    console.print()
    for finding in phrases.sweep_findings(sweep):
        console.print(Text(finding))


def _sweep_cells(sweep: Sweep, point: SweepPoint, result: SweepResult) -> list[Text | str]:
    assert point.slim is not None  # it has results
    slim = result.slim
    mark = "\nunbeaten" if result.front else "\nuntrusted" if result.verdict == "untrusted" else ""
    candidate = f"\n{result.target}\n{result.precision}{mark}"
    name = Text.assemble((phrases.budget_text(sweep, point), "bold"), candidate)
    top1, agreement = phrases.share(slim.top1), phrases.share(slim.agreement)
    if slim.top1 is None and slim.interval is not None:
        agreement += f"\n{phrases.share_interval(slim.interval)}"
    lost = result.drop
    return [
        name,
        phrases.count(point.slim.macs, sweep.dense.macs),
        top1,
        phrases.NONE
        if lost is None
        else f"{phrases.points(lost.points)}\n{phrases.points_interval(lost.interval)}",
        agreement,
        _interval_below(slim.latency_ms),
        _speedup(result),
        phrases.kept(result.speedup.promise),
    ]


def _table(*headers: str) -> Table:
    """Make a table; words stand left and fold where the terminal is narrow, numbers stand right."""
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for header in headers:
        if header in _WORDS:
            table.add_column(header, overflow="fold")
        else:
            table.add_column(header, justify="right", no_wrap=True)
    return table


def _models(report: Report) -> Table:
    """Return the sizes of the models, where no artefact was measured here."""
    table, models = _table("model", "MACs", "params"), report.models
    for side, model in (("dense", models.dense), ("slim", models.slim)):
        table.add_row(side, *_model_cells(models, model))
    return table


def _everything(report: Report) -> Table:
    table = _table(
        "candidate", "model", "MACs", "params", "file", "top-1", "agree",
        "median ms (95 %)", "speed-up (95 %)", "promised", "kept", "verdict",
    )  # fmt: skip
    for result in report.results:
        speedup = result.speedup
        table.add_row(
            Text(phrases.label(result), style=_style(result)), *_size_cells(report, result, "dense"),
            _one_line(result.dense), "", "", "", "",
        )  # fmt: skip
        table.add_row(
            "", *_size_cells(report, result, "slim"), _one_line(result.slim),
            f"{phrases.ratio(speedup.measured)} ({phrases.ratio_interval(speedup.interval)})",
            phrases.ratio(speedup.estimated), phrases.kept(speedup.promise), _verdict(result, ", "),
            end_section=True,
        )  # fmt: skip
    return table


def _sizes(report: Report) -> Table:
    table = _table("candidate", "model", "MACs", "params", "file", "top-1", "agree")
    for result in report.results:
        name = Text(phrases.label(result), style=_style(result))
        table.add_row(name, *_size_cells(report, result, "dense"))
        table.add_row(phrases.status(result), *_size_cells(report, result, "slim"), end_section=True)
    return table


def _size_cells(report: Report, result: Result, side: str) -> list[str]:
    model, artefact = (
        (report.models.dense, result.dense) if side == "dense" else (report.models.slim, result.slim)
    )
    agreement = artefact.agreement if isinstance(artefact, SlimFacts) else None
    return [
        side,
        *_model_cells(report.models, model),
        phrases.size(artefact.bytes),
        phrases.share(artefact.top1),
        phrases.share(agreement),
    ]


def _model_cells(models: ModelSizes, model: ModelSize) -> list[str]:
    dense = models.dense
    return [phrases.count(model.macs, dense.macs), phrases.count(model.params, dense.params)]


def _times(report: Report) -> Table:
    table = _table("candidate", "verdict", "dense ms", "slim ms", "speed-up", "promised", "kept")
    for result in report.results:
        table.add_row(
            _name(result),
            _verdict(result, "\n"),
            _median(result.dense),
            _median(result.slim),
            _speedup(result),
            phrases.ratio(result.speedup.estimated),
            phrases.kept(result.speedup.promise),
            end_section=True,
        )
    return table


def _name(result: Result) -> Text:
    return Text(f"{result.target}\n{result.precision}", style=_style(result))


def _style(result: Result) -> str:
    return "bold" if result.chosen else "dim" if result.refused is not None else ""


def _verdict(result: Result, separator: str) -> Text:
    text = Text(result.verdict, style="green" if result.verdict == "trusted" else "red")
    status = phrases.status(result)
    return text.append(separator + status, style="bold" if result.chosen else "yellow") if status else text


def _median(artefact: ArtefactFacts) -> str:
    return _interval_below(artefact.latency_ms)


def _interval_below(latency: Latency | SweepLatency) -> str:
    interval = phrases.milliseconds_interval(latency.interval, latency.median)
    return f"{phrases.milliseconds(latency.median)}\n{interval}"


def _one_line(artefact: ArtefactFacts) -> str:
    median, interval = _median(artefact).split("\n")
    return f"{median} ({interval})"


def _speedup(result: Result | SweepResult) -> str:
    speedup = result.speedup
    return f"{phrases.ratio(speedup.measured)}\n{phrases.ratio_interval(speedup.interval)}"
