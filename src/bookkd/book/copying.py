"""A book written again: as it is, or with another codec, which says what it loses of the records that were."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bookkd.book._carried import Carried
from bookkd.book.codecs import Codec
from bookkd.book.plan import Unit, is_logits
from bookkd.book.reader import Book
from bookkd.book.remote import RemotePath, root_of
from bookkd.book.writer import BookWriter
from bookkd.core.errors import ConfigError, FidelityError, expected

__all__ = ["check_apart", "copy_book", "pending_units"]

Progress = Callable[[int, int], None]


def copy_book(
    path: str | Path | RemotePath, book: Book, *, codec: Codec | None = None, progress: Progress | None = None
) -> Book:
    """Write a book's newest records to another folder, as they are or with another codec for logits.

    As they are, the copy has the same content digest, and one edition. With another codec, what is measured is what it loses
    of the book's records, not of the teacher's words: what the book's own codec had lost comes on top, and stands in the
    cost of the copy as `source_fidelity`. Interrupted, it is gone on with.

    Args:
        path: Folder of the copy, or an address.
        book: The source.
        codec: For every field of logits; None to copy as it is.
        progress: Called with (records done, records in all).

    Returns:
        The copy, open.

    Raises:
        FidelityError: for another codec of logits that keep only some classes: what they left out is gone.
        BookMismatchError: if the folder holds another book, or one begun from other records.
        ConfigError: if the folder is the source's own, or the codec cannot honour the temperature of a baked book.
        StorageError: if the disk is full; running it again goes on.

    >>> import tempfile
    >>> from bookkd.book import Dense, FieldPlan, Int8, Plan
    >>> plan = Plan(4, 1, {"logits": FieldPlan((3,), Dense())})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with BookWriter(folder + "/a", plan) as writer:
    ...         writer.write_rows(0, 0, {"logits": np.eye(4, 3)})
    ...         book = writer.finish()
    ...     small = copy_book(folder + "/b", book, codec=Int8())
    ...     small.fields["logits"].codec.name, small.fidelity["logits"]["temperatures"]["1"]["mean"] < 1e-4
    ('int8', True)
    """
    check_apart(path, book)
    other = {} if codec is None else _other_codec(book, codec)
    fields = {name: other.get(name, entry) for name, entry in book.fields.items()}
    # What a codec was chosen for says nothing about another one.
    choice = {} if other else book.plan.choice
    plan = replace(book.plan, fields=fields, choice=choice, sources=(book.content_digest,))
    same = [name for name in book.fields if name not in other]
    carried = Carried(book, {name: name for name in same}, range(book.n_views))
    started = time.perf_counter()
    with BookWriter(path, plan, keys=book.keys, constants=book.constants) as writer:
        for unit in pending_units(writer, progress):
            rows = np.arange(unit.start, unit.stop)
            copied = book.gather(rows, unit.view, same)
            fidelity = carried.of(*unit)
            if not other:
                writer.copy(unit, copied, fidelity=fidelity)
                continue
            said: dict[str, Any] = dict(book.read(rows, unit.view, list(other)))
            writer.write(unit, said, copied=copied, fidelity=fidelity)
        cost = dict(book.cost)
        if other:
            cost["copied_from"] = book.content_digest
            cost["copy_seconds"] = round(time.perf_counter() - started, 3)
            cost["source_fidelity"] = {name: book.fidelity[name] for name in other if name in book.fidelity}
        return writer.finish(cost, fidelity={name: book.fidelity[name] for name in same if name in book.fidelity})


def _other_codec(book: Book, codec: Codec) -> dict[str, Any]:
    """Return the fields that are written with another codec."""
    found = {name: entry for name, entry in book.fields.items() if is_logits(name) and entry.codec != codec}
    for name, entry in found.items():
        if entry.codec.sparse:
            wish = "one that keeps every class, to be written with another"
            do = "Make the book again from the teacher, or copy it as it is."
            raise FidelityError(expected(f"codec of {name}", wish, entry.codec.name, where=str(book.path), do=do))
        if entry.baked is not None:
            codec.check_temperature(float(entry.baked["temperature"]))
    return {name: replace(entry, codec=codec) for name, entry in found.items()}


def check_apart(path: str | Path | RemotePath, book: Book) -> None:
    """Refuse to write a book into its source."""
    if root_of(path).resolve() == book.path.resolve():
        raise ConfigError(expected("path", "another folder than the source's", str(path), do="Name a new folder."))


def pending_units(writer: BookWriter, progress: Progress | None) -> Iterator[Unit]:
    """Yield the units that are to be written, and tell when each is."""
    total = writer.plan.n_samples * writer.plan.n_views
    units = writer.pending()
    done = total - sum(unit.stop - unit.start for unit in units)
    for unit in units:
        yield unit
        done += unit.stop - unit.start
        if progress is not None:
            progress(done, total)
