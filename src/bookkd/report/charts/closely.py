"""One arm closely: reliability before and after temperature scaling, recall by class, who is taken for whom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bookkd.report.charts.base import Chart, Choice, Data, Key, altair, colour, percent, rounded, spec_of
from bookkd.report.class_tables import shown_classes
from bookkd.report.classes import Bin, Calibration, ClassDifference, Confusion
from bookkd.report.formats import capital, number_text, percent_text, points_text
from bookkd.report.numbers import Numbers

__all__ = ["closely"]

_CELLS = 20
_WRITTEN = 12


def closely(numbers: Numbers) -> tuple[tuple[Chart, ...], tuple[Chart, ...]]:
    """Return the charts of calibration and those of classes; each shows the arm that the reader chooses."""
    return tuple(_reliability(numbers.calibration)), (*_classes(numbers), *_confusions(numbers.confusions))


def _choice(arms: Iterable[str]) -> tuple[Choice, ...]:
    return (Choice("arm", "arm", {arm: arm for arm in arms}),)


def _reliability(calibration: Sequence[Calibration]) -> Iterable[Chart]:
    text = "Bars that end at their diamond are honest: of what is said with 80 % confidence, 80 % is right. All seeds together."
    for when in ("before", "after"):
        bins = {each.arm: each.before if when == "before" else each.after for each in calibration}
        bins = {arm: some for arm, some in bins.items() if some}
        if not bins:
            continue
        title = f"Reliability {when} temperature scaling"
        errors = {each.arm: each.ece if when == "before" else each.ece_after for each in calibration}
        told = {
            arm: "" if spread is None else f" Calibration error {number_text(spread.mean)}."
            for arm, spread in errors.items()
        }
        alt = {
            arm: f"{title}, accuracy against confidence of {arm}.{told[arm]} {_far(some)}" for arm, some in bins.items()
        }
        rows = [[arm, *_bin_row(each)] for arm, some in bins.items() for each in some]
        data = {"bins": Data(("arm", "low", "high", "confidence", "accuracy", "count", "label"), rows)}
        spec = spec_of(_bars(next(iter(bins))), 280)
        yield Chart(f"reliability-{when}", title, text, alt, spec, data, choices=_choice(bins))


def _bin_row(one: Bin) -> list[Any]:
    label = f"Confidence {percent_text(one.low, 0)} to {percent_text(one.high, 0)}: {percent_text(one.accuracy, 1)} right of {one.count:,.0f}"
    return [*(rounded(value) for value in (one.low, one.high, one.confidence, one.accuracy)), one.count, label]


def _far(bins: Sequence[Bin]) -> str:
    worst = max(bins, key=lambda each: abs(each.accuracy - each.confidence) * each.count)
    return f"Farthest off by its samples: {percent_text(worst.accuracy, 0)} right where {percent_text(worst.confidence, 0)} was said."


def _bars(arm: str) -> Any:
    alt = altair()
    base = alt.Chart(alt.NamedData("bins")).transform_filter("datum.arm === arm")
    unit = alt.Scale(domain=[0, 1])
    marks = alt.Axis(format="%", tickCount=5)
    tooltip = [alt.Tooltip(f"{name}:Q", format=".3~f") for name in ("confidence", "accuracy")]
    bars = base.mark_bar(color=colour("s1"), stroke=colour("page")).encode(
        x=alt.X("low:Q", title="confidence", scale=unit, axis=marks),
        x2="high:Q",
        y=alt.Y("accuracy:Q", title="accuracy", scale=unit, axis=marks),
        y2=alt.datum(0),
        tooltip=[*tooltip, alt.Tooltip("count:Q", format=",")],
        description="label:N",
    )
    said = base.mark_point(shape="diamond", filled=True, size=40, color=colour("ink"), opacity=1, aria=False)
    ends = alt.Chart(alt.Data(values=[{"at": 0}, {"at": 1}]))
    honest = ends.mark_line(strokeDash=[2, 3], color=colour("soft"), aria=False)
    return alt.layer(
        bars,
        honest.encode(x=alt.X("at:Q", scale=unit), y=alt.Y("at:Q", scale=unit)),
        said.encode(x=alt.X("confidence:Q", scale=unit), y=alt.Y("confidence:Q", scale=unit)),
    ).add_params(alt.param(name="arm", value=arm))


def _classes(numbers: Numbers) -> tuple[Chart, ...]:
    arms: dict[str, list[ClassDifference]] = {}
    for each in shown_classes(numbers.classes):
        arms.setdefault(each.arm, []).append(each)
    if not arms:
        return ()
    measure = numbers.classes[0].measure
    rows = [_class_row(each, _widest(some)) for some in arms.values() for each in some]
    columns = ("arm", "class", "against", "points", "from", "to", "low", "high", "label")
    return (
        Chart(
            "classes",
            f"{capital(measure)} by class against the baseline",
            "Lines are 95 % intervals between seeds, cut where they leave the chart: where one crosses 0, the difference is "
            "inside the noise.",
            {arm: _class_alt(some[0], some[-1]) for arm, some in arms.items()},
            spec_of(_class_layers(next(iter(arms))), 22 * max(map(len, arms.values()))),
            {"classes": Data(columns, rows)},
            (Key("better than the baseline", "gain", "square"), Key("worse", "loss", "square")),
            _choice(arms),
        ),
    )


def _class_alt(low: ClassDifference, high: ClassDifference) -> str:
    ends = [f"{points_text(each.difference.mean)} for {each.name}" for each in (low, high)]
    return f"{capital(low.measure)} by class of {low.arm} less that of {low.difference.against}, in points: from {ends[0]} to {ends[1]}."


def _widest(classes: Sequence[ClassDifference]) -> float:
    """Return where intervals are cut: two seeds give ones of hundreds of points, beside which no bar could be seen."""
    return 3 * max(0.01, *(abs(each.difference.mean) for each in classes))


def _class_row(each: ClassDifference, widest: float) -> list[Any]:
    difference = each.difference
    ends = [difference.mean if end is None else end for end in (difference.low, difference.high)]
    drawn = [min(max(end, -widest), widest) for end in ends]
    label = f"{each.name}: {points_text(difference.mean)} points, {each.measure} {percent_text(each.value.mean)}"
    return [each.arm, each.name, difference.against, *map(percent, (difference.mean, *drawn, *ends)), label]


def _class_layers(arm: str) -> Any:
    alt = altair()
    base = alt.Chart(alt.NamedData("classes")).transform_filter("datum.arm === arm")
    y = alt.Y("class:N", title=None, sort=alt.EncodingSortField("points", op="min", order="ascending"))
    bars = base.mark_bar(height={"band": 0.65}).encode(
        x=alt.X("points:Q", title="points against the baseline"),
        y=y,
        color=alt.condition("datum.points < 0", alt.value(colour("loss")), alt.value(colour("gain"))),
        tooltip=["class:N", "points:Q", "low:Q", "high:Q", "against:N"],
        description="label:N",
    )
    noise = base.mark_rule(color=colour("ink"), aria=False).encode(x="from:Q", x2="to:Q", y=y)
    return alt.layer(bars, noise).add_params(alt.param(name="arm", value=arm))


def _confusions(confusions: Sequence[Confusion]) -> Iterable[Chart]:
    few = [each for each in confusions if len(each.class_names) <= _CELLS]
    for who in ("student", "teacher"):
        shares = {each.arm: each.student if who == "student" else each.teacher for each in few}
        if any(shares.values()):
            yield _heat(few, {arm: some for arm, some in shares.items() if some}, who)


def _heat(confusions: Sequence[Confusion], shares: dict[str, tuple[tuple[float, ...], ...]], who: str) -> Chart:
    names = {each.arm: each.class_names for each in confusions}
    cells = [
        (arm, true, predicted, share)
        for arm, some in shares.items()
        for true, row in zip(names[arm], some, strict=True)
        for predicted, share in zip(names[arm], row, strict=True)
    ]
    rows = [[*cell[:3], percent(cell[3]), f"{cell[1]} taken for {cell[2]}: {percent_text(cell[3])}"] for cell in cells]
    title = f"What the {who} takes each class for"
    alt = {}
    for arm in shares:
        wrong = [cell for cell in cells if cell[0] == arm and cell[1] != cell[2]]
        worst = max(wrong, key=lambda cell: cell[3], default=(arm, "nothing", "anything", 0.0))
        alt[arm] = (
            f"{title}, {arm}. Most frequent mistake: {worst[1]} taken for {worst[2]}, {percent_text(worst[3], 1)}."
        )
    order = list(dict.fromkeys(name for arm in shares for name in names[arm]))
    return Chart(
        f"confusion-{who}",
        title,
        "Per cent of the samples of a class (row). All seeds together.",
        alt,
        spec_of(_heat_layers(next(iter(shares)), order, who), 26 * len(order)),
        {"cells": Data(("arm", "true", "predicted", "share", "label"), rows)},
        choices=_choice(shares),
    )


def _heat_layers(arm: str, names: Sequence[str], who: str) -> Any:
    alt = altair()
    base = alt.Chart(alt.NamedData("cells")).transform_filter("datum.arm === arm")
    x = alt.X("predicted:N", title=f"the {who} says", sort=names, axis=alt.Axis(labelAngle=-45))
    y = alt.Y("true:N", title="it is", sort=names)
    # A root shows the few per cent of a mistake beside the many of what is right.
    depth = alt.FillOpacity("share:Q", scale=alt.Scale(type="sqrt", domain=[0, 100], range=[0, 1]), legend=None)
    squares = base.mark_rect(fill=colour("heat"), stroke=colour("line"), strokeWidth=0.5).encode(
        x=x, y=y, fillOpacity=depth, tooltip=["true:N", "predicted:N", "share:Q"], description="label:N"
    )
    layers = [squares]
    if len(names) <= _WRITTEN:
        ink = alt.condition("datum.share > 40", alt.value(colour("on-heat")), alt.value(colour("ink")))
        written = base.transform_filter("datum.share >= 0.5").mark_text(fontSize=10, aria=False)
        layers.append(written.encode(x=x, y=y, text=alt.Text("share:Q", format=".0f"), color=ink))
    return alt.layer(*layers).add_params(alt.param(name="arm", value=arm))
