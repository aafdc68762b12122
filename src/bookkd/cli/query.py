"""`bookkd query`; needs no torch."""

from __future__ import annotations

import csv as csv_module
import io
import sys
from typing import Any

from bookkd.book import Book
from bookkd.cli._show import console, rows
from bookkd.cli._verb import Verb, note
from bookkd.query import query as ask

TABLE_ROWS = 40


def query(book: str, sql: str, csv: bool = False, limit: int | None = None, stats: str | None = None) -> dict[str, Any]:
    """Ask a book in SQL: who disagrees, which labels look wrong, what is hard; `bookkd stats` comes first.

    Tables: records, teacher_0, teacher_1..., teachers, classes, samples (books with keys). One SELECT, in the dialect of
    DuckDB, which can read nothing else and write nothing.

    Args:
        book: Folder of the book, or its address (s3://..., https://...).
        sql: The SELECT.
        csv: Print all rows as CSV.
        limit: Most rows; 40 for the table and all for --json and --csv where none is given.
        stats: Folder of the statistics, where they are not inside the book.
    """
    found = ask(Book(book), sql, statistics=stats, limit=limit)
    return {
        "columns": list(found.columns),
        "rows": [list(row) for row in found.rows],
        "more": found.more,
        "csv": csv,
        "limit": limit,
    }


def show(result: dict[str, Any]) -> None:
    """Print a table, or CSV."""
    found = result["rows"]
    if result["csv"]:
        text = io.StringIO()
        writer = csv_module.writer(text, lineterminator="\n")
        writer.writerows([result["columns"], *(["" if value is None else value for value in row] for row in found)])
        sys.stdout.write(text.getvalue())
    else:
        shown = found[: result["limit"] or TABLE_ROWS]
        cells = [["" if value is None else _short(value) for value in row] for row in shown]
        console().print(rows("", result["columns"], cells), markup=False)
        if len(found) > len(shown):
            note(f"{len(found) - len(shown):,} more rows; pass --limit N, --csv or --json.")
    if result["more"]:
        note(f"There are more than {len(found):,} rows; pass a greater --limit.")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


VERB = Verb(
    "query",
    query,
    show,
    '  bookkd query books/resnet56 "select top1, count(*) as n from records group by top1 order by n desc"',
    positional={"book": False, "sql": False},
)
