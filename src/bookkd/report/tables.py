"""The tables of a report: text for reading, with the number behind it for sorting; the formats only write them down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bookkd.evaluation import Difference, lower_is_better
from bookkd.report.arms import Spread
from bookkd.report.columns import Column
from bookkd.report.figures import Row
from bookkd.report.formats import (
    bytes_text,
    count_text,
    joined,
    number_text,
    points_text,
    signed_text,
)
from bookkd.report.numbers import Numbers

__all__ = [
    "ABSENT",
    "Cell",
    "Head",
    "Table",
    "cell",
    "difference_cell",
    "differences_table",
    "main_table",
    "percent_number",
    "plain",
    "spread_cell",
]

ABSENT = "–"
"""What stands where a run does not have a figure."""


@dataclass(frozen=True)
class Head:
    """The head of a column.

    Args:
        title: What is written.
        meaning: One line that explains it; may be empty.
        numeric: Whether the column holds numbers, which stand to the right.
    """

    title: str
    meaning: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        text: What is written.
        value: The number behind it at full precision, or a text to sort by; None where absent, which sorts last.
    """

    text: str
    value: float | str | None


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        title: What it shows.
        heads: One a column; the first one names the row.
        rows: One cell a column.
        note: What a reader must know; may be empty.
        falling: Place of the column by which the rows are sorted, greatest first; None where they are in no such order.
    """

    title: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    falling: int | None = None


def plain(text: str) -> Cell:
    """Return a cell that sorts by its text."""
    return Cell(text or ABSENT, text.casefold() or None)


def words(*titles: str) -> tuple[Head, ...]:
    """Return heads of columns that hold words."""
    return tuple(Head(title, numeric=False) for title in titles)


def percent_number(share: float) -> str:
    """Return a share as per cent where the head says so.

    >>> percent_number(0.78236)
    '78.24'
    """
    return number_text(100 * share, 2)


def cell(value: float | None, write: Callable[[float], str]) -> Cell:
    """Return the cell of a number that may be absent."""
    return Cell(ABSENT, None) if value is None else Cell(write(value), value)


def spread_cell(spread: Spread | None, kind: str) -> Cell:
    """Return the cell of a figure: its mean, and ± its standard deviation between seeds where it differs between them.

    >>> spread_cell(Spread(0.78236, 0.0031, 3), "percent").text, spread_cell(Spread(78042.0, 0.0, 3), "count").text
    ('78.24 ± 0.31', '78,042')
    """
    if spread is None:
        return Cell(ABSENT, None)
    write = _WRITERS[kind]
    sd = "" if not spread.sd else f" ± {write(spread.sd)}"
    return Cell(write(spread.mean) + sd, spread.mean)


_WRITERS: dict[str, Callable[[float], str]] = {
    "percent": percent_number,
    "number": lambda value: number_text(value, 3),
    "count": count_text,
    "bytes": bytes_text,
    "milliseconds": lambda value: number_text(value, 2),
    "seconds": lambda value: number_text(value, 1),
}
_UNITS = {"percent": ", %", "milliseconds": ", ms", "seconds": ", s"}


def difference_cell(difference: Difference | None, *, share: bool = True) -> Cell:
    """Return the cell of a difference with its 95 % interval.

    >>> difference_cell(Difference("a", 0.03, 0.005, 0.024, 0.036, 3, "")).text
    '+3.00 [+2.40, +3.60]'
    """
    if difference is None:
        return Cell(ABSENT, None)
    write = points_text if share else signed_text
    text = write(difference.mean)
    if difference.low is not None and difference.high is not None:
        text += f" [{write(difference.low)}, {write(difference.high)}]"
    return Cell(text, difference.mean)


def main_table(numbers: Numbers) -> Table:
    """Return the table of all arms."""
    first, *others = shown = _shown(numbers, numbers.columns)
    scored = any(row.terms is not None for row in numbers.rows)
    heads = [
        Head("arm", numeric=False),
        Head("student", numeric=False),
        Head("seeds", "number of runs that ended"),
        *_heads(numbers, [first]),
        Head(
            f"Δ {'points' if first.share else first.title}",
            f"{first.title} less that of the baseline with the same seed, mean and 95 % interval",
        ),
        Head("verdict", "the difference against the noise between seeds", numeric=False),
        *_heads(numbers, others),
    ]
    if scored:
        heads.append(
            Head(
                "α of crossing",
                "weight of size at which DS equals that of the best arm of the same teachers at 0.5; none where one is always better",
            )
        )
    rows = tuple(tuple(_main_cells(row, shown, scored)) for row in numbers.rows)
    falling = None if lower_is_better(first.key) else 3
    note = f"Mean ± standard deviation between seeds.{_computed_by(numbers, shown)}"
    return Table("All arms", tuple(heads), rows, note, falling=falling)


def _computed_by(numbers: Numbers, columns: Sequence[Column]) -> str:
    """Return the signatures of the columns that have one, to be told with their figures."""
    said = numbers.provenance.signatures
    found = [f"{column.title} {' and '.join(said[column.key])}" for column in columns if said.get(column.key)]
    return f" Signatures: {'; '.join(found)}." if found else ""


def _shown(numbers: Numbers, columns: Sequence[Column]) -> list[Column]:
    """Return the first column, and the others of which an arm has the figure."""
    first, *others = columns
    return [first, *(column for column in others if any(row.figures[column.key] is not None for row in numbers.rows))]


def _heads(numbers: Numbers, columns: Sequence[Column]) -> Iterable[Head]:
    for column in columns:
        batch = f", batch {numbers.latency_batch}" if column.key == "latency_ms" and numbers.latency_batch else ""
        yield Head(f"{column.title}{batch}{_UNITS.get(column.kind, '')}", column.meaning)


def _main_cells(row: Row, columns: Sequence[Column], scored: bool) -> Iterable[Cell]:
    difference = row.differences.get(columns[0].key)
    figures = [spread_cell(row.figures[column.key], column.kind) for column in columns]
    yield plain(row.arm)
    yield plain(row.student)
    yield cell(float(len(row.seeds)), lambda count: number_text(count, 0))
    yield figures[0]
    yield difference_cell(difference, share=columns[0].share)
    yield plain("" if difference is None else difference.verdict)
    yield from figures[1:]
    if scored:
        yield cell(row.crossing_alpha, lambda alpha: number_text(alpha, 2))


def differences_table(numbers: Numbers) -> Table:
    """Return the differences of all compared figures to the baseline of each arm."""
    columns = _shown(numbers, numbers.quality)
    heads = [
        Head("arm", numeric=False),
        Head("against", numeric=False),
        Head("seeds", "number of seeds that both have; where seeds are not paired, of the arm that has fewer"),
        *(Head(f"Δ {column.title}{', points' if column.share else ''}") for column in columns),
    ]
    rows = []
    for row in numbers.rows:
        if not row.differences:
            continue
        shared = max(difference.n for difference in row.differences.values())
        cells = [difference_cell(row.differences.get(column.key), share=column.share) for column in columns]
        rows.append(
            (plain(row.arm), plain(row.baseline), cell(float(shared), lambda count: number_text(count, 0)), *cells)
        )
    lower = [column.title for column in columns if lower_is_better(column.key)]
    apart = [row.arm for row in numbers.rows if any(not each.paired for each in row.differences.values())]
    pairs = f" Seeds not paired, since few or none are common, with Welch's interval: {joined(apart)}." if apart else ""
    note = f"Paired by seed, mean [95 % interval].{pairs}" + (f" Lower is better for {joined(lower)}." if lower else "")
    return Table("Differences to the baseline", tuple(heads), tuple(rows), note)
