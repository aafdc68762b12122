"""Repair with a teacher: what files do not give any more is asked for again, of the same teacher about the same views."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bookkd.book import Book, Repaired, is_finished
from bookkd.book import repair as repair_files
from bookkd.book.ragged import Rows
from bookkd.core.errors import BookCorruptError, BookMismatchError, BookMissingError, expected
from bookkd.core.fields import LOGITS
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher, keys_of, member_fields, with_pool_of
from bookkd.knowledge.writing import offer, say
from bookkd.making.growing import check_samples
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
        constants: As `make`, where their files may be faulty.
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
    speaker = _speaker(book, given, dataset, views, task)
    with encoding_on(given[0].device if given else "cpu"):
        return repair_files(path, speaker, keys=found, constants=constants, accept=accept, progress=progress)


def _speaker(book: Book, given: Sequence[Teacher], dataset: Any, views: Views, task: Task) -> Any:
    """Return what says the records of a book again, after comparing teachers, samples and views with its plan."""
    mine = [(teacher.digest, teacher.mode) for teacher in book.plan.teachers]
    theirs = [(teacher.digest, teacher.mode) for teacher in given]
    if theirs != mine:
        wish = f"those of the book, {', '.join(teacher.name for teacher in book.plan.teachers)}, with the same weights"
        got = [f"{teacher.name} {teacher.digest[:12]}" for teacher in given]
        raise BookMismatchError(expected("teachers", wish, got, where=str(book.path)))
    views = with_pool_of(StoredKnowledge(book), views)
    check_samples(book, dataset, views)
    replay = Replay(dataset, views)
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
