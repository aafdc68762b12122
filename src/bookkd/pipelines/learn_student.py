"""From names to a trained student."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book import Book
from bookkd.core.check import between, positive
from bookkd.core.errors import ConfigError, DataError, UnknownNameError, expected
from bookkd.core.fields import IGNORE_LABEL, VARIANCE
from bookkd.core.files import check_here, write_atomic
from bookkd.core.jsonio import pretty
from bookkd.core.names import import_reference, is_reference, require
from bookkd.core.protocols import Knowledge
from bookkd.knowledge import Ensemble, LiveKnowledge, StoredKnowledge, Teacher, books_of, unmeasured
from bookkd.learning import Learned, LearningWarning, Training, find_device, learn, visible_labels
from bookkd.learning.folder import plain
from bookkd.methods import Method
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions
from bookkd.pipelines.task import (
    build_task,
    check_dataset,
    says_variance,
    task_name,
    teacher_for,
    with_grid,
    with_masked,
    with_variance,
)
from bookkd.tasks import Task
from bookkd.views import Views
from bookkd.zoo import FILELESS, TRANSFORMS, ImageDataset, SubsetDataset, count_parameters, weights_digest

__all__ = [
    "data_of_book",
    "learn_student",
    "make_loggers",
    "open_books",
    "rows_in_whole",
    "seen_labels",
    "views_of_book",
]

_LOGGERS = {
    "csv": "pytorch_lightning.loggers:CSVLogger",
    "tensorboard": "pytorch_lightning.loggers:TensorBoardLogger",
}


def views_of_book(book: Book) -> ViewOptions | None:
    """Return the views that a book was made with, if they are ones of ours.

    Only names in our own literal table are taken from a book; code of a user's own is never named by one.
    """
    recipe = book.plan.views
    name, args, mix = recipe.get("transform"), recipe.get("args", {}), recipe.get("mix")
    if name not in TRANSFORMS or not isinstance(args, dict):
        return None
    kind = "none" if mix is None else str(mix.get("name", "")).lower()
    alpha = 1.0 if mix is None else float(mix.get("alpha", 1.0))
    if kind not in ("none", "mixup", "cutmix"):
        return None
    return ViewOptions(str(name), book.n_views, int(recipe["seed"]), dict(args), kind, alpha)  # type: ignore[arg-type]


def make_loggers(names: tuple[str, ...] | str, out: Path) -> list[Any]:
    """Return Lightning loggers by name: `csv`, `tensorboard`, or `package.module:Class` called with save_dir."""
    made = []
    for name in names.split(",") if isinstance(names, str) else names:
        reference = name if is_reference(name) else _LOGGERS.get(name, "")
        if not reference:
            raise ConfigError(expected("logger", f"{', '.join(_LOGGERS)} or package.module:Class", name))
        folder = out if is_reference(name) else out / name
        made.append(import_reference(reference, "logger")(save_dir=str(folder)))
    return made


def learn_student(
    out: str,
    *,
    student: NetworkOptions,
    method: Method,
    book: str | Sequence[str] | None = None,
    teacher: NetworkOptions | None = None,
    data: DataOptions | None = None,
    part: npt.NDArray[np.int64] | None = None,
    views: ViewOptions | None = None,
    training: Training | None = None,
    label_fraction: float = 1.0,
    validate_on: str = "test",
    task: str = "",
    task_args: Mapping[str, Any] | None = None,
    loggers: tuple[str, ...] | str = ("csv", "tensorboard"),
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Train a student from a book, several books, a live teacher or labels alone, through the Lightning door.

    Args are those of `bookkd learn`, `task_args`: options of the task, and `part`: places of the samples to learn from, among those of `data`, where the book is
    about all of them; None for all.

    Returns:
        What `bookkd learn --json` prints.
    """
    training, folder = training or Training(), check_here(Path(out))
    _refuse_contradictions(book, teacher, views, label_fraction)
    known = None if book is None else open_books(book)
    stored = books_of(known)[0] if known is not None else None
    data = data if data is not None and data.name else data_of_book(stored, data or DataOptions())
    views = views if views is not None and views.transform else _views_of(stored)
    dataset, rows = _samples(data, stored, part)
    named = build_task(task_name(task, stored), dataset, task_args)
    named = with_grid(with_masked(named, stored), stored)
    width, drawn = named.n_outputs, views.build()
    check_dataset(named, dataset, data.name)
    hidden = None if label_fraction == 1 else _hidden(dataset, label_fraction, training.seed, rows, data.name)
    speaker = None
    if stored is None and teacher is not None and teacher.name:
        speaker = teacher_for(teacher, dataset, named, find_device(training.accelerator))
    network, preprocess = student.for_data(dataset).cohort(width, method.cohort, seed=training.seed)
    theirs = _teacher_says_variance(named, stored, speaker, dataset, drawn)
    own = says_variance(named, network, dataset, views=drawn, preprocess=preprocess)
    chosen = with_variance(named, teacher=theirs, student=own)
    _quiet_lightning()
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LearningWarning)  # it is among the notes
        learned = learn(
            network,
            dataset,
            drawn,
            task=chosen,
            knowledge=known if speaker is None else LiveKnowledge(speaker, chosen),
            method=method,
            preprocess=preprocess,
            training=training,
            validation=_validation(data, validate_on),
            labels=hidden,
            rows=None if rows is None else rows.tolist(),
            out=folder,
            door="lightning",
            loggers=make_loggers(loggers, folder / "logs"),
            progress=progress,
            overwrite=overwrite,
            start=weights_digest(network),
            layers=student.layers,
        )
    options: dict[str, Any] = {
        "student": plain(student),
        "data": plain(data),
        "views": plain(views),
        "book": book,
        "task": chosen.name,
    }
    if task_args:
        options["task_args"] = dict(task_args)
    write_atomic(folder / "options.json", pretty(options))
    notes = [*_notes(training, validate_on, unused=own and theirs is False), *learned.notes]
    if learned.order is not None and learned.order.window is not None:
        notes.append(str(learned.order))
    if known is not None:
        notes += unmeasured(method.needs(chosen), known.fields)
    if (known is not None or speaker is not None) and not method.needs(chosen).fields:
        said = "the live teacher was not asked" if known is None else "of the book its data and views alone were used"
        notes.append(f"method {method.name} learns from no teacher: {said}.")
    return _described(learned, folder, method) | {"seconds": round(time.perf_counter() - started, 3), "notes": notes}


def _hidden(
    dataset: Any, fraction: float, seed: int, rows: npt.NDArray[np.int64] | None, name: str
) -> npt.NDArray[Any]:
    if not hasattr(dataset, "labels"):
        do = "Leave --label_fraction out: what is to be learnt of a sequence is the data set's to say."
        raise ConfigError(expected("label_fraction", "1 where samples have no one label", fraction, where=name, do=do))
    return seen_labels(np.asarray(dataset.labels), fraction, seed, rows)


def _described(learned: Learned, folder: Path, method: Method) -> dict[str, Any]:
    """Return what was learnt, in a few plain values."""
    return {
        "out": str(folder),
        "weights": str(folder / "student.safetensors"),
        "method": method.name,
        "epochs": len(learned.history),
        "epoch": learned.epoch,
        "metrics": learned.metrics,
        "seconds_per_epoch": learned.seconds_per_epoch,
        "teacher_forwards": learned.teacher_forwards,
        "student_parameters": count_parameters(learned.student),
    }


def _teacher_says_variance(
    task: Task, stored: StoredKnowledge | None, speaker: Teacher | None, dataset: ImageDataset, views: Views
) -> bool | None:
    """Return whether the book or the live teacher gives a variance; None where nobody teaches."""
    if stored is not None:
        return VARIANCE in stored.fields
    return None if speaker is None else says_variance(task, speaker, dataset, views=views)


def open_books(books: str | Sequence[str]) -> Knowledge:
    """Return what one book says, or several as an ensemble.

    Args:
        books: A path, several, or several in one text with commas between.
    """
    paths = books.split(",") if isinstance(books, str) else list(books)
    stored = [StoredKnowledge(path.strip()) for path in paths]
    return stored[0] if len(stored) == 1 else Ensemble(stored)


def _refuse_contradictions(
    book: str | Sequence[str] | None, teacher: NetworkOptions | None, views: ViewOptions | None, label_fraction: float
) -> None:
    if book is not None and teacher is not None and teacher.name:
        do = "Leave out the book to learn from the live teacher, or the teacher to learn from the book."
        raise ConfigError(expected("teacher", "absent where a book is given", teacher.name, where=str(book), do=do))
    if views is not None and not views.transform and views != ViewOptions(transform=""):
        raise ConfigError(
            "Expected `views` to name a transform where other views options are given. Pass --views NAME with them."
        )
    positive(between(label_fraction, 0, 1, "label_fraction"), "label_fraction")


def _samples(
    data: DataOptions, stored: StoredKnowledge | None, part: npt.NDArray[np.int64] | None
) -> tuple[ImageDataset, npt.NDArray[np.int64] | None]:
    """Return the samples, and their rows in the book where they are a part of what the book is about."""
    dataset = data.open()
    some = data.limit is not None or data.classes
    rows = None
    if stored is not None and some and (data.classes or len(dataset) < stored.book.n_samples):
        rows = rows_in_whole(dataset, stored.book.n_samples)
    if part is None:
        return dataset, rows
    return SubsetDataset(dataset, part), part if rows is None else rows[part]


def rows_in_whole(dataset: ImageDataset, count: int) -> npt.NDArray[np.int64] | None:
    """Return the rows of a part, as a limit or a choice of classes takes it, in the data set of `count` samples that it is a part of.

    Args:
        dataset: The part.
        count: Samples of what a book is about.

    Returns:
        int64 [samples]; None where it is part of no such data set, which the check of alignment says then.
    """
    rows: npt.NDArray[np.int64] | None = None
    while isinstance(dataset, SubsetDataset):
        # From the choice of classes to the limit, and from there to the whole, until the book is about it.
        rows = dataset.indices if rows is None else dataset.indices[rows]
        dataset = dataset.whole
        if len(dataset) == count:
            return rows
    return None


def seen_labels(
    labels: npt.NDArray[Any], fraction: float, seed: int, rows: npt.NDArray[np.int64] | None
) -> npt.NDArray[Any]:
    """Return the labels that the student may see, by row of the book; see `learning.visible_labels`.

    Args:
        labels: Of the samples, [samples, ...].
        fraction: Share that it may see, above 0 to 1.
        seed: Of the choice.
        rows: Row of each sample, int64 [samples]; None where it is the sample's number.

    >>> seen_labels(np.array([0, 1]), 1.0, 0, np.array([2, 0])).tolist()
    [1, -1, 0]
    """
    seen = visible_labels(labels, fraction, seed)
    if rows is None:
        return seen
    hidden = np.nan if seen.dtype.kind == "f" else IGNORE_LABEL
    by_row = np.full((int(rows.max()) + 1, *seen.shape[1:]), hidden, dtype=seen.dtype)
    by_row[rows] = seen
    return by_row


def _validation(data: DataOptions, split: str) -> ImageDataset | None:
    if not split:
        return None
    try:
        return data.other(split).open()
    except (DataError, UnknownNameError) as error:
        raise DataError(
            f"{error} This is the split to validate on: pass --validate_on SPLIT, or --validate_on '' for none."
        ) from error


def _notes(training: Training, validate_on: str, *, unused: bool) -> list[str]:
    notes = []
    if validate_on == "test" and (training.patience is not None or training.schedule == "plateau"):
        notes.append(
            "training was steered by the test split, so its accuracy flatters; steer by another: --validate_on SPLIT."
        )
    if unused:
        notes.append("the teacher gives no variance, so that the student's is not learnt.")
    return notes


def _quiet_lightning() -> None:
    """Keep Lightning's notes on devices and services, and its own deprecations, out of a program's output."""
    require("pytorch_lightning", "train")  # it sets its own level when it is imported
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)


def _views_of(stored: StoredKnowledge | None) -> ViewOptions:
    """Return the views of a book, or the samples as they are where there is none."""
    if stored is None:
        return ViewOptions("none", 1)
    found = views_of_book(stored.book)
    if found is None:
        given = stored.book.plan.views.get("transform")
        raise ConfigError(
            f"Expected `views.transform`, since book {stored.book.path} was made with {given!r}, which is not one of ours "
            "and is never imported from a book. Pass --views package.module:callable."
        )
    return found


def data_of_book(stored: StoredKnowledge | None, given: DataOptions) -> DataOptions:
    """Return the data set that a book names, if it is one of ours that needs no files; else the default."""
    if stored is None:
        return replace(given, name="digits")
    name = stored.book.plan.data.get("name")
    if name not in FILELESS:
        raise ConfigError(
            f"Expected `data`, since book {stored.book.path} was made from {name!r}, whose files a book does not name. "
            "Pass --data NAME --data.root FOLDER."
        )
    return replace(given, name=str(name))
