"""From names to a book that is looked after: compacted, repaired, copied with another codec, cut down to a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book import Book, Codec, compact, copy_book, extract, prune
from bookkd.book import repair as repair_files
from bookkd.core.errors import BookCorruptError, BookMismatchError, ConfigError, FidelityError, expected
from bookkd.core.fields import PROBE_HASH
from bookkd.knowledge import StoredKnowledge, with_pool_of
from bookkd.learning import find_device
from bookkd.making import repair
from bookkd.making.local import Progress
from bookkd.pipelines.learn_student import data_of_book, views_of_book
from bookkd.pipelines.make_book import describe
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions
from bookkd.pipelines.task import (
    build_task,
    says_variance,
    task_name,
    teacher_for,
    with_grid,
    with_masked,
    with_variance,
)
from bookkd.tasks import TASKS, task_class
from bookkd.views import Pick, Replay
from bookkd.zoo import fingerprint

__all__ = ["compact_book", "copy_to", "extract_part", "repair_book"]

_PROVEN = 64
"""Samples whose probes prove that data are those of a part."""


def compact_book(
    path: str, *, drop_old: bool = False, shard_bytes: int = 4 * 2**30, progress: Progress | None = None
) -> dict[str, Any]:
    """Compact a book, and delete what is superseded where `drop_old`.

    Returns:
        What `bookkd compact --json` prints.
    """
    before = Book(path).edition
    book = compact(path, shard_bytes=shard_bytes, drop_growth=drop_old, progress=progress)
    found = {**describe(book), "edition": book.edition, "files": sum(len(file.stems) for file in book._files)}
    found["compacted"] = book.edition != before
    if drop_old:
        gone = prune(path)
        found["pruned"] = {"editions": list(gone.editions), "files": gone.files, "bytes": gone.bytes}
    return found


def repair_book(
    path: str,
    *,
    teachers: list[NetworkOptions],
    data: DataOptions,
    views: ViewOptions,
    accelerator: str = "auto",
    accept: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Repair a book from its own files, and with its teachers where records have to be said again.

    Returns:
        What `bookkd repair --json` prints.
    """
    try:
        done = repair_files(path, progress=progress)
    except BookCorruptError as error:
        if not teachers:
            raise
        try:
            stored = StoredKnowledge(path)
        except BookCorruptError:
            raise error from None  # a manifest is lost, of which no teacher knows
        known = views_of_book(stored.book) if not views.transform else views
        if known is None:
            do = "Pass --views package.module:callable, with its arguments."
            raise ConfigError(
                expected(
                    "views", "named, since the book's are not ours", stored.book.plan.views.get("transform"), do=do
                )
            ) from error
        dataset = (data if data.name else data_of_book(stored, data)).open()
        plain = with_grid(with_masked(build_task(task_name("", stored), dataset), stored), stored)
        loaded = [teacher_for(each, dataset, plain, find_device(accelerator)) for each in teachers]
        drawn = known.build()
        task = with_variance(plain, teacher=says_variance(plain, loaded[0], dataset, views=drawn), student=False)
        done = repair(path, loaded, dataset, drawn, task=task, accept=accept, progress=progress)
    found = {"path": path, "edition": done.edition, "content_digest": Book(path).content_digest, "said": done.said}
    return {**found, "restored": list(done.restored), "renewed": list(done.renewed)}


def copy_to(path: str, out: str, *, codec: Codec | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Copy a book, with another codec if one is given.

    Returns:
        What `bookkd copy --json` prints.
    """
    book = Book(path)
    task = book.plan.task
    if codec is not None and codec.sparse and task in TASKS and not task_class(task).sparse:
        do, where = "Use the codec dense or int8.", f"task {task}, whose losses need every value"
        raise FidelityError(expected("codec", "one that keeps every value", codec.name, where=where, do=do))
    made = copy_book(out, book, codec=codec, progress=progress)
    return {**describe(made), "source_bytes": book.nbytes, "same": made.content_digest == book.content_digest}


def extract_part(
    path: str,
    out: str,
    *,
    classes: str = "",
    samples: str = "",
    views: str = "",
    teachers: str = "",
    data: DataOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a part of a book; arguments are the texts of `bookkd extract`.

    Returns:
        What `bookkd extract --json` prints.
    """
    book = Book(path)
    wanted = _words(classes)
    names = book.plan.class_names
    part = extract(
        out,
        book,
        classes=[each if each in names else _whole(each) for each in wanted] if wanted else None,
        samples=_range(samples, "samples", book.n_samples) if samples else None,
        views=_range(views, "views", book.n_views) if views else None,
        teachers=[int(each) if each.isdigit() else each for each in _words(teachers)] if teachers else None,
        data=None if data is None or not data.name else _fingerprint(book, data, samples, wanted),
        progress=progress,
    )
    notes = []
    if wanted:
        notes.append(
            "softmax over these classes is what the teacher says given that it is one of them; how sure it was of that is not kept."
        )
    if any(name.startswith("renumbered_") for name in part.plan.views):
        notes.append("numbers are new, so that its views cannot be drawn again: it is for reading, by key.")
    elif "part_of" in part.plan.data:
        notes.append("to learn from it, name the data that has these samples and classes alone: --data.")
    return {**describe(part), "classes": list(part.plan.class_names), "notes": notes}


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _whole(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _range(text: str, what: str, count: int) -> slice | npt.NDArray[np.int64]:
    """Return the numbers that a text means: 0:1000, numbers with commas, or a file of them, one a line."""
    begin, colon, stop = text.partition(":")
    try:
        if colon and all(not each.strip() or each.strip().isdigit() for each in (begin, stop)):
            return slice(int(begin or 0), int(stop) if stop.strip() else count)
        if Path(text).is_file():
            return np.array([int(line) for line in Path(text).read_text(encoding="utf-8").split()], dtype=np.int64)
        return np.array([int(word) for word in _words(text)], dtype=np.int64)
    except (ValueError, OSError) as error:
        wish = "a range such as 0:1000, numbers with commas between, or a file with one a line"
        raise ConfigError(expected(what, wish, text)) from error


def _fingerprint(book: Book, data: DataOptions, samples: str, classes: list[str]) -> dict[str, Any]:
    """Return the fingerprint of the data set of a part, after proving that its views are those of the book's first samples."""
    dataset = data.open()
    numbers = (
        np.arange(book.n_samples)[_range(samples, "samples", book.n_samples)] if samples else np.arange(book.n_samples)
    )
    if len(dataset) != len(numbers) or not (numbers == np.arange(len(numbers))).all():
        wish = f"the {len(numbers)} samples of the part, the first ones of the book"
        raise BookMismatchError(expected("data", wish, f"{len(dataset)} samples", where=data.name))
    stored = StoredKnowledge(book)
    options = views_of_book(book)
    if options is None:
        do = "Leave --data away, and name views where you learn."
        raise ConfigError(
            expected("views", "of ours, to prove that the data are the book's", book.plan.views.get("transform"), do=do)
        )
    replay = Replay(dataset, with_pool_of(stored, options.build()))
    if PROBE_HASH not in book.fields:
        do = "Leave --data away: a book without probes cannot say whose samples its records are."
        raise ConfigError(expected("book", "one with probes, to prove that the data are its own", "none", do=do))
    names = book.plan.class_names
    wished = [each if each in names else names[int(each)] for each in classes] if names else []
    if wished and list(dataset.class_names) != wished:
        raise BookMismatchError(
            expected("data", f"of the classes {wished}", list(dataset.class_names), where=data.name)
        )
    proven = np.unique(np.linspace(0, len(numbers) - 1, _PROVEN).astype(int)).tolist()
    picks = [Pick(sample, place % book.n_views) for place, sample in enumerate(proven)]
    stored.check(replay.batch(picks))
    return fingerprint(dataset)
