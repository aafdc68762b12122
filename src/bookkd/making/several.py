"""One book by several teachers, of which never two are in memory: a part for each, then merged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from bookkd.book import Auto, Book, BookWriter, Codec, Dense, is_finished, planned_constants
from bookkd.book.remote import local_folder
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LOGITS
from bookkd.knowledge import Teacher, keys_of
from bookkd.making.choosing import check_wish
from bookkd.making.local import Progress, make, plan_book
from bookkd.making.merging import merge, merged_plan
from bookkd.tasks import Task
from bookkd.views import Views

__all__ = ["make_several"]


def make_several(
    path: str | Path,
    teachers: Sequence[Callable[[], Teacher]],
    dataset: Any,
    views: Views,
    *,
    task: Task,
    constants: Callable[[Teacher], Mapping[str, npt.ArrayLike]] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Book:
    """Write down what several teachers say, one teacher after another.

    Each teacher writes a part in `<path>.parts`, which is deleted when all are merged; interrupted, the parts and the merging
    are gone on with. On disk there are for a moment twice the bytes of the book.

    Args:
        path: Folder of the book.
        teachers: Functions that load a teacher; each is called when its turn comes, and its teacher let go afterwards.
        dataset: As `make`.
        views: As `make`.
        task: As `make`.
        constants: Called with each teacher when its turn comes: what it has once, name -> array, which becomes `members/<i>/<name>`.
        progress: Called with (records done, records in all), of all teachers.
        **options: Further options of `make`, for every part.

    Returns:
        The finished book, open: fields `members/<i>/logits`, in the order of the teachers.

    Raises:
        BookMismatchError: if the folder or a part holds a book of another teacher, data set, recipe or codec.
        ConfigError: if there are fewer than two teachers, the task has no logits, or the path is the root of a disk.
    """
    path = local_folder(path, "make a book of several teachers")
    parts = _parts_of(path)
    if len(teachers) < 2:
        raise ConfigError(expected("teachers", "at least two", len(teachers), where="making a book of several"))
    if LOGITS not in task.field_infos:
        # Said before any teacher runs: `merge` takes logits alone.
        do = "Make a book of one teacher."
        where = f"task {task.name}, whose networks give no logits to combine"
        raise ConfigError(expected("teachers", "one", len(teachers), where=where, do=do))
    if is_finished(path):
        book = _finished(path, teachers, dataset, views, task, constants, options)
        shutil.rmtree(parts, ignore_errors=True)  # left behind where the merging was done and its end was not
        return book
    total = len(teachers) * len(dataset) * views.n_views
    books = []
    for place, load in enumerate(teachers):
        before = place * len(dataset) * views.n_views

        def moved(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        teacher = load()
        given = None if constants is None else constants(teacher)
        folder = parts / f"{place:02d}"
        books.append(make(folder, teacher, dataset, views, task=task, constants=given, progress=moved, **options))
        del teacher
    book = merge(path, books)
    for part in books:
        part.close()  # a file that is mapped cannot be deleted everywhere
    shutil.rmtree(parts)
    return book


def _chosen(book: Book, place: int, auto: Auto, temperatures: tuple[float, ...]) -> Codec:
    """Return the codec that was chosen for one teacher; what was chosen stays chosen."""
    name = f"members/{place}/{LOGITS}"
    if name not in book.fields:
        return Dense()  # another book, which is then refused with what differs
    choice = book.fidelity.get(name, {}).get("choice")
    if choice is not None:
        check_wish(choice, auto, temperatures, str(book.path))
    return book.fields[name].codec


def _parts_of(path: Path) -> Path:
    """Return the folder of the parts, beside that of the book."""
    named = path if path.name not in ("", "..") else path.resolve()  # "." and ".." have no name of their own
    if not named.name:
        do = "Name a folder for the book."
        raise ConfigError(expected("path", "a folder in another", str(path), where="making a book of several", do=do))
    return named.with_name(f"{named.name}.parts")


def _finished(
    path: Path,
    teachers: Sequence[Callable[[], Teacher]],
    dataset: Any,
    views: Views,
    task: Task,
    constants: Callable[[Teacher], Mapping[str, npt.ArrayLike]] | None,
    options: dict[str, Any],
) -> Book:
    """Return the book of a folder that is finished, after comparing it with what it would be made of now."""
    codec, temperatures = options.get("codec") or Dense(), options.get("temperatures", (1.0, 4.0))
    book = Book(path)
    plans = []
    for place, load in enumerate(teachers):
        teacher = load()
        used = _chosen(book, place, codec, temperatures) if isinstance(codec, Auto) else codec
        plan = plan_book(teacher, dataset, views, task, codec=used, temperatures=temperatures)
        given = {} if constants is None else planned_constants(constants(teacher))
        plans.append(replace(plan, constants=given))
        del teacher
    plan = replace(merged_plan(plans), batch_size=options.get("batch_size") or book.plan.batch_size, unit_rows=None)
    keys = options.get("keys")
    with BookWriter(path, plan, keys=keys_of(dataset) if keys is None else keys) as writer:
        return writer.finish()
