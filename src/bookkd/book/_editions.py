"""The editions of a book, each a state that can be read on its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bookkd.book._numbers import edition_numbers, unfinished_growth
from bookkd.book._opening import find_edition
from bookkd.book.reader import Book
from bookkd.book.remote import RemotePath, Root, root_of
from bookkd.core.errors import BookKDError

__all__ = ["EditionInfo", "editions", "growth_begun"]


@dataclass(frozen=True)
class EditionInfo:
    """One edition of a book.

    Args:
        number: 1 for the first.
        n_samples: Samples; 0 where the edition cannot be read.
        n_views: Views.
        n_teachers: Teachers.
        shards: Files of records that it names.
        bytes: Their size; editions may name the same ones.
        content_digest: Of what it says.
        fault: Why it cannot be read; empty where it can.
    """

    number: int
    n_samples: int = 0
    n_views: int = 0
    n_teachers: int = 0
    shards: int = 0
    bytes: int = 0
    content_digest: str = ""
    fault: str = ""


def editions(path: str | Path | RemotePath) -> list[EditionInfo]:
    """Return the editions of a book, oldest first.

    Args:
        path: Folder of a finished book, or its address.

    Raises:
        BookMissingError: if there is no book.
        BookUnfinishedError: if it has no edition yet.

    >>> import tempfile
    >>> import numpy as np
    >>> from bookkd.book import BookWriter, Dense, FieldPlan, Plan
    >>> plan = Plan(4, 1, {"logits": FieldPlan((3,), Dense())})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with BookWriter(folder, plan) as writer:
    ...         writer.write_rows(0, 0, {"logits": np.eye(4, 3)})
    ...         _ = writer.finish()
    ...     [(each.number, each.n_samples, each.shards) for each in editions(folder)]
    [(1, 4, 1)]
    """
    root = root_of(path)
    find_edition(root, None)
    return [_info(root, number) for number in edition_numbers(root)]


def growth_begun(path: str | Path | RemotePath) -> int | None:
    """Return the number of the edition that a growth has begun and not finished; None where there is none.

    Args:
        path: Folder of a book, or its address.

    >>> growth_begun("no/such/book") is None
    True
    """
    root = root_of(path)
    return unfinished_growth(root) if root.is_dir() else None


def _info(root: Root, number: int) -> EditionInfo:
    try:
        book = Book(root, number)
    except BookKDError as error:
        return EditionInfo(number, fault=str(error))
    return EditionInfo(
        number=number,
        n_samples=book.n_samples,
        n_views=book.n_views,
        n_teachers=len(book.plan.teachers),
        shards=sum(len(file.stems) for file in book._files),
        bytes=book.nbytes,
        content_digest=book.content_digest,
    )
