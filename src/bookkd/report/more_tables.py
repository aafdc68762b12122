"""The tables of teachers, costs, curves and runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bookkd.report.formats import bytes_text, capital, count_text, number_text, percent_text, seconds_text
from bookkd.report.numbers import Numbers
from bookkd.report.series import Series
from bookkd.report.tables import Cell, Head, Table, cell, percent_number, plain, spread_cell, words

__all__ = [
    "books_table",
    "failed_table",
    "ledger_table",
    "pareto_table",
    "runs_table",
    "series_table",
    "teachers_table",
    "totals_table",
]


def _number(digits: int) -> Callable[[float], str]:
    return lambda value: number_text(value, digits)


def _titled(numbers: Numbers) -> str:
    return f"{numbers.first.title}{', %' if numbers.first.share else ''}"


def _writer(numbers: Numbers) -> Callable[[float], str]:
    return percent_number if numbers.first.share else _number(3)


def teachers_table(numbers: Numbers) -> Table:
    """Return each teacher once."""
    heads = (
        *words("teacher", "digest"),
        Head(_titled(numbers)),
        *words("split"),
        Head("parameters"),
        Head("bytes"),
        Head("arms"),
    )
    rows = tuple(
        (
            plain(teacher.name),
            plain(teacher.digest[:16]),
            cell(teacher.accuracy, _writer(numbers)),
            plain(teacher.split),
            cell(teacher.parameters, count_text),
            cell(teacher.bytes, bytes_text),
            cell(float(len(teacher.arms)), _number(0)),
        )
        for teacher in numbers.teachers
    )
    return Table("Teachers", heads, rows)


def pareto_table(numbers: Numbers) -> Table:
    """Return the networks of the charts of quality against cost."""
    rows = tuple(
        (
            plain("parameters" if axis == "parameters" else f"ms, {axis}"),
            plain(point.name),
            plain(point.kind),
            cell(point.cost, count_text if axis == "parameters" else _number(2)),
            cell(point.quality, _writer(numbers)),
            plain("yes" if point.front else "no"),
        )
        for axis, points in numbers.pareto.items()
        for point in points
    )
    heads = (
        *words("cost", "network", "is"),
        Head("value"),
        Head(_titled(numbers)),
        *words("nothing better and cheaper"),
    )
    return Table(f"{capital(numbers.first.title)} against size and latency", heads, rows)


def books_table(numbers: Numbers) -> Table:
    """Return each book once with its making."""
    titles = ("samples", "views", "records", "bytes", "making", "teacher passes", "students")
    rows = tuple(
        (
            plain(book.label),
            plain(book.content_digest[:16]),
            cell(book.samples, count_text),
            cell(book.views, _number(0)),
            cell(book.records, count_text),
            cell(book.bytes, bytes_text),
            cell(book.seconds, seconds_text),
            cell(book.teacher_forwards, count_text),
            cell(float(book.students), _number(0)),
        )
        for book in numbers.ledger.books
    )
    made_of = any(book.parts for book in numbers.ledger.books)
    note = "The making of a book holds that of the books it was made of; the sum counts each once." if made_of else ""
    return Table("Books, each made once", (*words("book", "content digest"), *map(Head, titles)), rows, note)


def ledger_table(numbers: Numbers) -> Table:
    """Return what the students of each arm cost."""
    heads = (
        *words("arm", "learns from"),
        Head("students"),
        Head("learning a student, s"),
        Head("teacher passes", "while learning, all students together"),
        Head("making, s", "of the books it learns from, once"),
        Head("online a student, s", "what one student would take with the teachers asked at each step"),
        *words("known by"),
        Head("break-even", "making over what a student saves: with more students than this the book is cheaper"),
    )
    rows = tuple(
        (
            plain(cost.arm),
            plain(cost.source),
            cell(float(cost.students), _number(0)),
            spread_cell(cost.seconds, "seconds"),
            cell(cost.teacher_forwards, count_text),
            cell(cost.making_seconds, _number(1)),
            cell(cost.online_seconds, _number(1)),
            plain(cost.online_from),
            cell(cost.break_even, _number(1)) if cost.break_even is not None else Cell("n/a", None),
        )
        for cost in numbers.ledger.arms
    )
    return Table(
        "Learning, by arm",
        heads,
        rows,
        "Runs that failed are not in it. Seconds of one machine mean nothing on another.",
    )


def totals_table(numbers: Numbers) -> Table:
    """Return the sums of the ledger."""
    ledger = numbers.ledger
    rows: Sequence[tuple[str, float | None, Callable[[float], str]]] = (
        ("making all books, once", ledger.making_seconds, seconds_text),
        ("teacher passes of making", ledger.making_forwards, count_text),
        ("bytes of all books", ledger.book_bytes, bytes_text),
        ("learning, all students", ledger.learning_seconds, seconds_text),
        ("teacher passes while learning", ledger.learning_forwards, count_text),
        ("students that learned from books", float(ledger.book_students), _number(0)),
        ("learning of those", ledger.book_seconds, seconds_text),
        ("those with the teachers online", ledger.online_seconds, seconds_text),
        ("break-even number of students", ledger.break_even, _number(1)),
    )
    cells = tuple((plain(name), cell(value, write)) for name, value, write in rows)
    return Table("In all", (*words("what"), Head("value")), cells)


def series_table(series: Sequence[Series], title: str) -> Table:
    """Return first, last, least and most of each curve."""
    heads = (*words("arm", "entry"), *map(Head, ("epochs", "first", "last", "least", "most")))
    rows = tuple(
        (
            plain(each.arm),
            plain(each.entry),
            cell(float(each.epochs[-1]), _number(0)),
            *(cell(value, _number(4)) for value in (each.mean[0], each.mean[-1], min(each.mean), max(each.mean))),
        )
        for each in series
    )
    return Table(title, heads, rows, "Mean over the seeds; every epoch is in --format json.")


def failed_table(numbers: Numbers) -> Table:
    """Return the runs that failed."""
    failed = (run for run in numbers.provenance.runs if run.status == "failed")
    rows = tuple(
        (plain(run.arm), cell(float(run.seed), _number(0)), plain(run.error), plain(run.folder)) for run in failed
    )
    return Table("Failed runs", (*words("arm"), Head("seed"), *words("error", "folder")), rows)


_MEMORY = (
    (
        "peak memory",
        "most memory of the process while the run went, with data and views it shares with others",
        "peak_bytes",
    ),
    ("peak GPU memory", "most memory that tensors held on the GPU while the run went", "gpu_peak_bytes"),
)


def runs_table(numbers: Numbers) -> Table:
    """Return every run."""
    runs = numbers.provenance.runs
    memory = [
        (title, meaning, key) for title, meaning, key in _MEMORY if any(getattr(run, key) is not None for run in runs)
    ]
    titles: Iterable[Head] = (
        Head("seed"),
        *words("status"),
        Head(numbers.first.title),
        Head("epochs"),
        Head("of epoch"),
        Head("learning"),
        *(Head(title, meaning) for title, meaning, _ in memory),
    )
    rows = tuple(
        (
            plain(run.arm),
            cell(float(run.seed), _number(0)),
            plain(run.status),
            cell(run.quality, percent_text if numbers.first.share else _number(3)),
            cell(run.epochs, _number(0)),
            cell(run.epoch, _number(0)),
            cell(run.seconds, seconds_text),
            *(cell(getattr(run, key), bytes_text) for *_, key in memory),
            plain(run.weights),
            plain(run.folder),
        )
        for run in runs
    )
    return Table("Runs", (*words("arm"), *titles, *words("digest of the weights", "folder")), rows)
