"""Learning curves, and the entropy scalar with the entropies of book and student, against epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bookkd.report.charts.base import Chart, Choice, Data, Key, Keys, altair, rounded, spec_of
from bookkd.report.formats import number_text
from bookkd.report.numbers import Numbers
from bookkd.report.series import ENTROPIES, Series, thinned

__all__ = ["curve_charts", "entropy_charts", "ticks"]

_POINTS = 80
_COLUMNS = ("arm", "group", "entry", "epoch", "mean", "low", "high")


def curve_charts(numbers: Numbers, keys: Keys) -> tuple[Chart, ...]:
    """Return the learning curves, one entry at a time."""
    entries = list(dict.fromkeys(series.entry for series in numbers.curves))
    if not entries:
        return ()
    wanted = f"val/{numbers.first.key}"
    first = wanted if wanted in entries else entries[0]
    arms = {series.arm: series.arm for series in numbers.curves}
    choices = (
        Choice("entry", "show", {entry: entry for entry in entries}),
        Choice("arm", "arm", {"": "all arms", **arms}),
    )
    text = "Mean over the seeds of an arm; the band is their range."
    alt_text = {
        entry: f"{entry} against epochs. {_ends([each for each in numbers.curves if each.entry == entry])}"
        for entry in entries
    }
    layers = _layers(keys, numbers.curves, first)
    data = {"curves": _rows(numbers.curves, keys)}
    return (
        Chart(
            "curves",
            "Learning curves",
            text,
            alt_text,
            spec_of(layers, 360),
            data,
            _present(numbers.curves, keys),
            choices,
        ),
    )


def entropy_charts(numbers: Numbers, keys: Keys) -> tuple[Chart, ...]:
    """Return the scalar, and the entropies."""
    scale = [series for series in numbers.entropies if series.entry == ENTROPIES[0]]
    rest = [series for series in numbers.entropies if series.entry != ENTROPIES[0]]
    found = []
    if scale:
        alt_text = f"The entropy scalar against epochs. {_ends(scale)}"
        text = "1 leaves the student's logits as they are; above 1 the student is matched to the book as if it were surer than it is."
        spec = spec_of(_layers(keys, scale), 260)
        data = {"curves": _rows(scale, keys)}
        found.append(Chart("entropy-scale", "Entropy scalar", text, {"": alt_text}, spec, data, _present(scale, keys)))
    if rest:
        alt_text = f"Entropies of book and student against epochs. {_ends(rest)}"
        text = "Solid: the book. Dashed: the student."
        spec = spec_of(_entropies(keys, rest), 260)
        legend = (*_present(rest, keys), Key("student", "soft", "dashed"))
        found.append(
            Chart("entropies", "Entropy, nats", text, {"": alt_text}, spec, {"curves": _rows(rest, keys)}, legend)
        )
    return tuple(found)


def _present(series: Sequence[Series], keys: Keys) -> tuple[Key, ...]:
    return keys.legend("line", [each.arm for each in series])


def _rows(series: Sequence[Series], keys: Keys) -> Data:
    rows = []
    for each in series:
        for place in thinned(each.epochs, _POINTS):
            values = (rounded(part[place]) for part in (each.mean, each.low, each.high))
            rows.append([each.arm, keys.group[each.arm], each.entry, each.epochs[place], *values])
    return Data(_COLUMNS, rows)


def _layers(keys: Keys, shown: Sequence[Series], entry: str = "") -> Any:
    alt = altair()
    base = alt.Chart(alt.NamedData("curves"))
    if entry:
        base = base.transform_filter("datum.entry === entry").transform_filter("arm === '' || datum.arm === arm")
    x = _epochs(shown)
    y = alt.Y("mean:Q", title=None, scale=alt.Scale(zero=False))
    hue = alt.Color("group:N", scale=keys.scale(), legend=None)
    tooltip = [alt.Tooltip("arm:N"), alt.Tooltip("epoch:Q"), alt.Tooltip("mean:Q")]
    layers = alt.layer(
        base.mark_area(opacity=0.15, aria=False).encode(x=x, y="low:Q", y2="high:Q", color=hue, detail="arm:N"),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=hue, detail="arm:N"),
        base.mark_point(opacity=0, size=60, aria=False).encode(x=x, y=y, detail="arm:N", tooltip=tooltip),
    )
    if not entry:
        return layers
    return layers.add_params(alt.param(name="entry", value=entry), alt.param(name="arm", value=""))


def _entropies(keys: Keys, shown: Sequence[Series]) -> Any:
    alt = altair()
    dash = alt.Scale(domain=[ENTROPIES[1], ENTROPIES[2]], range=[[1, 0], [5, 3]])
    return (
        alt.Chart(alt.NamedData("curves"))
        .mark_line(strokeWidth=2)
        .encode(
            x=_epochs(shown),
            y=alt.Y("mean:Q", title=None, scale=alt.Scale(zero=False)),
            color=alt.Color("group:N", scale=keys.scale(), legend=None),
            strokeDash=alt.StrokeDash("entry:N", scale=dash, legend=None),
            detail="arm:N",
            tooltip=["arm:N", "entry:N", "epoch:Q", "mean:Q"],
        )
    )


def _epochs(shown: Sequence[Series]) -> Any:
    alt = altair()
    last = max(series.epochs[-1] for series in shown)
    # Without values of its own, an axis of three epochs is marked at halves that are written as whole numbers.
    return alt.X(
        "epoch:Q",
        title="epoch",
        axis=alt.Axis(values=ticks(last), format="d"),
        scale=alt.Scale(nice=False),
    )


def ticks(last: int, most: int = 10) -> list[int]:
    """Return round epochs up to the last one, at most `most`.

    >>> ticks(3), ticks(20), ticks(200, most=5)
    ([1, 2, 3], [2, 4, 6, 8, 10, 12, 14, 16, 18, 20], [50, 100, 150, 200])
    """
    sizes = (lead * 10**power for power in range(19) for lead in (1, 2, 5))
    step = next(size for size in sizes if size * most >= last)
    return list(range(step, last + 1, step))


def _ends(series: Sequence[Series]) -> str:
    shown = [f"{each.arm} ends at {number_text(each.mean[-1])}" for each in series[:6]]
    more = f" and {len(series) - 6} more" if len(series) > 6 else ""
    return f"{', '.join(shown)}{more}."
