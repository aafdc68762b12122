"""Heat maps of gates: what each child reads of each parent, and which classes read the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bookkd.report.charts.base import Chart, Choice, Data, Key, altair, colour, percent, spec_of
from bookkd.report.formats import number_text, percent_text, points_text
from bookkd.report.gates import Gates

__all__ = ["gate_charts"]

_WRITTEN = 12
_MOST = 60


def gate_charts(gates: Sequence[Gates]) -> tuple[Chart, ...]:
    """Return the heat maps of gates and of classes that read the same; of at most 60 rows, beyond which nobody could read them."""
    few = [each for each in gates if len(each.rows) <= _MOST]
    classes = [each for each in few if each.together]
    found = []
    if few:
        found.append(_shares_chart(few))
    if classes:
        found.append(_together_chart(classes))
    changed = [each for each in classes if each.changed]
    if changed:
        found.append(_changed_chart(changed))
    return tuple(found)


def _layers(gates: Sequence[Gates], parameter: str, label: str = "layer") -> tuple[Choice, ...]:
    arms = {each.arm: each.arm for each in gates}
    # What is of classes comes first: it is what a reader looks for.
    layers = sorted(gates, key=lambda each: not each.of_classes)
    return Choice("arm", "arm", arms), Choice(parameter, label, {each.layer: each.layer for each in layers})


def _shares_chart(gates: Sequence[Gates]) -> Chart:
    rows = [
        [
            each.arm,
            each.layer,
            child,
            parent,
            percent(share),
            y,
            x,
            f"{child} reads {percent_text(share, 0)} of {parent}",
        ]
        for each in gates
        for y, (child, line) in enumerate(zip(each.rows, each.shares, strict=True))
        for x, (parent, share) in enumerate(zip(each.columns, line, strict=True))
    ]
    columns = ("arm", "layer", "row", "column", "share", "y", "x", "label")
    choices = _layers(gates, "layer")
    title = "What each child reads of each parent"
    first = [_first(choices, 0), _first(choices, 1)]
    most = max(len(each.rows) for each in gates)
    return Chart(
        "gates",
        title,
        "Per cent, of the first seed; a row adds up to 100. A row of one dark square is a specialist, a row of even squares reads all "
        "alike. Rows are classes where the layer is of classes, else blocks; parents are numbered by each seed as it likes.",
        {arm: f"{title}, {arm}. {_sharpest(gates, arm)}" for arm in choices[0].options},
        spec_of(
            _heat("gates", ("arm", "layer"), first, "parent", "it is read by", few=most <= _WRITTEN), _height(most)
        ),
        {"gates": Data(columns, rows)},
        choices=choices,
    )


def _together_chart(gates: Sequence[Gates]) -> Chart:
    rows = [
        [
            each.arm,
            each.layer,
            names[y],
            names[x],
            percent(share),
            y,
            x,
            f"{names[y]} and {names[x]} share {percent_text(share, 0)}",
        ]
        for each in gates
        for names in ([each.rows[place] for place in each.order],)
        for y, line in enumerate(each.together)
        for x, share in enumerate(line)
    ]
    columns = ("arm", "of", "row", "column", "share", "y", "x", "label")
    choices = _layers(gates, "of", "classes of")
    title = "Which classes read the same parents"
    most = max(len(each.rows) for each in gates)
    return Chart(
        "together",
        title,
        "Per cent that two classes read of the same parents, mean over seeds; classes that share stand together. Compare arms: where a "
        "teacher speaks, do other classes share, and do fewer?",
        {arm: f"{title}, {arm}. {_nearest(gates, arm)}" for arm in choices[0].options},
        spec_of(
            _heat(
                "together",
                ("arm", "of"),
                [_first(choices, 0), _first(choices, 1)],
                "class",
                "class",
                few=most <= _WRITTEN,
            ),
            _height(most),
        ),
        {"together": Data(columns, rows)},
        choices=choices,
    )


def _changed_chart(gates: Sequence[Gates]) -> Chart:
    rows = [
        [
            each.arm,
            each.layer,
            names[y],
            names[x],
            percent(more),
            y,
            x,
            f"{names[y]} and {names[x]}: {points_text(more, 0)} points",
        ]
        for each in gates
        for names in ([each.rows[place] for place in each.order],)
        for y, line in enumerate(each.changed)
        for x, more in enumerate(line)
    ]
    columns = ("arm", "of", "row", "column", "share", "y", "x", "label")
    choices = _layers(gates, "of", "classes of")
    title = "How that differs from labels alone"
    most = max(len(each.rows) for each in gates)
    first = [_first(choices, 0), _first(choices, 1)]
    return Chart(
        "changed",
        title,
        "Points by which two classes share more or less than in the arm of the same method that learnt from plain labels, means over seeds.",
        {arm: f"{title}, {arm}. {_farthest(gates, arm)}" for arm in choices[0].options},
        spec_of(
            _heat("changed", ("arm", "of"), first, "class", "class", few=most <= _WRITTEN, signed=True), _height(most)
        ),
        {"changed": Data(columns, rows)},
        (Key("share more", "gain", "square"), Key("share less", "loss", "square")),
        choices,
    )


def _farthest(gates: Sequence[Gates], arm: str) -> str:
    each = next((one for one in gates if one.arm == arm), None)
    if each is None or len(each.rows) < 2:
        return ""
    names = [each.rows[place] for place in each.order]
    pairs = [(more, names[y], names[x]) for y, line in enumerate(each.changed) for x, more in enumerate(line) if x > y]
    low, high = min(pairs), max(pairs)
    told = [f"{points_text(more, 0)} points for {one} and {other}" for more, one, other in (low, high)]
    return f"{each.layer}: from {told[0]} to {told[1]}."


def _first(choices: Sequence[Choice], place: int) -> str:
    return next(iter(choices[place].options))


def _height(rows: int) -> int:
    return (26 if rows <= _WRITTEN else 15) * max(rows, 6)


def _sharpest(gates: Sequence[Gates], arm: str) -> str:
    spreads = [(each.spread.mean, each.layer) for each in gates if each.arm == arm and each.spread is not None]
    if not spreads:
        return ""
    low, high = min(spreads), max(spreads)
    return f"Spread from {number_text(low[0])} in {low[1]} to {number_text(high[0])} in {high[1]}; 1 is even, 0 one parent alone."


def _nearest(gates: Sequence[Gates], arm: str) -> str:
    each = next((one for one in gates if one.arm == arm), None)
    if each is None or len(each.rows) < 2:
        return ""
    names = [each.rows[place] for place in each.order]
    pairs = [
        (share, names[y], names[x]) for y, line in enumerate(each.together) for x, share in enumerate(line) if x > y
    ]
    most = max(pairs)
    return f"{each.layer}: {most[1]} and {most[2]} share most, {percent_text(most[0], 0)}."


def _heat(
    name: str,
    parameters: tuple[str, str],
    first: Sequence[str],
    across: str,
    down: str,
    *,
    few: bool,
    signed: bool = False,
) -> Any:
    alt = altair()
    base = alt.Chart(alt.NamedData(name))
    for parameter in parameters:
        base = base.transform_filter(f"datum.{parameter} === {parameter}")
    x = alt.X("column:N", title=across, sort=alt.EncodingSortField("x", op="min"), axis=alt.Axis(labelAngle=-45))
    y = alt.Y("row:N", title=down, sort=alt.EncodingSortField("y", op="min"))
    reach, strength = ([-60, 0, 60], [1, 0, 1]) if signed else ([0, 100], [0, 1])
    scale = alt.Scale(domain=reach, range=strength, clamp=True)
    more = alt.condition("datum.share < 0", alt.value(colour("loss")), alt.value(colour("gain")))
    squares = base.mark_rect(stroke=colour("line"), strokeWidth=0.5).encode(
        x=x,
        y=y,
        fill=more if signed else alt.value(colour("heat")),
        fillOpacity=alt.FillOpacity("share:Q", scale=scale, legend=None),
        tooltip=["row:N", "column:N", "share:Q"],
        description="label:N",
    )
    layers = [squares]
    if few:
        deep = "abs(datum.share) > 35" if signed else "datum.share > 55"
        ink = alt.condition(deep, alt.value(colour("on-heat")), alt.value(colour("ink")))
        layers.append(
            base.mark_text(fontSize=10, aria=False).encode(x=x, y=y, text=alt.Text("share:Q", format=".0f"), color=ink)
        )
    chart = alt.layer(*layers)
    for parameter, value in zip(parameters, first, strict=True):
        chart = chart.add_params(alt.param(name=parameter, value=value))
    return chart
