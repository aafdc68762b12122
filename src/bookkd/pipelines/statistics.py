"""From a book and the labels of its samples to statistics that SQL can ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book import Book
from bookkd.core.errors import BookMismatchError, DataError, expected
from bookkd.knowledge import keys_of
from bookkd.pipelines.options import DataOptions
from bookkd.query import write_statistics
from bookkd.zoo import fingerprint

__all__ = ["describe_records"]


def describe_records(
    book: str,
    *,
    data: DataOptions | None = None,
    labels: str | None = None,
    out: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the statistics of a book.

    Args:
        book: Folder of the book, or its address.
        data: The samples that the book is about, whose labels go in; None or without a name for none.
        labels: In its place, a NumPy file of one class a sample.
        out: Folder; inside the book where None.
        progress: Called with (records done, records).

    Returns:
        What `bookkd stats --json` prints.

    Raises:
        BookMismatchError: if the data are not those of the book.
        DataError: if there are no such labels.
    """
    opened = Book(book)
    known: npt.NDArray[Any] | None = None
    notes = []
    if data is not None and data.name:
        if labels is not None:
            raise DataError(expected("labels", "from --data or from a file, not both", labels, where="stats"))
        known, by_key = _labels_of(opened, data)
        if by_key:
            notes.append("labels are matched by key alone; that the data are those of the book, nothing proves.")
    elif labels is not None:
        known = _labels_in(Path(labels))
    made = write_statistics(opened, known, out=out, progress=progress)
    return {
        "book": str(opened.path),
        "folder": str(made.folder),
        "content_digest": opened.content_digest,
        "records": opened.n_samples * opened.n_views * len(made.teachers),
        "views": opened.n_views,
        "teachers": [teacher.name for teacher in made.teachers],
        "labels": made.labels,
        "bytes": sum(path.stat().st_size for path in made.files),
        "constants": {name: _figures(array) for name, array in opened.constants.items()},
        "notes": notes,
    }


def _figures(array: npt.NDArray[Any]) -> dict[str, Any]:
    """Return shape and figures of a constant."""
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "min": float(array.min()),
        "mean": float(array.mean(dtype=np.float64)),
        "max": float(array.max()),
        "std": float(array.std(dtype=np.float64)),
    }


def _labels_of(book: Book, data: DataOptions) -> tuple[npt.NDArray[Any], bool]:
    """Return the label of each sample of the book, and whether by key: where both have keys; else by place in equal data."""
    dataset = data.open()
    labels = np.asarray(dataset.labels)
    if labels.ndim != 1 or labels.dtype.kind not in "ui":
        got = f"{labels.dtype} of shape {list(labels.shape)}"
        raise DataError(expected("labels", "one class a sample", got, where=f"data {data.name}"))
    keys = keys_of(dataset)
    if book.keys is not None and keys is not None:
        found = np.full(book.n_samples, -1, dtype=np.int64)
        found[book.rows_of(keys)] = labels
        return found, fingerprint(dataset) != book.plan.data
    mine = fingerprint(dataset)
    other = [key for key, value in book.plan.data.items() if key != "name" and mine.get(key) != value]
    if other:
        do = "Name the data, split and limit that it was made with; labels of other samples go in with --labels FILE.npy."
        wish = "the data set of the book"
        raise BookMismatchError(expected("data", wish, f"other {', '.join(other)}", where=str(book.path), do=do))
    return labels, False


def _labels_in(path: Path) -> npt.NDArray[Any]:
    try:
        found: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        wish = "a NumPy file (.npy) of one class a sample"
        raise DataError(expected("labels", wish, f"{type(error).__name__}: {error}", where=str(path))) from error
    if not isinstance(found, np.ndarray):
        raise DataError(expected("labels", "one array", "an archive of arrays", where=str(path)))
    return found
