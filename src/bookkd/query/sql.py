"""SQL over the statistics of a book: one SELECT, in memory, without a way to any file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from bookkd.book import Book
from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import require
from bookkd.query.statistics import Statistics, open_statistics, schema

__all__ = ["QueryResult", "query"]

# Set before any SQL of the caller runs. The last one makes all of them final.
_LOCKS = (
    "SET temp_directory = ''",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
_CONFIG = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,  # a name in SQL is no variable of the caller
}


@dataclass(frozen=True)
class QueryResult:
    """What a query found.

    Args:
        columns: Names.
        rows: Tuples of plain values.
        more: Whether there are rows beyond the limit.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    more: bool = False


def query(
    book: Book, sql: str, *, statistics: Statistics | str | Path | None = None, limit: int | None = None
) -> QueryResult:
    """Ask a book in SQL; see `write_statistics`, which comes first.

    Tables: `records` (sample, view, teacher, top1, confidence, margin, entropy; with labels also label, label_probability,
    teacher_correct), `teacher_0`, `teacher_1`... (the records of one), `teachers` (teacher, name, field, temperature,
    accuracy), `classes` (class, name), and `samples` (sample, key) where the book has keys.

    The database is in memory and knows nothing else: SQL reads and writes no file, loads no extension, sees no variable of
    the program and cannot change these settings. One SELECT a call.

    Args:
        book: The book.
        sql: One SELECT, in the dialect of DuckDB.
        statistics: What `write_statistics` returned, or its folder; the folder `stats` of the book where None.
        limit: Most rows that are returned; all where None.

    Returns:
        Columns and rows.

    Raises:
        ConfigError: for SQL that is no SELECT or that DuckDB refuses, with its reason and the tables.
        BookMissingError: without statistics.
        BookMismatchError: if they are those of another edition.
        MissingExtraError: without DuckDB and pyarrow, which the extra `query` brings.

    >>> import numpy as np, tempfile
    >>> from bookkd.book import BookWriter, Dense, FieldPlan, Plan
    >>> from bookkd.query import write_statistics
    >>> plan = Plan(n_samples=3, n_views=1, fields={"logits": FieldPlan((3,), Dense())})
    >>> with tempfile.TemporaryDirectory() as folder, BookWriter(folder, plan) as writer:
    ...     writer.write_rows(0, 0, {"logits": np.array([[0.0, 9, 0], [1, 0, 0], [0, 9, 0]])})
    ...     book = writer.finish()
    ...     made = write_statistics(book)
    ...     query(book, "select top1, count(*) as n from records group by top1 order by n desc").rows
    [(1, 2), (0, 1)]
    """
    if limit is not None:
        at_least(limit, 1, "limit", where="query")
    found = statistics if isinstance(statistics, Statistics) else open_statistics(book, statistics)
    duckdb = require("duckdb", "query")
    with _connected(duckdb, book, found) as connection:
        try:
            _one_select(duckdb, connection, sql)
            done = connection.execute(sql)
            columns = tuple(str(column[0]) for column in done.description)
            rows = done.fetchall() if limit is None else done.fetchmany(limit + 1)
        except duckdb.Error as error:
            raise ConfigError(_explained(connection, str(error))) from error
    plain = [tuple(_plain(value) for value in row) for row in rows[:limit]]
    return QueryResult(columns, plain, limit is not None and len(rows) > limit)


@contextmanager
def _connected(duckdb: Any, book: Book, found: Statistics) -> Iterator[Any]:
    """Give a database of the tables that nothing can leave."""
    pa, dataset = require("pyarrow", "query"), require("pyarrow.dataset", "query")
    connection = duckdb.connect(":memory:", config=_CONFIG)
    try:
        files = [str(path) for path in found.files]
        connection.register("records", dataset.dataset(files, schema=schema(labels=found.labels), format="parquet"))
        for name, table in _small_tables(pa, book, found).items():
            connection.register(name, table)
        for teacher in found.teachers:
            connection.execute(
                f"CREATE VIEW teacher_{teacher.number} AS "  # noqa: S608 - a number of ours
                f"SELECT * EXCLUDE (teacher) FROM records WHERE teacher = {teacher.number}"
            )
        for lock in _LOCKS:
            connection.execute(lock)
        yield connection
    finally:
        connection.close()


def _small_tables(pa: Any, book: Book, found: Statistics) -> dict[str, Any]:
    infos = book.plan.teachers
    known = [infos[each.number] if each.number < len(infos) else None for each in found.teachers]
    tables = {
        "teachers": pa.table(
            {
                "teacher": pa.array([each.number for each in found.teachers], pa.int32()),
                "name": pa.array([each.name for each in found.teachers], pa.string()),
                "field": pa.array([each.field for each in found.teachers], pa.string()),
                "temperature": pa.array([each.temperature for each in found.teachers], pa.float64()),
                "accuracy": pa.array([None if info is None else info.accuracy for info in known], pa.float64()),
            }
        )
    }
    names = book.plan.class_names
    numbers = pa.array(range(len(names)), pa.int32())
    tables["classes"] = pa.table({"class": numbers, "name": pa.array(names, pa.string())})
    if book.keys is not None:
        tables["samples"] = pa.table(
            {"sample": pa.array(range(book.n_samples), pa.int64()), "key": pa.array(book.keys)}
        )
    return tables


def _one_select(duckdb: Any, connection: Any, sql: str) -> None:
    statements = connection.extract_statements(sql)
    kinds = [statement.type for statement in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        got = ", ".join(kind.name for kind in kinds) or "nothing"
        raise ConfigError(expected("sql", "one SELECT", got, where="query", do="A book is only read."))


def _explained(connection: Any, reason: str) -> str:
    described = connection.execute(
        "SELECT table_name, list(column_name ORDER BY column_index) FROM duckdb_columns() WHERE NOT internal GROUP BY ALL ORDER BY 1"
    ).fetchall()
    tables = "; ".join(
        f"{table} ({', '.join(columns)})" for table, columns in described if not table.startswith("teacher_")
    )
    views = ", ".join(table for table, _ in described if table.startswith("teacher_"))
    said = " ".join(reason.partition("\n\nLINE ")[0].split()).rstrip(".")
    return f"Expected `sql` to be a SELECT that DuckDB can run, got {said} (query). Tables: {tables}; {views}."


def _plain(value: Any) -> Any:
    """Return a value that JSON, CSV and a table can show; what is not a finite number is None."""
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value.hex() if isinstance(value, bytes) else str(value)
