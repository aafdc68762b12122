"""The books that runs learned from: each counted once, whatever the number of students."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bookkd.core.jsonio import digest
from bookkd.report.runs import FoundRun, listed, mapped, number

__all__ = ["BookCost", "books_of", "digests_of", "making_shares", "read_through"]


@dataclass(frozen=True)
class BookCost:
    """One book, and what making it cost.

    Args:
        label: Its name in the runs.
        content_digest: Of what it says; books of the same are one.
        samples: Number of samples.
        views: Views of each.
        records: Number of records.
        bytes: Size on disk.
        seconds: Of making it, the books that it was merged or baked from included.
        teacher_forwards: Records that the teacher was asked about, the same.
        students: Number of runs that ended and learned from it.
        parts: Content digests of those books, as far as runs of the report learned from them too.
        own_seconds: Of making it, without these parts.
        own_forwards: The same of the records.
    """

    label: str
    content_digest: str
    samples: float | None
    views: float | None
    records: float | None
    bytes: float | None
    seconds: float | None
    teacher_forwards: float | None
    students: int
    parts: tuple[str, ...]
    own_seconds: float | None
    own_forwards: float | None

    @property
    def seconds_per_record(self) -> float | None:
        """Time of one record when the book was made."""
        return None if self.seconds is None or not self.records else self.seconds / self.records


def digests_of(run: FoundRun) -> tuple[str, ...]:
    """Return the books of a run by content digest; one without counts as a book of its own."""
    return tuple(_key(mapped(run, entry, "books")) for entry in run.record.books)


def _key(entry: Mapping[str, Any]) -> str:
    return str(entry.get("content_digest") or digest(dict(entry)))


def books_of(runs: Sequence[FoundRun]) -> dict[str, BookCost]:
    """Return each book once, by content digest, in the order in which they come."""
    told: dict[str, tuple[FoundRun, Mapping[str, Any]]] = {}
    for run in runs:
        for entry in run.record.books:
            told.setdefault(_key(mapped(run, entry, "books")), (run, entry))
    readers = [set(digests_of(run)) for run in runs if run.record.status == "done"]
    whole = {key: _book(*told[key], sum(key in read for read in readers), told.keys()) for key in told}
    return {key: _without_parts(book, whole) for key, book in whole.items()}


def _book(run: FoundRun, entry: Mapping[str, Any], students: int, known: Collection[str]) -> BookCost:
    cost = mapped(run, entry.get("cost"), "books.cost")
    samples, views = number(run, entry, "samples"), number(run, entry, "views")
    records = number(run, entry, "records")
    if records is None and samples is not None and views is not None:
        records = samples * views
    content = str(entry.get("content_digest") or "")
    parts = dict.fromkeys(str(part) for part in listed(run, cost.get("books"), "books.cost.books"))
    return BookCost(
        label=str(entry.get("label") or "book"),
        content_digest=content,
        samples=samples,
        views=views,
        records=records,
        bytes=number(run, entry, "bytes"),
        seconds=number(run, cost, "seconds"),
        teacher_forwards=number(run, cost, "teacher_forwards"),
        students=students,
        parts=tuple(part for part in parts if part in known and part != content),
        own_seconds=None,
        own_forwards=None,
    )


def _without_parts(book: BookCost, whole: Mapping[str, BookCost]) -> BookCost:
    parts = [whole[part] for part in book.parts]
    seconds = _less(book.seconds, [part.seconds for part in parts])
    return replace(
        book,
        own_seconds=seconds,
        own_forwards=_less(book.teacher_forwards, [part.teacher_forwards for part in parts]),
    )


def _less(total: float | None, parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return None if total is None or len(known) < len(parts) else max(0.0, total - sum(known))


def read_through(keys: Iterable[str], books: Mapping[str, BookCost]) -> tuple[str, ...]:
    """Return the books of these digests and all that they were made of, each once."""
    found: dict[str, None] = {}
    left = list(keys)
    while left:
        key = left.pop(0)
        if key not in found:
            found[key] = None
            left += books[key].parts
    return tuple(found)


def making_shares(runs: Sequence[FoundRun], books: Mapping[str, BookCost]) -> dict[str, float | None]:
    """Return by folder the equal share of each run in the making of its books; None where a book does not say its seconds.

    A book that another was made of is shared by the readers of both. The shares of all runs that ended add up to the seconds
    of making, once, the books that they learned from.
    """
    read = {run.folder: read_through(digests_of(run), books) for run in runs}
    readers = Counter(key for keys in read.values() for key in keys)
    shares: dict[str, float | None] = {}
    for folder, keys in read.items():
        known = [seconds / readers[key] for key in keys if (seconds := books[key].own_seconds) is not None]
        shares[folder] = sum(known) if len(known) == len(keys) else None
    return shares
