"""The charts of the HTML report as Vega-Lite specifications.

Colours are CSS variables of the page (`var(--slim)`): one picture serves light, dark and paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import altair as alt

from edgevit.report import phrases
from edgevit.report.comparison import pareto_front, top1_interval
from edgevit.report.model import ArtefactFacts, Interval, Report, Result
from edgevit.report.sweep import Sweep, SweepDense, SweepPoint, SweepResult, accuracy_of

Spec: TypeAlias = dict[str, Any]
"""A Vega-Lite specification: JSON whose form Vega-Lite's own schema fixes."""
Row: TypeAlias = Mapping[str, object]

_CURVE_POINTS = 200
"""More points of a cumulative curve cannot be told apart at the width of the page."""

_SIDES = alt.Scale(domain=["dense", "slim"], range=["var(--dense)", "var(--slim)"])

# One colour a build, of middle lightness: it reads on white and on black.
_BUILDS = ("var(--slim)", "var(--promise)", "#3f9d6b", "#a06bc0", "#c9a227", "#cf5c78", "#3aa6b0", "#8a7355")


def speedup_chart(reports: Sequence[Report]) -> Spec:
    """Draw each candidate's measured speed-up with its interval, and the one that its MACs promised."""
    rows = [_speedup_row(report, result, len(reports) > 1) for report in reports for result in report.results]
    base = alt.Chart(alt.InlineData(values=rows)).encode(y=alt.Y("label:N", sort=None, title=None))
    ends = [row[key] for row in rows for key in ("low", "high", "estimated")]
    # Every layer names the scale: one without it would pull the shared axis down to zero.
    scale = alt.Scale(domain=[0.97 * min(1.0, *ends), 1.03 * max(1.0, *ends)], nice=False, zero=False)
    axis = alt.Axis(format=".2~f", tickCount=8, labelOverlap=True)
    measured_x = alt.X("measured:Q", title="times as fast as dense", scale=scale, axis=axis)
    interval = base.mark_rule(strokeWidth=3, opacity=0.45, color="var(--slim)").encode(x2="high:Q")
    measured = base.mark_point(size=90, opacity=1, color="var(--slim)").encode(
        x=measured_x,
        fill=alt.condition("datum.verdict == 'trusted'", alt.value("var(--slim)"), alt.value("var(--paper)")),
        tooltip=["label:N", "measured_text:N", "promised_text:N", "verdict:N"],
    )
    promised = base.mark_tick(thickness=3, size=20, color="var(--promise)").encode(
        x=alt.X("estimated:Q", scale=scale)
    )
    same = alt.Chart(alt.InlineData(values=[{"one": 1}])).mark_rule(color="var(--dense)", strokeDash=[4, 3])
    layers = [
        same.encode(x=alt.X("one:Q", scale=scale)),
        interval.encode(x=alt.X("low:Q", scale=scale)),
        measured,
        promised,
    ]
    return _finish(layers, height=34 * len(rows))


def latency_chart(result: Result) -> Spec:
    """Draw the share of runs that were at most so slow, dense beside slim, from the raw samples."""
    sides: list[tuple[str, ArtefactFacts]] = [("dense", result.dense), ("slim", result.slim)]
    rows = [row for side, artefact in sides for row in _curve(side, artefact.latency_ms.samples)]
    medians = [{"side": side, "ms": artefact.latency_ms.median} for side, artefact in sides]
    fastest = min(min(artefact.latency_ms.samples) for _, artefact in sides)
    slowest = max(artefact.latency_ms.p99 for _, artefact in sides)
    scale = alt.Scale(domain=[0.98 * fastest, 1.02 * slowest], nice=False)
    x = alt.X("ms:Q", title="milliseconds", scale=scale)
    color = alt.Color("side:N", scale=_SIDES, legend=alt.Legend(title=None, orient="top"))
    curve = alt.Chart(alt.InlineData(values=rows)).mark_line(
        interpolate="step-after", strokeWidth=2, clip=True
    )
    median = alt.Chart(alt.InlineData(values=medians)).mark_rule(strokeDash=[4, 3], opacity=0.8)
    share = alt.Y("share:Q", title="share of runs", axis=alt.Axis(format="%", tickCount=5))
    return _finish([curve.encode(x=x, y=share, color=color), median.encode(x=x, color=color)], height=170)


def blocks_chart(report: Report) -> Spec:
    """Draw the MACs of each block, the slim model's in front of the dense one's."""
    rows: list[Row] = [
        {
            "block": index,
            "side": side,
            "mega": cost.macs / 1e6,
            "dims": f"{cost.heads} heads, qk {cost.qk_dim}, vo {cost.vo_dim}, hidden "
            f"{phrases.hidden(cost.hidden, cost.hidden_used, cost.mlp_inputs)}, {cost.tokens} tokens out",
        }
        for index, block in enumerate(report.blocks)
        for side, cost in (("dense", block.dense), ("slim", block.slim))
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("block:O", title="block", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("mega:Q", title="million MACs", stack=None),
        color=alt.Color("side:N", scale=_SIDES, legend=alt.Legend(title=None, orient="top")),
        tooltip=["block:O", "side:N", alt.Tooltip("mega:Q", format=".1f"), "dims:N"],
    )
    dense = base.transform_filter("datum.side == 'dense'").mark_bar(width={"band": 0.85}, opacity=0.45)
    slim = base.transform_filter("datum.side == 'slim'").mark_bar(width={"band": 0.5})
    return _finish([dense, slim], height=190)


def tradeoff_charts(reports: Sequence[Report]) -> dict[str, Spec]:
    """Draw accuracy against latency, each chart under its title; only the same images are compared.

    A line joins what no other artefact beats in both. The measure is top-1 where every artefact has it, else
    agreement; without either there is no chart.
    """
    groups: dict[tuple[str, str, str], list[tuple[Report, Result]]] = {}
    for report in reports:
        if report.evaluation is None:
            continue
        for result in report.results:
            group = (result.target, report.evaluation.set, report.evaluation.sha256)
            groups.setdefault(group, []).append((report, result))
    targets = [target for target, _, _ in groups]
    charts = {}
    for (target, images, _), found in groups.items():
        which = f", images of {images}" if targets.count(target) > 1 else ""
        spec = _tradeoff_of(found, several=len(reports) > 1)
        if spec is not None:
            charts[f"Accuracy against latency on {target}{which}"] = spec
    return charts


def _tradeoff_of(found: Sequence[tuple[Report, Result]], *, several: bool) -> Spec | None:
    labelled = all(result.slim.top1 is not None for _, result in found)
    if not labelled and any(result.slim.agreement is None for _, result in found):
        return None
    rows = [row for report, result in found for row in _tradeoff_rows(report, result, labelled, several)]
    return _tradeoff(rows, "top-1" if labelled else "agreement with dense")


def _tradeoff(rows: list[dict[str, Any]], title: str) -> Spec:
    near = alt.Scale(zero=False, padding=24)
    x = alt.X(
        "ms:Q",
        title="median milliseconds",
        scale=near,
        axis=alt.Axis(tickCount=10, labelOverlap=True),
    )
    shares = [row[key] for row in rows for key in ("share", "share_low", "share_high") if key in row]
    room = max(0.005, 0.1 * (max(shares) - min(shares)))
    domain = [min(shares) - room, max(shares) + room]
    axis = alt.Axis(format=".1%", tickCount=6)
    within = alt.Scale(domain=domain, nice=False)
    y = alt.Y("share:Q", title=title, scale=within, axis=axis)
    places = pareto_front((row["ms"], row["share"]) for row in rows if row["trusted"])
    steps = [{"ms": ms, "share": share} for ms, share in places]
    front = alt.Chart(alt.InlineData(values=steps)).mark_line(
        interpolate="step-after", color="var(--muted)", strokeWidth=1, strokeDash=[2, 2]
    )
    # Names beside all points would cover each other: precisions differ little in accuracy.
    builds = list(dict.fromkeys(str(row["build"]) for row in rows if row["build"] != "dense"))
    colors = ["var(--dense)", *(_BUILDS[index % len(_BUILDS)] for index in range(len(builds)))]
    scale = alt.Scale(domain=["dense", *builds], range=colors)
    legend = alt.Legend(title="model", titleOrient="left", orient="top", symbolOpacity=1)
    precision = alt.Legend(
        title="precision",
        titleOrient="left",
        orient="top",
        symbolFillColor="var(--muted)",
        symbolStrokeWidth=0,
    )
    color = alt.Color("build:N", scale=scale, legend=legend)
    base = alt.Chart(alt.InlineData(values=rows)).encode(color=color)
    across = base.mark_rule(strokeWidth=2, opacity=0.5).encode(
        x=alt.X("ms_low:Q", scale=near), x2="ms_high:Q", y=y
    )
    upright = (
        base.transform_filter("isValid(datum.share_low)")
        .mark_rule(strokeWidth=2, opacity=0.5)
        .encode(x=x, y=alt.Y("share_low:Q", scale=within), y2="share_high:Q")
    )
    points = base.mark_point(filled=True, size=90).encode(
        x=x,
        y=y,
        shape=alt.Shape("precision:N", sort=None, legend=precision),
        opacity=alt.condition("datum.trusted", alt.value(0.9), alt.value(0.3)),
        tooltip=["build:N", "precision:N", alt.Tooltip("ms:Q", format=".3f"), "share:Q"],
    )
    names = base.transform_filter("isValid(datum.name)").mark_text(align="left", dx=8, dy=-8)
    layers = [front.encode(x=x, y=y), across, upright, points, names.encode(x=x, y=y, text="name:N")]
    return _finish(layers, height=260)


def sweep_charts(sweep: Sweep) -> dict[str, Spec]:
    """Draw accuracy against latency of all points of a sweep, a chart for each target under its title.

    A line joins what no other artefact beats in both. A target whose accuracy is not known here has no chart.
    """
    found: dict[str, list[tuple[SweepPoint, SweepResult]]] = {}
    for point in sweep.points:
        for result in point.results:
            found.setdefault(result.target, []).append((point, result))
    charts = {}
    for target, results in found.items():
        rows = [row for point, result in results for row in _sweep_rows(sweep, point, result)]
        title = "top-1" if any(r.slim.top1 is not None for _, r in results) else "agreement with dense"
        if rows:
            charts[f"Accuracy against latency on {target}"] = _tradeoff(rows, title)
    return charts


def _sweep_rows(sweep: Sweep, point: SweepPoint, result: SweepResult) -> list[dict[str, Any]]:
    dense, slim = accuracy_of(result.dense), accuracy_of(result.slim)
    if dense is None or slim is None:
        return []
    name = phrases.budget_text(sweep, point)
    named = {"name": name.removeprefix(f"{sweep.budget} ")} if result.chosen else {}
    return [
        _place("dense", result, result.dense, (dense, None)),
        _place(name, result, result.slim, (slim, result.slim.interval)) | named,
    ]


def _speedup_row(report: Report, result: Result, several: bool) -> dict[str, Any]:
    speedup = result.speedup
    measured = f"{phrases.ratio(speedup.measured)} ({phrases.ratio_interval(speedup.interval)})"
    return {
        "label": f"{report.name}: {phrases.label(result)}" if several else phrases.label(result),
        "measured": speedup.measured,
        "low": speedup.interval[0],
        "high": speedup.interval[1],
        "estimated": speedup.estimated,
        "measured_text": measured,
        "promised_text": f"{phrases.ratio(speedup.estimated)}, {phrases.kept(speedup.promise)} kept",
        "verdict": result.verdict,
    }


def _curve(side: str, samples: Sequence[float]) -> list[Row]:
    """Return the cumulative distribution, at most `_CURVE_POINTS` points, both ends among them."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    points = min(_CURVE_POINTS, len(ordered))
    picked = sorted({round(last * point / max(1, points - 1)) for point in range(points)})
    return [{"side": side, "ms": ordered[at], "share": (at + 1) / len(ordered)} for at in picked]


def _tradeoff_rows(report: Report, result: Result, labelled: bool, several: bool) -> list[dict[str, Any]]:
    dense = result.dense.top1 if labelled else 1.0
    slim = result.slim.top1 if labelled else result.slim.agreement
    assert dense is not None
    assert slim is not None
    name = report.name if several else "slim"
    interval = top1_interval(dense, result.drop) if labelled and result.drop is not None else None
    return [
        _place("dense", result, result.dense, (dense, None)),
        _place(name, result, result.slim, (slim, interval)),
    ]


def _place(
    build: str,
    result: Result | SweepResult,
    artefact: ArtefactFacts | SweepDense,
    share: tuple[float, Interval | None],
) -> dict[str, Any]:
    """Place an artefact in the plane of latency and accuracy, with the intervals of both."""
    low, high = artefact.latency_ms.interval
    place = {"build": build, "precision": result.precision, "trusted": result.verdict == "trusted"}
    place |= {"ms": artefact.latency_ms.median, "share": share[0], "ms_low": low, "ms_high": high}
    return place | ({} if share[1] is None else {"share_low": share[1][0], "share_high": share[1][1]})


def _finish(layers: list[alt.Chart], height: int) -> Spec:
    words = {"labelColor": "var(--muted)", "titleColor": "var(--muted)", "titleFontWeight": "normal"}
    lines = {"domainColor": "var(--rule)", "tickColor": "var(--rule)", "gridColor": "var(--rule)"}
    styled = (
        alt.LayerChart(layer=layers)
        .properties(width="container", height=height, background="transparent")
        .configure(font="system-ui, sans-serif", padding=4)
        .configure_axis(**words, **lines, labelFontSize=11, titleFontSize=11, gridOpacity=0.6, labelLimit=320)
        .configure_legend(
            labelColor="var(--ink)",
            labelFontSize=12,
            titleColor="var(--muted)",
            titleFontWeight="normal",
            titleFontSize=12,
        )
        .configure_view(stroke=None)
    )
    spec: Spec = styled.to_dict()
    # The address of the schema is no use to a page that fetches nothing.
    del spec["$schema"]
    return spec
