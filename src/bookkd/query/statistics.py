"""Statistics of a book: one Parquet file a view beside its records, bound to the content of the edition.

    mybook/stats/
      view-0000.parquet    sample, view, teacher, top1, confidence, margin, entropy and, with labels, label,
                           label_probability, teacher_correct
      stats.json           written last: content digest, teachers, files

One file holds all teachers, one after another, with their number in the column `teacher`: the number of files is that of the
views, a book of one and of ten teachers are asked alike, and sorted as it is the column takes no room.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from bookkd.book import Book, Decoded, Plan
from bookkd.core import jsonio
from bookkd.core.errors import (
    BookFormatError,
    BookKDError,
    BookMismatchError,
    BookMissingError,
    ConfigError,
    DataError,
    expected,
)
from bookkd.core.fields import LOGITS
from bookkd.core.files import TEMPORARY, check_here, check_no_link, make_folder, storage_errors, write_atomic
from bookkd.core.names import require
from bookkd.query.records import no_draws, record_statistics

__all__ = ["FOLDER", "Speaker", "Statistics", "open_statistics", "schema", "speakers", "write_statistics"]

FOLDER = "stats"
"""Folder inside the book that holds its statistics."""

_MANIFEST = "stats.json"
_BLOCK_VALUES = 2**20
_GROUP_ROWS = 2**17
_VERSION = 1
_MEMBER = re.compile(r"members/(\d{1,6})/logits")
_VIEW = re.compile(r"view-\d{4,5}\.parquet")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Speaker:
    """A teacher whose logits a book holds.

    Args:
        number: As in the column `teacher`.
        field: Its logits.
        name: For people.
        temperature: At which its distribution is described: 1, or the one that the field serves.
    """

    number: int
    field: str
    name: str
    temperature: float


@dataclass(frozen=True)
class Statistics:
    """Statistics that belong to an edition of a book.

    Args:
        folder: Where they lie.
        files: One Parquet file a view, in order.
        teachers: Who is described, by number.
        labels: Whether labels are in them.
    """

    folder: Path
    files: tuple[Path, ...]
    teachers: tuple[Speaker, ...]
    labels: bool


def speakers(plan: Plan) -> tuple[Speaker, ...]:
    """Return the teachers of a book of classes: its members, or the one of `logits`.

    Raises:
        ConfigError: for a task without classes, or a book without logits.
        FidelityError: for logits that are kept as draws.
    """
    if plan.task != "classification":
        wish = "classification, whose records are one distribution over classes"
        raise ConfigError(expected("task", wish, plan.task, where="statistics"))
    members = sorted(int(match[1]) for name in plan.fields if (match := _MEMBER.fullmatch(name)))
    fields = {number: f"members/{number}/logits" for number in members} or (
        {0: LOGITS} if LOGITS in plan.fields else {}
    )
    if not fields:
        raise ConfigError(expected("fields", "logits of a teacher", ", ".join(plan.fields), where="statistics"))
    found = []
    for number, field in fields.items():
        entry = plan.fields[field]
        if entry.positions is not None:
            raise ConfigError(expected(field, "one record a sample", "sequences of positions", where="statistics"))
        if len(entry.shape) != 1:
            raise ConfigError(expected(field, "one vector of classes a record", list(entry.shape), where="statistics"))
        if entry.codec.linear:
            raise no_draws(field, "statistics")
        promised = entry.promised
        named = plan.teachers[number].name if number < len(plan.teachers) else field
        temperature = 1.0 if not promised or 1.0 in promised else promised[0]
        found.append(Speaker(number, field, "baked" if entry.baked is not None else named, temperature))
    return tuple(found)


def schema(*, labels: bool) -> Any:
    """Return the Arrow schema of a file."""
    pa = require("pyarrow", "query")
    columns = [
        ("sample", pa.int64()),
        ("view", pa.int32()),
        ("teacher", pa.int32()),
        ("top1", pa.int32()),
        ("confidence", pa.float32()),
        ("margin", pa.float32()),
        ("entropy", pa.float32()),
    ]
    with_labels = [("label", pa.int32()), ("label_probability", pa.float32()), ("teacher_correct", pa.bool_())]
    return pa.schema(columns + (with_labels if labels else []))


def write_statistics(
    book: Book,
    labels: npt.ArrayLike | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Describe every record of a book for SQL; older statistics in the folder are replaced.

    Records are read in blocks, so that memory does not grow with the book. Each file appears whole or not at all; while
    `stats.json` is missing there are no statistics, so that an interrupted run is seen and run again.

    Args:
        book: A book of classes, with codecs that decode to logits, to kept classes or to the likeliest one; of the last all but
            `top1` and `teacher_correct` is null.
        labels: Class of each sample, int [n_samples], negative where it is not known; None for statistics without labels.
        out: Folder; the folder `stats` of the book where None.
        progress: Called with (records done, records).

    Returns:
        What was written.

    Raises:
        ConfigError: if the book is not about classes.
        FidelityError: if its logits are kept as draws.
        DataError: for labels of another number, or beyond the classes.
        MissingExtraError: without pyarrow, which the extra `query` brings.
        StorageError: full, read-only or failing disk.
        BookFormatError: if the folder `stats` of the book is a link, which may lead anywhere.

    >>> import tempfile
    >>> from bookkd.book import BookWriter, Dense, FieldPlan
    >>> plan = Plan(n_samples=2, n_views=1, fields={"logits": FieldPlan((3,), Dense())})
    >>> with tempfile.TemporaryDirectory() as folder, BookWriter(folder, plan) as writer:
    ...     writer.write_rows(0, 0, {"logits": np.eye(2, 3)})
    ...     book = writer.finish()
    ...     made = write_statistics(book, [0, 2])
    ...     [path.name for path in made.files], made.labels
    (['view-0000.parquet'], True)
    """
    require("pyarrow.parquet", "query")
    teachers = speakers(book.plan)
    known = None if labels is None else _labels(labels, book, teachers)
    folder = _inside(book) if out is None else Path(out)
    make_folder(folder)
    with storage_errors(folder):
        (folder / _MANIFEST).unlink(missing_ok=True)
        for pattern in (f".view-*.parquet.*{TEMPORARY}", f".{_MANIFEST}.*{TEMPORARY}"):
            for leftover in folder.glob(pattern):  # of a run that was killed
                leftover.unlink(missing_ok=True)
    columns = schema(labels=known is not None).with_metadata({b"bookkd": book.content_digest.encode()})
    total = book.n_views * book.n_samples * len(teachers)
    files, done = [], 0
    for view in range(book.n_views):
        path = folder / f"view-{view:04d}.parquet"
        with _replaced(path) as temporary, _grouped(temporary, columns) as add:
            for piece in _view_pieces(book, view, teachers, known):
                add(piece)
                done += len(piece["sample"])
                if progress is not None:
                    progress(done, total)
        files.append(path)
    _remove_others(folder, files)
    _write_manifest(folder, book, files, teachers, known is not None)
    return Statistics(folder, tuple(files), teachers, known is not None)


def _inside(book: Book) -> Path:
    if isinstance(book.path, Path):
        check_no_link(book.path / FOLDER)
        return book.path / FOLDER
    do = "Name one of this machine: --out DIR of stats, --stats DIR of query."
    raise ConfigError(
        expected("folder of statistics", "named, for a book at an address", "none", where=str(book.path), do=do)
    )


def open_statistics(book: Book, folder: str | Path | None = None) -> Statistics:
    """Return the statistics of a book, or say that there are none of this edition.

    Args:
        book: The book.
        folder: Where they were written; the folder `stats` of the book where None.

    Raises:
        BookMissingError: there are none, or their making was interrupted.
        BookMismatchError: they are those of another edition or book.
        BookFormatError: a file is not what `stats.json` says.
    """
    place = _inside(book) if folder is None else check_here(Path(folder))
    again = f"Run: bookkd stats {book.path}" + ("" if folder is None else f" --out {place}")
    path = place / _MANIFEST
    if not path.is_file():
        raise BookMissingError(f"Expected {place} to hold the statistics of {book.path}, got no {_MANIFEST}. {again}")
    try:
        found = jsonio.read(path, limit=2**24)
        names = [(str(entry["file"]), int(entry["bytes"])) for entry in found["views"]]
        digest, labels, version = str(found["content_digest"]), bool(found["labels"]), int(found["version"])
    except (BookKDError, KeyError, TypeError, ValueError, OSError) as error:
        raise BookFormatError(f"Expected {path} to be written by `bookkd stats`, got {error!r}. {again}") from error
    if digest != book.content_digest or version != _VERSION:
        raise BookMismatchError(
            f"Expected {place} to hold the statistics of {book.path} ({book.content_digest}), got those of {digest}. {again}"
        )
    wanted = [f"view-{view:04d}.parquet" for view in range(book.n_views)]
    if [name for name, _ in names] != wanted:
        raise BookFormatError(f"Expected {path} to name {book.n_views} views, got {len(names)} files. {again}")
    for name, size in names:
        _check_file(place / name, size, digest, schema(labels=labels), again)
    return Statistics(place, tuple(place / name for name in wanted), speakers(book.plan), labels)


def _check_file(path: Path, size: int, digest: str, columns: Any, again: str) -> None:
    pq = require("pyarrow.parquet", "query")
    try:
        if path.is_symlink() or path.stat().st_size != size:
            raise BookFormatError(f"Expected {path} to have {size} bytes, got another file. {again}")
        found = pq.read_schema(path)
    except (OSError, ValueError) as error:
        if isinstance(error, BookKDError):
            raise
        raise BookFormatError(
            f"Expected {path} to be a whole Parquet file, got {type(error).__name__}. {again}"
        ) from error
    if (found.metadata or {}).get(b"bookkd") != digest.encode() or not found.equals(columns):
        raise BookFormatError(f"Expected {path} to be of the book's content {digest}, got another one. {again}")


def _labels(labels: npt.ArrayLike, book: Book, teachers: tuple[Speaker, ...]) -> npt.NDArray[np.int64]:
    found = np.asarray(labels)
    if found.shape != (book.n_samples,) or found.dtype.kind not in "ui":
        got = f"{found.dtype} of shape {found.shape}"
        raise DataError(
            expected("labels", f"one class for each of the {book.n_samples} samples", got, where=str(book.path))
        )
    n_classes = min(book.fields[teacher.field].shape[0] for teacher in teachers)
    if len(found) and int(found.max()) >= n_classes:
        sample = int(found.argmax())
        where = f"sample {sample} of {book.path}"
        raise DataError(expected("labels", f"below the {n_classes} classes", int(found[sample]), where=where))
    return found.astype(np.int64)


def _view_pieces(
    book: Book, view: int, teachers: tuple[Speaker, ...], labels: npt.NDArray[np.int64] | None
) -> Iterator[dict[str, Any]]:
    for teacher in teachers:
        rows = max(1, _BLOCK_VALUES // book.fields[teacher.field].shape[0])
        for start in range(0, book.n_samples, rows):
            samples = np.arange(start, min(start + rows, book.n_samples))
            decoded = cast("Decoded", book.read(samples, view, [teacher.field])[teacher.field])
            given = None if labels is None else labels[samples]
            found = record_statistics(decoded, given, temperature=teacher.temperature)
            piece: dict[str, Any] = {
                "sample": samples,
                "view": np.full(len(samples), view, np.int32),
                "teacher": np.full(len(samples), teacher.number, np.int32),
                **found,
            }
            if given is not None:
                known = given >= 0
                piece["label"] = np.ma.masked_array(given.astype(np.int32), ~known)
                piece["teacher_correct"] = np.ma.masked_array(found["top1"] == given, ~known)
            yield piece


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Give a temporary name, and put what was written there in the place of `path` when all is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    with storage_errors(path):
        try:
            temporary.unlink(missing_ok=True)  # a link of this name would be followed
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _grouped(path: Path, columns: Any) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that takes pieces and writes them in row groups of one size."""
    pa, pq = require("pyarrow", "query"), require("pyarrow.parquet", "query")
    waiting: list[Any] = []

    def arrow(piece: dict[str, Any], name: str, kind: Any) -> Any:
        values = piece[name]
        if isinstance(values, np.ma.MaskedArray):
            return pa.array(values.data, type=kind, mask=values.mask)
        return pa.array(values, type=kind, from_pandas=True)  # NaN is null

    with pq.ParquetWriter(path, columns, compression="zstd") as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()

        def add(piece: dict[str, Any]) -> None:
            waiting.append(pa.table([arrow(piece, each.name, each.type) for each in columns], schema=columns))
            if sum(len(table) for table in waiting) >= _GROUP_ROWS:
                flush()

        yield add
        flush()


def _remove_others(folder: Path, files: list[Path]) -> None:
    """Remove files of views that an earlier edition had."""
    mine = {path.name for path in files}
    with storage_errors(folder):
        for entry in folder.iterdir():
            if _VIEW.fullmatch(entry.name) and entry.name not in mine:
                entry.unlink()


def _write_manifest(folder: Path, book: Book, files: list[Path], teachers: tuple[Speaker, ...], labels: bool) -> None:
    manifest = {
        "version": _VERSION,
        "content_digest": book.content_digest,
        "edition": book.edition,
        "labels": labels,
        "teachers": [
            {"teacher": each.number, "field": each.field, "name": each.name, "temperature": each.temperature}
            for each in teachers
        ],
        "views": [{"file": path.name, "bytes": path.stat().st_size} for path in files],
    }
    write_atomic(folder / _MANIFEST, jsonio.pretty(manifest))
