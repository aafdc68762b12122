"""The books that runs learned from: each counted once, whatever the number of students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bookkd.core.jsonio import digest
from bookkd.report.runs import FoundRun, mapped, number

__all__ = ["BookCost", "books_of", "digests_of", "making_shares"]


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
        seconds: Of making it.
        teacher_forwards: Records that the teacher was asked about.
        students: Number of runs that ended and learned from it.
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
    return {key: _book(*told[key], sum(key in read for read in readers)) for key in told}


def _book(run: FoundRun, entry: Mapping[str, Any], students: int) -> BookCost:
    cost = mapped(run, entry.get("cost"), "books.cost")
    samples, views = number(run, entry, "samples"), number(run, entry, "views")
    records = number(run, entry, "records")
    if records is None and samples is not None and views is not None:
        records = samples * views
    return BookCost(
        label=str(entry.get("label") or "book"),
        content_digest=str(entry.get("content_digest") or ""),
        samples=samples,
        views=views,
        records=records,
        bytes=number(run, entry, "bytes"),
        seconds=number(run, cost, "seconds"),
        teacher_forwards=number(run, cost, "teacher_forwards"),
        students=students,
    )


def making_shares(runs: Sequence[FoundRun], books: Mapping[str, BookCost]) -> dict[str, float | None]:
    """Return by folder the equal share of each run in the making of its books; None where a book does not say its seconds.

    The shares of all runs that ended add up to the seconds of making, once, the books that they learned from.
    """
    shares: dict[str, float | None] = {}
    for run in runs:
        parts = [books[key] for key in digests_of(run)]
        known = [book.seconds / book.students for book in parts if book.seconds is not None and book.students]
        shares[run.folder] = sum(known) if len(known) == len(parts) else None
    return shares
