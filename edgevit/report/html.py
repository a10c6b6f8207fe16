"""The report as one HTML file that fetches nothing: text, styles, data, and one copy of the chart library."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import altair
import jinja2
import vl_convert
from markupsafe import Markup
from pydantic import JsonValue

from edgevit.disk import atomic_write
from edgevit.report import charts, phrases
from edgevit.report.blocks import block_scales, budget_rows
from edgevit.report.comparison import fastest_first
from edgevit.report.model import BlockFacts, Report
from edgevit.report.sweep import Sweep

FILE_NAME = "report.html"
"""Of a build's report."""
_GLOBALS = "window.vegaEmbed = vegaEmbed;"


def write_html(reports: Sequence[Report], path: Path) -> None:
    """Write one or several reports as a single HTML file that works offline.

    Raises:
        ValueError: there is no report.
        DiskFullError: no space left; an older file at `path` stays as it was.
        OutputError: the file cannot be written.
    """
    atomic_write(path, render_html(reports))


def render_html(reports: Sequence[Report]) -> str:
    """Return the HTML text; the same reports give the same text.

    Raises:
        ValueError: there is no report.
    """
    if not reports:
        raise ValueError("expected at least one report, got none")
    return _template("template.html").render(
        reports=reports,
        side_by_side=fastest_first(reports),
        charts=charts,
        say=phrases,
        budget_rows=budget_rows,
        block_scales=block_scales,
        chart_library=_chart_library(),
    )


def render_sweep(sweep: Sweep) -> str:
    """Return the HTML text of a sweep, which links to the reports of its points in the folders beside it."""
    page = _template("sweep.html")
    return page.render(sweep=sweep, charts=charts, say=phrases, chart_library=_chart_library())


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FunctionLoader(
        lambda file: resources.files(__package__).joinpath(file).read_text("utf-8")
    )
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["fact"] = _fact
    environment.filters["before_after"] = _before_after
    environment.filters["key"] = _words
    environment.filters["links"] = _links
    environment.filters["beside_links"] = _beside_links
    environment.filters["runs"] = _runs
    environment.filters["spec"] = _spec
    return environment.get_template(name)


@functools.cache
def _chart_library() -> Markup:
    """Return Vega, Vega-Lite and Vega-Embed as one script, in the version that Altair writes for."""
    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    script = vl_convert.javascript_bundle(_GLOBALS, vl_version=version)
    return Markup(script.replace("</script", "<\\/script"))


def _spec(spec: charts.Spec) -> Markup:
    """Write a chart as JSON that cannot end the script element that holds it."""
    text = json.dumps(spec, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _fact(value: JsonValue) -> str:
    """Write a fact of the device, runtime or parity check for a reader."""
    match value:
        case None:
            return "unknown"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case list():
            return ", ".join(map(_fact, value)) or "none"
        case dict():
            return "; ".join(f"{_words(key)} {_fact(inner)}" for key, inner in value.items())
        case _:
            return str(value)


_UNITS = {"_1min": ", 1 min", "_c": ", \N{DEGREE SIGN}C", "_mhz": ", MHz", "_s": ", s"}
_LINK = ("max_abs", "allowed", "top1_agreement")
"""What is known about one link of the chain of custody, as the keys of `Result.parity` end."""


def _words(key: str) -> str:
    """Write a key for a reader, its unit in the usual way."""
    unit = next((unit for unit in _UNITS if key.endswith(unit)), "")
    return key.removesuffix(unit).replace("_", " ") + _UNITS.get(unit, "")


def _before_after(value: JsonValue) -> str:
    """Write a fact of the protocol; a pair is what was found before and after the timing."""
    match value:
        case [None, None]:
            return "unknown"
        case [before, after]:
            return f"{_fact(before)} before, {_fact(after)} after"
        case _:
            return _fact(value)


def _links(parity: dict[str, JsonValue]) -> list[tuple[str, list[str]]]:
    """List the links of the chain of custody, each with its difference, what is allowed, and agreement."""
    prefixes = [key.removesuffix(f"_{_LINK[0]}") for key in parity if key.endswith(f"_{_LINK[0]}")]
    return [
        (_link_name(p), [_link_fact(parity.get(f"{p}_{part}"), part) for part in _LINK]) for p in prefixes
    ]


def _link_fact(value: JsonValue, part: str) -> str:
    if not isinstance(value, int | float):
        return _fact(value)
    return phrases.share(value) if part == "top1_agreement" else f"{value:.2g}"


def _link_name(prefix: str) -> str:
    side, *ends = prefix.split("_")
    return f"{side}: {' to '.join(ends)}"


def _beside_links(parity: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the facts about outputs that belong to no link."""
    return {key: value for key, value in parity.items() if not key.endswith(tuple(f"_{p}" for p in _LINK))}


def _runs(blocks: Sequence[BlockFacts]) -> list[tuple[str, BlockFacts]]:
    """Join neighbouring blocks that are cut alike: a name for each run, and its first block."""
    runs = [list(run) for _, run in itertools.groupby(blocks, key=lambda block: (block.dense, block.slim))]
    return [(run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name}", run[0]) for run in runs]
