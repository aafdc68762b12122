"""Quality against size and latency, the distillation metric against its weight, and cost against students."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bookkd.evaluation import lower_is_better
from bookkd.report.charts.base import Chart, Choice, Data, Key, Keys, altair, colour, percent, rounded, spec_of
from bookkd.report.charts.curves import ticks
from bookkd.report.columns import Column
from bookkd.report.formats import capital, count_text, number_text, percent_text, seconds_text
from bookkd.report.numbers import Numbers
from bookkd.report.pareto import BASELINE, STUDENT, TEACHER, Point

__all__ = ["cost_chart", "score_chart", "size_charts"]

_SHAPES = {STUDENT: "circle", BASELINE: "square", TEACHER: "diamond"}
_KINDS = (
    Key("baseline", "soft", "square"),
    Key("teacher", "ink", "diamond"),
    Key("nothing is better and cheaper", "soft", "dashed"),
)
_UNTIMED = Key("teacher, time not measured", "ink", "dotted")


def size_charts(numbers: Numbers, keys: Keys) -> tuple[Chart, ...]:
    """Return the first metric against parameters and against latency, where there are any."""
    pareto, column, name = dict(numbers.pareto), numbers.first, capital(numbers.first.title)
    higher = "Lower" if lower_is_better(column.key) else "Higher"
    size = pareto.pop("parameters", ())
    found = []
    if size:
        text = f"{higher} and further left is better. Bars are one standard deviation between seeds."
        data = {"": size}
        found.append(_pareto("accuracy-size", f"{name} against size", text, "parameters", data, (), keys, column))
    if pareto:
        text = f"Median time of one pass. {higher} and further left is better."
        timed = {point.name for points in pareto.values() for point in points}
        untimed = tuple(point for point in size if point.kind == TEACHER and point.name not in timed)
        data = {axis.removeprefix("batch "): points for axis, points in pareto.items()}
        title = f"{name} against latency"
        found.append(_pareto("accuracy-latency", title, text, "milliseconds", data, untimed, keys, column))
    return tuple(found)


def _pareto(
    key: str,
    title: str,
    text: str,
    unit: str,
    data: Mapping[str, Sequence[Point]],
    untimed: Sequence[Point],
    keys: Keys,
    column: Column,
) -> Chart:
    first = next(iter(data))
    alt = {batch: _pareto_alt(title, points, unit, batch, column) for batch, points in data.items()}
    columns = ("batch", "name", "group", "kind", "x", "y", "low", "high", "front", "label")
    points = [_point_row(batch, point, unit, keys, column) for batch, some in data.items() for point in some]
    lines = [[point.name, _shown(point.quality, column)] for point in untimed]
    students = {point.name for some in data.values() for point in some if point.kind != TEACHER}
    choices = (Choice("batch", "batch size of latency", {batch: batch for batch in data}),) if len(data) > 1 else ()
    return Chart(
        key,
        title,
        text,
        alt,
        spec_of(_pareto_layers(keys, unit, first, bool(untimed), column)),
        {"points": Data(columns, points), "teachers": Data(("name", "y"), lines)},
        (*keys.legend("disc", students), *_KINDS, *((_UNTIMED,) if untimed else ())),
        choices,
    )


def _point_row(batch: str, point: Point, unit: str, keys: Keys, column: Column) -> list[Any]:
    sd = point.sd or 0.0
    label = f"{point.name} ({point.kind}): {_place(point, unit, column)}"
    ends = (_shown(point.quality - sd, column), _shown(point.quality + sd, column))
    group = TEACHER if point.kind == TEACHER else keys.group[point.name]
    return [
        batch,
        point.name,
        group,
        point.kind,
        rounded(point.cost),
        _shown(point.quality, column),
        *ends,
        point.front,
        label,
    ]


def _shown(value: float, column: Column) -> float | None:
    return percent(value) if column.share else rounded(value)


def _place(point: Point, unit: str, column: Column) -> str:
    cost = count_text(point.cost) if unit == "parameters" else number_text(point.cost, 2)
    quality = percent_text(point.quality) if column.share else number_text(point.quality)
    return f"{quality} at {cost} {unit}"


def _pareto_layers(keys: Keys, unit: str, batch: str, untimed: bool, column: Column) -> Any:
    alt = altair()
    name = f"{column.title}, %" if column.share else column.title
    colours = {**keys.colours, TEACHER: "ink"}
    scale = alt.Scale(domain=list(colours), range=[colour(name) for name in colours.values()])
    shapes = alt.Scale(domain=list(_SHAPES), range=list(_SHAPES.values()))
    chosen = alt.param(name="batch", value=batch)
    x = alt.X(
        "x:Q",
        title=unit,
        scale=alt.Scale(type="log", nice=False, padding=24),
        # Milliseconds have a prefix already.
        axis=alt.Axis(format="~s" if unit == "parameters" else "~g", tickCount=5, grid=False),
    )
    y = alt.Y("y:Q", title=name, scale=alt.Scale(zero=False, padding=12))
    base = alt.Chart(alt.NamedData("points")).transform_filter("datum.batch === batch")
    front = base.transform_filter("datum.front").mark_line(interpolate="step-after", strokeDash=[4, 3], aria=False)
    marks = base.mark_point(filled=True, size=90, opacity=1, stroke=colour("page"), strokeWidth=1.5)
    tooltip = [
        alt.Tooltip(field, title=title)
        for field, title in (("name:N", "network"), ("kind:N", "is"), ("y:Q", name), ("x:Q", unit))
    ]
    unmeasured = alt.Chart(alt.NamedData("teachers")).mark_rule(strokeDash=[1, 3], color=colour("ink"), aria=False)
    lines = [unmeasured.encode(y="y:Q")] if untimed else []
    return alt.layer(
        front.encode(x=x, y=y, color=alt.value(colour("soft")), order="x:Q"),
        *lines,
        base.mark_rule(aria=False).encode(
            x=x, y="low:Q", y2="high:Q", color=alt.Color("group:N", scale=scale, legend=None)
        ),
        marks.encode(
            x=x,
            y=y,
            color=alt.Color("group:N", scale=scale, legend=None),
            shape=alt.Shape("kind:N", scale=shapes, legend=None),
            tooltip=tooltip,
            description="label:N",
        ),
    ).add_params(chosen)


def _pareto_alt(title: str, points: Sequence[Point], unit: str, batch: str, column: Column) -> str:
    best = [point for point in points if point.front]
    shown = ", ".join(f"{point.name} with {_place(point, unit, column)}" for point in best[:6])
    at = f" at batch size {batch}" if batch else ""
    return f"{title}{at} of {len(points)} networks. Nothing is both better and cheaper than: {shown}."


def score_chart(numbers: Numbers, keys: Keys) -> tuple[Chart, ...]:
    """Return the distillation metric against the weight of size."""
    rows = [(row.arm, *row.terms) for row in numbers.rows if row.terms is not None]
    if not rows:
        return ()
    best = min(rows, key=lambda row: row[1] + row[2])
    alt_text = f"Distillation metric against the weight of size, one line each of {len(rows)} arms; lowest at 0.5 is {best[0]}."
    values = [
        [arm, keys.group[arm], alpha, rounded(loss + alpha * (ratio - loss))]
        for arm, ratio, loss in rows
        for alpha in (0, 1)
    ]
    alt = altair()
    lines = (
        alt.Chart(alt.NamedData("scores"))
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("alpha:Q", title="weight of size, α", axis=alt.Axis(values=[0, 0.3, 0.5, 0.7, 1])),
            y=alt.Y("score:Q", title="distillation metric", scale=alt.Scale(zero=False)),
            color=alt.Color("group:N", scale=keys.scale(), legend=None),
            detail="arm:N",
            tooltip=["arm:N"],
        )
    )
    text = "Lower is better. At 0 only accuracy counts, at 1 only size; where lines cross, the better arm changes."
    data = {"scores": Data(("arm", "group", "alpha", "score"), values)}
    return (
        Chart(
            "score",
            "Distillation metric",
            text,
            {"": alt_text},
            spec_of(lines),
            data,
            keys.legend("line", [row[0] for row in rows]),
        ),
    )


def cost_chart(numbers: Numbers) -> tuple[Chart, ...]:
    """Return cost against the number of students, from books and with the teachers online."""
    ledger = numbers.ledger
    if not ledger.book_students or None in (ledger.making_seconds, ledger.book_seconds, ledger.online_seconds):
        return ()
    making = ledger.making_seconds or 0.0
    book, online = ((total or 0.0) / ledger.book_students for total in (ledger.book_seconds, ledger.online_seconds))
    most = max(4, ledger.book_students, math.ceil(2 * (ledger.break_even or 0.0)))
    ways = {"from books": (making, book), "teachers online": (0.0, online)}
    values = [[way, count, rounded(start + count * each)] for way, (start, each) in ways.items() for count in (0, most)]
    even = "never" if ledger.break_even is None else f"at {number_text(ledger.break_even, 1)} students"
    alt_text = (
        f"Seconds against the number of students: from books {seconds_text(making)} once and {seconds_text(book)} each, with the "
        f"teachers online {seconds_text(online)} each. The lines cross {even}."
    )
    alt = altair()
    scale = alt.Scale(domain=list(ways), range=[colour("s1"), colour("s2")])
    lines = (
        alt.Chart(alt.NamedData("costs"))
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("students:Q", title="students", axis=alt.Axis(values=[0, *ticks(most)], format=",d")),
            y=alt.Y("seconds:Q", title="seconds", axis=alt.Axis(format=",~r")),
            color=alt.Color("way:N", scale=scale, legend=None),
            tooltip=["way:N", "students:Q", "seconds:Q"],
        )
    )
    text = "All students alike, at the mean of what was run. The book pays where its line is lower."
    legend = (Key("from books", "s1", "line"), Key("teachers online", "s2", "line"))
    data = {"costs": Data(("way", "students", "seconds"), values)}
    return (Chart("cost", "Cost against the number of students", text, {"": alt_text}, spec_of(lines), data, legend),)
