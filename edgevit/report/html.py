"""The report as one HTML file that fetches nothing: text, styles, data, and one copy of the chart library."""

from __future__ import annotations

import functools
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
from edgevit.report.model import Report

_TEMPLATE = "template.html"
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
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["fact"] = _fact
    environment.filters["spec"] = _spec
    template = environment.from_string(resources.files(__package__).joinpath(_TEMPLATE).read_text("utf-8"))
    return template.render(reports=reports, charts=charts, say=phrases, chart_library=_chart_library())


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


def _words(key: str) -> str:
    return key.replace("_", " ")
