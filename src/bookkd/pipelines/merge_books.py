"""From paths of books to one book of all their teachers, or to their processed target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book import Book, Codec
from bookkd.book.plan import TOLD
from bookkd.core.errors import BookMismatchError, ConfigError, expected
from bookkd.core.fields import LOGITS
from bookkd.knowledge import StoredKnowledge
from bookkd.making import bake as bake_books
from bookkd.making import merge
from bookkd.making.merging import Progress
from bookkd.methods import Method
from bookkd.objectives import Correct, FieldTransform, Objective
from bookkd.pipelines.learn_student import data_of_book
from bookkd.pipelines.make_book import describe
from bookkd.pipelines.options import DataOptions
from bookkd.tasks import Classification
from bookkd.zoo import fingerprint

__all__ = ["merge_books"]


def merge_books(
    out: str,
    *,
    books: str | Sequence[str],
    bake: bool = False,
    method: Method | None = None,
    codec: Codec | None = None,
    data: DataOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge books, or bake the target that a method makes of them.

    Returns:
        What `bookkd merge --json` prints.
    """
    paths = books.split(",") if isinstance(books, str) else list(books)
    opened = [Book(path.strip()) for path in paths]
    if not bake:
        return _told(merge(out, opened, progress=progress))
    if method is None:
        raise ConfigError(expected("method", "the one whose target is to be baked", None, do="Pass --method bookkd."))
    objective = method.objective(Classification(opened[0].plan.class_names))
    transforms, temperature = _target(objective, method.name)
    labels = None
    if any(isinstance(change, Correct) for change in transforms):
        labels = _labels(opened[0], data or DataOptions(name=""))
    made = bake_books(
        out, opened, transforms=transforms, temperature=temperature, codec=codec, labels=labels, progress=progress
    )
    return _told(made)


def _target(objective: Objective, method: str) -> tuple[tuple[FieldTransform, ...], float]:
    """Return what a method's first term on the teacher does to it, and at which temperature."""
    term = next((term for term in objective.terms if term.teacher == LOGITS), None)
    temperature = None if term is None else term.hyper.get("temperature")
    if term is None or not isinstance(temperature, int | float):
        do = "Bake with a method on logits whose temperature is a number, such as --method bookkd."
        raise ConfigError(
            expected("method", "one with a fixed temperature of the teacher", method, where="bake", do=do)
        )
    changes = tuple(change for change in term.transforms if isinstance(change, FieldTransform))
    return changes, float(temperature)


def _labels(book: Book, data: DataOptions) -> npt.NDArray[np.int64]:
    stored = StoredKnowledge(book)
    dataset = (data if data.name else data_of_book(stored, data)).open()
    mine = fingerprint(dataset)
    found = [key for key, value in book.plan.data.items() if key not in TOLD and mine.get(key) != value]
    if found:
        do = "Name the data, split and limit that the book was made with."
        wish = "the data set of the books, whose labels correct their records"
        raise BookMismatchError(expected("data", wish, f"other {', '.join(found)}", where=str(book.path), do=do))
    return np.asarray(dataset.labels, dtype=np.int64)


def _told(book: Book) -> dict[str, Any]:
    notes = []
    for name, field in book.fields.items():
        if field.baked is not None:
            lost = book.fidelity.get(name, {}).get("temperatures", {})
            for temperature, measured in lost.items():
                notes.append(
                    f"serves temperature {float(temperature):g} alone; the codec lost T^2 KL {measured['mean']:.2g} on average, "
                    f"{measured['p99']:.2g} at the 99th percentile."
                )
    return {**describe(book), "teachers": [teacher.name for teacher in book.plan.teachers], "notes": notes}
