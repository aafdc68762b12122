"""The page: one file that loads nothing, with everything a browser needs in it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from bookkd.core.names import require
from bookkd.report.cautions import cautions
from bookkd.report.charts import Chart, Choice, charts_of
from bookkd.report.charts.base import altair
from bookkd.report.numbers import Numbers
from bookkd.report.sections import sections
from bookkd.report.words import summary

__all__ = ["to_html"]

_ESCAPES = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}
"""What could end or change a script element, spelled so that JSON means the same."""


def to_html(numbers: Numbers) -> str:
    """Return the page.

    Names in it come from records and are text wherever they stand: the template escapes them, and the content policy runs
    no script but the two of the page, by their hashes, and loads nothing.

    Raises:
        MissingExtraError: if Altair, vl-convert or Jinja is not installed.
    """
    jinja = require("jinja2", "report")
    charts = charts_of(numbers)
    vega, script = _vega(), _shipped("page.js")
    environment = jinja.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja.StrictUndefined
    )
    plain = require("markupsafe", "report").Markup
    page: str = environment.from_string(_shipped("page.html.jinja")).render(
        numbers=numbers,
        summary=summary(numbers),
        cautions=cautions(numbers),
        sections=sections(numbers, pictures=True),
        charts=charts,
        choices={section: _choices(found) for section, found in charts.items()},
        policy=_policy([vega, script]),
        style=plain(_shipped("page.css")),
        vega=plain(vega),
        script=plain(script),
        data=plain(_data(charts)),
    )
    return page


def _shipped(name: str) -> str:
    return files("bookkd.report").joinpath(name).read_text(encoding="utf-8")


def _vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, in the version that Altair writes for."""
    version = ".".join(altair().SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    bundle: str = require("vl_convert", "report").javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return bundle.replace("</script", "<\\/script")


def _policy(scripts: Sequence[str]) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def _choices(charts: Sequence[Chart]) -> tuple[Choice, ...]:
    """Return what a reader chooses in a section: each parameter once, with the options of all its charts."""
    found: dict[str, Choice] = {}
    for choice in (choice for chart in charts for choice in chart.choices):
        options = {**found[choice.parameter].options, **choice.options} if choice.parameter in found else choice.options
        found[choice.parameter] = Choice(choice.parameter, choice.label, options)
    return tuple(found.values())


def _data(charts: dict[str, tuple[Chart, ...]]) -> str:
    found: list[dict[str, Any]] = [
        {
            "key": chart.key,
            "spec": chart.spec,
            "data": {name: {"columns": data.columns, "rows": data.rows} for name, data in chart.data.items()},
            "alt": chart.alt,
            "parameters": [choice.parameter for choice in chart.choices],
        }
        for some in charts.values()
        for chart in some
    ]
    text = json.dumps(found, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.translate(_ESCAPES)
