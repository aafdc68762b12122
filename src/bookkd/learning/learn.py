"""Learning from a book, a live teacher or labels alone: checks first, then one of the training doors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import torch
from torch import Tensor, nn

from bookkd.book import Book, lineage_of
from bookkd.core.jsonio import canonical
from bookkd.core.protocols import Knowledge
from bookkd.knowledge import Surroundings, as_knowledge, books_of, teachers_of
from bookkd.knowledge.lineage import CLASSES
from bookkd.learning.beginning import begin_run
from bookkd.learning.configuration import check_heads, check_options
from bookkd.learning.data import Groups, make_groups
from bookkd.learning.folder import RunFolder, is_main_process, plain
from bookkd.learning.learned import Learned, finished, keep, learned_of
from bookkd.learning.learner import Learner
from bookkd.learning.lesson import Lesson, lesson_of
from bookkd.learning.loop import fit
from bookkd.learning.on_policy import OnPolicy
from bookkd.learning.order import ReadingOrder, order_of_run, reading_ahead
from bookkd.learning.run import Run
from bookkd.learning.step import Step
from bookkd.learning.training import Training, find_device
from bookkd.learning.validation import Validation
from bookkd.methods import Method, Supervised
from bookkd.tasks import Task
from bookkd.views import CachedViews, Replay, Views

__all__ = ["learn"]

_CLASS_NAMES = 2**18
"""Most bytes of the names of classes beside the weights: vocabularies have more, and tokenizers; the lineage must find room, too."""


def learn(
    student: nn.Module,
    dataset: Any,
    views: Views,
    *,
    task: Task,
    knowledge: Knowledge | Book | str | Path | None = None,
    method: Method | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    training: Training | None = None,
    validation: Any | None = None,
    labels: npt.ArrayLike | None = None,
    rows: Sequence[int] | None = None,
    keys: npt.ArrayLike | None = None,
    out: str | Path | None = None,
    door: Literal["plain", "lightning"] = "plain",
    loggers: Sequence[Any] = (),
    callbacks: Sequence[Any] = (),
    progress: bool = False,
    overwrite: bool = False,
    cached: CachedViews | None = None,
    start: str | None = None,
    on_policy: OnPolicy | None = None,
    layers: Mapping[str, str] | None = None,
) -> Learned:
    """Train a student.

    With `out`, a run that was interrupted goes on from its last checkpoint, also from inside an epoch, to the same
    weights as an uninterrupted one (to the bit on a CPU with the same number of threads); a finished run is not repeated.

    Args:
        student: Network to train, in place; a `Cohort` for methods of several students. What a method puts into it is taken out in the end.
        dataset: `dataset[i] -> (image, label)`, with `len`.
        views: Replayable augmentation; for a book the one that it was made with.
        task: Owns the shapes.
        knowledge: A book (`StoredKnowledge`, or the book, its path or address), a live teacher, or None for labels alone.
        method: What to minimise; labels alone where None.
        preprocess: The student's own preprocessing of a view.
        training: Epochs, optimizer, devices and so on.
        validation: Data set measured after each epoch, or a `Validation`.
        labels: Numbers [rows of the book, ...] that replace the data set's; `IGNORE_LABEL`, or NaN among floating ones, where the
            student may not see one.
        rows: Book row of each sample, where the data set is a part or another order of the book's.
        keys: Own id of each sample, in place of `rows`, where the book was made with keys; a data set that has them as its
            attribute `keys` need not repeat them here.
        out: Folder for configuration, metrics, checkpoints, the student's weights and the result.
        door: "plain" is our loop, "lightning" adds devices, precision and loggers.
        loggers: Lightning loggers.
        callbacks: Lightning callbacks.
        progress: Show Lightning's progress bar.
        overwrite: Start again where `out` holds another run.
        cached: Views drawn before, shared by several students; they carry the probes of their own `Replay`.
        start: What the student starts from, such as the digest of its weights, where a run in `out` from another start is
            to be refused; None where the start is drawn anew each time and a checkpoint takes its place.
        on_policy: Of a causal language model with a live teacher: which samples the student writes itself at every step.
        layers: Name -> module path of the student's layers, for methods that look inside of it; over those that it has by itself, see
            `bookkd.knowledge.layers_of`.

    Raises:
        ConfigError: if options contradict each other or the knowledge lacks what the method needs; `out` holds another run.
        DataError: if training has diverged.
        DeviceError: if the accelerator is not there.
        BookMismatchError: if the book is about other data or views, or orders the classes otherwise.
        BookLockedError: if another process trains in `out`.
        ViewMismatchError: if a view is not the input that the teacher saw.
    """
    method, training = method or Supervised(), training or Training()
    checked = validation if validation is None or isinstance(validation, Validation) else Validation(validation)
    check_options(training, checked, door, (*loggers, *callbacks))
    lesson = lesson_of(
        student, dataset, views, task=task, knowledge=as_knowledge(knowledge), method=method, training=training, validation=checked,
        labels=labels, rows=rows, keys=keys, cached=cached, on_policy=on_policy, layers=layers,
    )  # fmt: skip
    learner = lesson.learner(student, preprocess)
    folder = None if out is None else RunFolder(out, lesson.config(learner, door, start), overwrite=overwrite)
    with folder or nullcontext():
        if folder is not None and folder.result is not None:
            return replace(finished(learner, folder, folder.result), notes=lesson.notes)
        job = _Job.of(lesson, learner, folder)
        learned = job.learned(door, loggers=loggers, callbacks=callbacks, progress=progress)
        return replace(learned, order=job.order, notes=lesson.notes)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Job:
    """All that the doors need; each builds its run where its ranks and devices are known."""

    lesson: Lesson
    learner: Learner
    replay: Replay | CachedViews
    order: ReadingOrder
    folder: RunFolder | None

    @classmethod
    def of(cls, lesson: Lesson, learner: Learner, folder: RunFolder | None) -> _Job:
        """Return the job of a lesson: in which order its rows are read, and its views, drawn at once where that is asked for."""
        books, training, rows = books_of(lesson.knowledge), lesson.training, lesson.rows
        order = order_of_run(
            training,
            books,
            lesson.fields,
            folder,
            labels=getattr(lesson.dataset, "labels", None),
            rows=rows,
            n_samples=len(lesson.dataset) if rows is None else len(rows),
            views_per_sample=lesson.views_per_sample,
        )
        check_heads(lesson.objective, learner, lesson.replay(), training.devices)
        replay = lesson.cached or _replay(lesson.replay(training.probe_share if books else 0.0), training)
        return cls(lesson=lesson, learner=learner, replay=replay, order=order, folder=folder)

    def learned(self, door: str, **lightning: Any) -> Learned:
        """Train, and write weights and result where there is a folder."""
        folder, history = self.folder, list[dict[str, Any]]()
        run = self.fit(door, history.append if folder is None else folder.log, **lightning)
        self.learner.cpu()
        if folder is None or not is_main_process():
            path = None if folder is None else folder.path
            return learned_of(self.learner, history, run.chosen_epoch, run.teacher_forwards, path)
        return keep(self.learner, folder, run, self._noted())

    def _noted(self) -> dict[str, Any]:
        """Return what stands beside the weights: method, lineage, and the classes in the order of the outputs."""
        method, taught_by, classes = self.lesson.method, self.lesson.taught_by, self.lesson.task.class_names
        written_by = getattr(self.lesson.dataset, "written_by", None)
        if written_by is not None and written_by.digest not in [teacher.digest for teacher in taught_by]:
            taught_by = (*taught_by, written_by)
        lineage = lineage_of({"name": method.name, **plain(method)}, taught_by)
        named = {CLASSES: list(classes)}
        named = named if len(canonical(named)) <= _CLASS_NAMES else {}
        return {"method": method.name, "lineage": lineage, **named}

    @property
    def _checkpoints(self) -> Path | None:
        return None if self.folder is None else self.folder.checkpoints

    def fit(self, door: str, log: Callable[[dict[str, Any]], None], **lightning: Any) -> Run:
        # Dropout is seeded at every step: the caller's generators are put back afterwards.
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            return self._plain(log) if door == "plain" else self._lightning(log, **lightning)

    def _plain(self, log: Callable[[dict[str, Any]], None]) -> Run:
        self.learner.to(find_device(self.lesson.training.accelerator))
        _channels_last(self.learner)
        groups = self._groups(0, 1)
        run = self._run(self.learner, groups)
        fit(run, groups, validation=self.lesson.validation, folder=self._checkpoints, log=log)
        return run

    def _lightning(self, log: Callable[[dict[str, Any]], None], **options: Any) -> Run:
        from bookkd.learning.lightning import fit_lightning, make_trainer

        trainer = make_trainer(self.lesson.training, folder=self._checkpoints, **options)
        _channels_last(self.learner)
        return fit_lightning(
            self.learner,
            self._run,
            self._groups,
            trainer,
            validation=self.lesson.validation,
            folder=self._checkpoints,
            log=log,
        )

    def _groups(self, rank: int, world_size: int) -> Groups:
        lesson, window = self.lesson, self.order.window
        return make_groups(
            self.replay,
            lesson.training,
            samples=lesson.samples,
            n_views=lesson.views.n_views,
            views_per_sample=lesson.views_per_sample,
            rank=rank,
            world_size=world_size,
            labels=lesson.labels,
            whole=lesson.objective.relational,
            window=window,
            ahead=None if window is None else reading_ahead(books_of(lesson.knowledge), lesson.fields),
        )

    def _run(self, placed: Learner, groups: Groups) -> Run:
        lesson = self.lesson
        if lesson.training.compile:
            placed.student.compile()
        if lesson.training.devices > 1:
            # Each process asks its own teacher, beside its student.
            for live in teachers_of(lesson.knowledge):
                live.teacher.to(next(placed.parameters()).device)
        return begin_run(
            placed,
            Step(lesson.objective, lesson.task, lesson.knowledge),
            lesson.method,
            lesson.training,
            groups,
            surroundings=Surroundings(
                lesson.dataset, lesson.views, None if self.folder is None else self.folder.path, lesson.rows is None
            ),
            on_policy=lesson.on_policy,
        )


def _replay(replay: Replay, training: Training) -> Replay | CachedViews:
    if not training.cache_views:
        return replay
    return CachedViews(replay, max_bytes=training.cache_bytes, workers=training.workers)


def _channels_last(learner: Learner) -> None:
    if next(learner.parameters()).device.type == "cpu":
        learner.to(memory_format=torch.channels_last)
