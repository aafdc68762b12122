"""Repair with a teacher: what files do not give any more is asked for again, of the same teacher about the same views."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bookkd.book import Book, Repaired, editions, is_finished
from bookkd.book import repair as repair_files
from bookkd.book.ragged import Rows
from bookkd.core.errors import BookCorruptError, BookKDError, BookMismatchError, BookMissingError, expected
from bookkd.core.fields import LOGITS
from bookkd.knowledge import (
    LiveKnowledge,
    StoredKnowledge,
    Teacher,
    keys_of,
    member_fields,
    missing_constants,
    with_pool_of,
)
from bookkd.knowledge.constants import Source, work_out
from bookkd.knowledge.writing import offer, say
from bookkd.making.growing import First, check_samples
from bookkd.making.on_device import encoding_on
from bookkd.tasks import Task
from bookkd.views import Pick, Replay, Views

__all__ = ["repair"]

Progress = Callable[[int, int], None]


def repair(
    path: str | Path,
    teachers: Teacher | Sequence[Teacher],
    dataset: Any,
    views: Views,
    *,
    task: Task,
    keys: npt.NDArray[np.uint64] | None = None,
    constants: Mapping[str, npt.ArrayLike] | None = None,
    accept: bool = False,
    progress: Progress | None = None,
) -> Repaired:
    """Find every fault of a book and mend it; records of faulty blocks are asked of the teachers again.

    What can be mended from files alone is, before the teachers are looked at. See `bookkd.book.repair`.

    Args:
        path: Folder of the book.
        teachers: Those of the book, in their order.
        dataset: The samples of the book, or more.
        views: Its views.
        task: As `make`.
        keys: Key of each sample; the data set's attribute `keys` where None.
        constants: As `make`, where their files may be faulty; those of one teacher that `make` works out are worked out again, and
            put in place if they are what they were.
        accept: If true, records that differ from what they were are taken, under a new edition.
        progress: Called with (shards checked, shards in all).

    Raises:
        BookCorruptError: if something cannot be mended: what, and what to do.
        BookMismatchError: if teachers, samples or views are not the book's; if records are said otherwise than they were and
            `accept` is false.
        BookLockedError: if another process writes the book.
    """
    if not is_finished(path):
        raise BookMissingError(
            f"Expected {path} to be a finished book, to be repaired. Run `bookkd make` to finish one."
        )
    given = [teachers] if isinstance(teachers, Teacher) else list(teachers)
    found = keys_of(dataset) if keys is None else keys
    try:
        return repair_files(path, keys=found, constants=constants, accept=accept, progress=progress)
    except BookCorruptError as error:
        try:
            book = Book(path)
        except BookCorruptError:
            raise error from None  # a manifest is lost, of which no teacher knows
    _check(book, given)
    views = with_pool_of(StoredKnowledge(book), views)
    check_samples(book, dataset, views)
    replay = Replay(dataset, views)
    constants = {**_constants_again(book, given, task, dataset, views), **(constants or {})}

    @cache
    def speaker() -> Any:
        return _speaker(book, given, replay, task)  # which may read constants, that are mended before it is asked

    def speak(view: int, start: int, stop: int) -> Any:
        return speaker()(view, start, stop)

    with encoding_on(given[0].device if given else "cpu"):
        return repair_files(path, speak, keys=found, constants=constants, accept=accept, progress=progress)


def _constants_again(
    book: Book, given: Sequence[Teacher], task: Task, dataset: Any, views: Views
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the constants whose files are faulty, worked out of the teacher as `make` does; without those that cannot be."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    lost = [name for name in book.constants if not _is_whole(book, name)]
    if len(given) != 1 or not lost:
        return found
    source = Source(given[0], task, Replay(First(dataset, _first_samples(book)), views), tuple(book.fields))
    for name in lost:
        if name in found:
            continue
        try:
            found |= {each: values.numpy() for each, values in work_out([name], source).items()}
        except BookKDError:
            continue  # it was given to `make`, and is named with what cannot be mended
    return found


def _first_samples(book: Book) -> int:
    """Return how many samples a book had when its constants were worked out, as far as its editions tell."""
    try:
        return editions(book.path)[0].n_samples
    except BookKDError:
        return book.n_samples


def _is_whole(book: Book, name: str) -> bool:
    try:
        book.constants[name]
    except BookKDError:
        return False
    return True


def _check(book: Book, given: Sequence[Teacher]) -> None:
    """Refuse teachers that are not those of a book."""
    mine = [(teacher.digest, teacher.mode) for teacher in book.plan.teachers]
    theirs = [(teacher.digest, teacher.mode) for teacher in given]
    if theirs != mine:
        wish = f"those of the book, {', '.join(teacher.name for teacher in book.plan.teachers)}, with the same weights"
        got = [f"{teacher.name} {teacher.digest[:12]}" for teacher in given]
        raise BookMismatchError(expected("teachers", wish, got, where=str(book.path)))


def _speaker(book: Book, given: Sequence[Teacher], replay: Replay, task: Task) -> Any:
    """Return what says the records of a book again."""
    if missing_constants({}, (), book.fields):
        given = [teacher.knowing(StoredKnowledge(book).constants) for teacher in given]
    knowledge = [LiveKnowledge(teacher, task) for teacher in given]
    for each in knowledge:
        offer(each, book.fields, replay)
    members = member_fields(book.plan)

    def speak(view: int, start: int, stop: int) -> Mapping[str, Rows]:
        batch = replay.batch([Pick(sample, view) for sample in range(start, stop)])
        said: dict[str, Rows] = {}
        with torch.inference_mode():
            for place, each in enumerate(knowledge):
                for name, array in say(each, batch, view, start).items():
                    said[members[place] if members and name == LOGITS else name] = array
        return {name: said[name] for name in book.fields}

    return speak
