"""What all charts share: Altair, colours by name so that the page's light and dark apply, and the parts of a chart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bookkd.core.names import require
from bookkd.report.numbers import Numbers

__all__ = ["Chart", "Choice", "Data", "Key", "Keys", "altair", "colour", "keys_of", "percent", "rounded", "spec_of"]

_COLOURS = 8


@dataclass(frozen=True)
class Choice:
    """What a reader chooses by a select.

    Args:
        parameter: Name of the chart's parameter.
        label: What stands before the select.
        options: Value -> what is written.
    """

    parameter: str
    label: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class Data:
    """Rows of a chart, by column, so that names of columns are written once.

    Args:
        columns: Names.
        rows: One value a column.
    """

    columns: tuple[str, ...]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Key:
    """One entry of a legend.

    Args:
        name: What is written.
        colour: Name of a colour of the page.
        shape: "disc", "line", "dashed", "square", "diamond".
    """

    name: str
    colour: str
    shape: str = "disc"


@dataclass(frozen=True)
class Chart:
    """One chart.

    Args:
        key: Its name on the page.
        title: What it shows.
        text: How to read it.
        alt: What a reader sees in it, in words with numbers: value of the first choice -> text; one text for "" where there
            is no choice.
        spec: Vega-Lite.
        data: Name of a data set in `spec` -> rows.
        legend: Its keys.
        choices: What a reader chooses.
    """

    key: str
    title: str
    text: str
    alt: Mapping[str, str]
    spec: Mapping[str, Any]
    data: Mapping[str, Data]
    legend: tuple[Key, ...] = ()
    choices: tuple[Choice, ...] = ()


def altair() -> Any:
    """Return Altair.

    Raises:
        MissingExtraError: if it is not installed.
    """
    return require("altair", "report")


def colour(name: str) -> str:
    """Return a colour of the page as SVG takes it.

    >>> colour("s1")
    'var(--s1)'
    """
    return f"var(--{name})"


def percent(share: float | None) -> float | None:
    """Return a share as per cent, short enough for a chart."""
    return rounded(None if share is None else 100 * share)


def rounded(value: float | None) -> float | None:
    """Return five significant digits, more than a chart can show."""
    return None if value is None else float(f"{value:.5g}")


@dataclass(frozen=True)
class Keys:
    """Which colour an arm has.

    Args:
        group: Arm -> what its colour stands for: itself where arms are few, else its method.
        colours: Group -> colour of the page.
    """

    group: Mapping[str, str]
    colours: Mapping[str, str]

    def scale(self) -> Any:
        """Return the scale of colours."""
        return altair().Scale(domain=list(self.colours), range=[colour(name) for name in self.colours.values()])

    def legend(self, shape: str, arms: Iterable[str]) -> tuple[Key, ...]:
        """Return a key for each group of these arms."""
        present = {self.group[arm] for arm in arms}
        return tuple(Key(name, colour, shape) for name, colour in self.colours.items() if name in present)


def keys_of(numbers: Numbers) -> Keys:
    """Give each arm a colour, or each method where there are more arms than colours."""
    arms = [row.arm for row in numbers.rows if row.seeds]
    few = len(arms) <= _COLOURS
    group = {row.arm: row.arm if few else row.method for row in numbers.rows}
    names = list(dict.fromkeys(group[arm] for arm in arms))
    return Keys(group, {name: f"s{place % _COLOURS + 1}" for place, name in enumerate(names)})


def spec_of(chart: Any, height: int = 300) -> dict[str, Any]:
    """Return the Vega-Lite of a chart that is as wide as its place and takes its colours from the page."""
    ink, soft, line = colour("ink"), colour("soft"), colour("line")
    text = {
        "labelColor": soft,
        "titleColor": soft,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    }
    config = {
        "background": None,
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "axis": {
            **text,
            "domainColor": line,
            "gridColor": line,
            "tickColor": line,
            "labelLimit": 150,
            "titlePadding": 8,
        },
        "text": {"color": ink},
        "rule": {"color": soft},
    }
    found: dict[str, Any] = chart.properties(width="container", height=height).to_dict()
    return {**found, "config": config, "autosize": {"type": "fit-x", "contains": "padding"}}
