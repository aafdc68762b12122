"""Tables and progress bars, by rich."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["busy", "bytes_text", "console", "progress_bar", "rows"]


def console(*, stderr: bool = False) -> Console:
    """Return the console of stdout or stderr; wide where nobody watches, so that lines are not broken."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(width=None if stream.isatty() else 140, highlight=False, stderr=stderr)


def rows(title: str, columns: Sequence[str], values: Sequence[Sequence[Any]]) -> Table:
    """Return a table; numbers are set to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    numeric = [
        all(isinstance(row[i], int | float) or _looks_numeric(row[i]) for row in values) for i in range(len(columns))
    ]
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left")
    for row in values:
        table.add_row(*(str(value) for value in row))
    return table


def _looks_numeric(value: Any) -> bool:
    return bool(str(value)) and str(value)[0] in "+-0123456789"


def bytes_text(count: float) -> str:
    """Return a number of bytes for reading.

    >>> bytes_text(1536)
    '1.5 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@contextlib.contextmanager
def busy(text: str) -> Iterator[None]:
    """Show on stderr that something without a count is going on; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(text):
        yield


@contextlib.contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give a function (done, total) that moves a bar on stderr; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(text, total=None)

        def move(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield move
