"""The charts of a page: specifications of Vega-Lite by Altair, with alternative text; the page fills in the data."""

from __future__ import annotations

from bookkd.report.charts.base import Chart, Choice, Data, Key, keys_of
from bookkd.report.charts.closely import closely
from bookkd.report.charts.curves import curve_charts, entropy_charts
from bookkd.report.charts.gates import gate_charts
from bookkd.report.charts.overview import cost_chart, score_chart, size_charts
from bookkd.report.numbers import Numbers

__all__ = ["Chart", "Choice", "Data", "Key", "charts_of"]


def charts_of(numbers: Numbers) -> dict[str, tuple[Chart, ...]]:
    """Return the charts of each section that has any.

    Raises:
        MissingExtraError: if Altair is not installed.
    """
    keys = keys_of(numbers)
    calibration, classes = closely(numbers)
    found = {
        "size": (*size_charts(numbers, keys), *score_chart(numbers, keys)),
        "curves": curve_charts(numbers, keys),
        "calibration": calibration,
        "classes": classes,
        "gates": gate_charts(numbers.gates),
        "entropy": entropy_charts(numbers, keys),
        "cost": cost_chart(numbers),
    }
    return {section: charts for section, charts in found.items() if charts}
