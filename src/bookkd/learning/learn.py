"""Learning from a book, a live teacher or labels alone: checks first, then one of the training doors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bookkd.book import Book, TeacherInfo, lineage_of
from bookkd.core.errors import ConfigError, expected
from bookkd.core.protocols import Knowledge
from bookkd.knowledge import (
    Surroundings,
    as_knowledge,
    books_of,
    check_alignment,
    check_needs,
    teachers_behind,
    teachers_of,
    with_pool_of,
)
from bookkd.knowledge.lineage import CLASSES
from bookkd.knowledge.writing import Viewed
from bookkd.learning.beginning import begin_run
from bookkd.learning.building import for_networks, learner_for, offer_needs
from bookkd.learning.cohort import Cohort
from bookkd.learning.configuration import (
    check_cached,
    check_data,
    check_documents,
    check_heads,
    check_inputs,
    check_labels,
    check_options,
    check_task,
    check_tokens,
    check_utterances,
    check_validation,
    find_rows,
    run_config,
    silent_labels,
)
from bookkd.learning.data import Groups, check_batches, make_groups
from bookkd.learning.folder import RunFolder, is_main_process, plain
from bookkd.learning.learned import Learned, LearningWarning, finished, keep, learned_of
from bookkd.learning.learner import Learner
from bookkd.learning.loop import fit
from bookkd.learning.on_policy import OnPolicy
from bookkd.learning.order import ReadingOrder, order_of_run, reading_ahead
from bookkd.learning.run import Run
from bookkd.learning.step import Step
from bookkd.learning.training import Training, find_device, trainable
from bookkd.learning.validation import Validation
from bookkd.methods import Method, Supervised
from bookkd.tasks import Task
from bookkd.views import CachedViews, Replay, Views
from bookkd.zoo import check_takes

__all__ = ["learn"]

_NAMED_CLASSES = 10_000
"""Most classes whose names stand beside the weights; vocabularies are larger, and have tokenizers."""


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
    knowledge = as_knowledge(knowledge)
    checked = validation if validation is None or isinstance(validation, Validation) else Validation(validation)
    check_options(training, checked, door, (*loggers, *callbacks))
    check_task(method, task)
    check_data(task, dataset, checked)
    _check_cohort(student, method)
    method = for_networks(method, student, knowledge, layers)
    objective = method.objective(task)
    rows = find_rows(dataset, knowledge, rows, keys)
    for book in books_of(knowledge):
        views = with_pool_of(book, views)
    seen = Replay(dataset, views, rows=rows, probe_share=0.0)
    offer_needs(method, task, knowledge, seen)
    check_needs(method.needs(task), knowledge, method.name, n_views=views.n_views)
    check_validation(method.needs(task), checked, method.name)
    check_tokens(objective, knowledge, dataset)
    _check_aligned(views, knowledge, dataset, task, rows)
    check_cached(cached, dataset, views, rows)
    labels = None if labels is None else np.asarray(labels)
    check_labels(objective, dataset, labels, rows, task)
    check_utterances(objective, task, dataset, views, labels)
    silent = silent_labels(method, objective, training.epochs)
    if silent:
        warnings.warn(silent, LearningWarning, stacklevel=2)
    notes = (silent,) if silent else ()
    n_rows, n_next = len(dataset) if rows is None else len(rows), method.needs(task).views_per_sample
    check_batches(training, samples=n_rows, views_per_sample=n_next, whole=objective.relational)
    trainable(student)
    learner = learner_for(
        student,
        task,
        method,
        replay=seen,
        knowledge=knowledge,
        preprocess=preprocess,
        layers=layers,
        seed=training.seed,
    )
    _check_networks(student, knowledge, dataset, checked)
    check_inputs(student, task, dataset, views, rows)
    check_documents(student, task, dataset, _taught_by(knowledge, method, task))
    if on_policy is not None:
        on_policy.check(learner, task, knowledge)
    folder = None
    if out is not None:
        config = run_config(learner, dataset, views, knowledge, method, training, checked, labels, rows, door, start)
        if on_policy is not None:
            config["on_policy"] = plain(on_policy)
        folder = RunFolder(out, config, overwrite=overwrite)
    with folder or nullcontext():
        if folder is not None and folder.result is not None:
            return replace(finished(learner, folder, folder.result), notes=notes)
        fields = tuple(method.needs(task).fields)
        order = order_of_run(
            training,
            books_of(knowledge),
            fields,
            folder,
            labels=getattr(dataset, "labels", None),
            rows=rows,
            n_samples=n_rows,
            views_per_sample=n_next,
        )
        share = training.probe_share if books_of(knowledge) else 0.0
        check_heads(objective, learner, Replay(dataset, views, rows=rows, probe_share=0.0), training.devices)
        job = _Job(
            learner=learner,
            method=method,
            step=Step(objective, task, knowledge),
            training=training,
            replay=cached or _replay(Replay(dataset, views, rows=rows, probe_share=share), training),
            samples=len(dataset) if rows is None else np.asarray(rows),
            n_views=views.n_views,
            labels=labels,
            validation=checked,
            checkpoints=None if folder is None else folder.checkpoints,
            order=order,
            fields=fields,
            surroundings=Surroundings(dataset, views, None if folder is None else folder.path, rows is None),
            written_by=getattr(dataset, "written_by", None),
            on_policy=on_policy,
        )
        learned = job.learned(folder, door, loggers=loggers, callbacks=callbacks, progress=progress)
        return replace(learned, order=order, notes=notes)


def _check_aligned(
    views: Views, knowledge: Knowledge | None, dataset: Any, task: Task, rows: Sequence[int] | None
) -> None:
    """Refuse books that are not about these views of the data set."""
    for book in books_of(knowledge):
        check_alignment(
            book,
            dataset,
            views,
            class_names=task.of_teacher().class_names,
            rows=rows,
            task=task.name,
            masked=task.masked,
            most=_most_positions(task.of_teacher(), getattr(dataset, "of_book", dataset), views),
            blank=getattr(task, "blank", None),
            rule=getattr(task.of_teacher(), "rule", ""),
        )


def _most_positions(task: Task, dataset: Any, views: Views) -> int | None:
    """Return the positions of the longest view of a data set, if it says how many tokens its longest sequence has."""
    return task.most_positions(Viewed(dataset, views)) if hasattr(dataset, "most_positions") else None


def _taught_by(knowledge: Knowledge | None, method: Method, task: Task) -> tuple[TeacherInfo, ...]:
    """Return the teachers whose word a method takes; a book that gives views alone taught nothing."""
    needs = method.needs(task)
    return teachers_behind(knowledge) if needs.fields or needs.live_teacher else ()


def _check_networks(student: nn.Module, knowledge: Knowledge | None, dataset: Any, checked: Validation | None) -> None:
    """Let networks refuse what they cannot take or learn."""
    for network in student.peers if isinstance(student, Cohort) else [student]:
        check = getattr(network, "check_student", None)
        if check is not None:
            check()
        check_takes(network, dataset)
        if checked is not None:
            check_takes(network, checked.dataset)
    for live in teachers_of(knowledge):
        check_takes(live.teacher.network, dataset)


def _check_cohort(student: nn.Module, method: Method) -> None:
    found = len(student.peers) if isinstance(student, Cohort) else 1
    if found != method.cohort:
        do = "Pass a bookkd.learning.Cohort of as many networks." if method.cohort > 1 else "Pass one network."
        wish = f"{method.cohort} for method {method.name}"
        raise ConfigError(expected("students", wish, found, where="learn", do=do))


@dataclass(frozen=True, eq=False, kw_only=True)
class _Job:
    """All that the doors need; each builds its run where its ranks and devices are known."""

    learner: Learner
    method: Method
    step: Step
    training: Training
    replay: Replay | CachedViews
    samples: int | npt.NDArray[np.int64]
    n_views: int
    labels: npt.NDArray[Any] | None
    validation: Validation | None
    checkpoints: Path | None
    order: ReadingOrder
    fields: tuple[str, ...]
    surroundings: Surroundings
    written_by: TeacherInfo | None
    on_policy: OnPolicy | None

    def learned(self, folder: RunFolder | None, door: str, **lightning: Any) -> Learned:
        """Train, and write weights and result where there is a folder."""
        history: list[dict[str, Any]] = []
        run = self.fit(door, history.append if folder is None else folder.log, **lightning)
        self.learner.cpu()
        if folder is None or not is_main_process():
            path = None if folder is None else folder.path
            return learned_of(self.learner, history, run.chosen_epoch, run.teacher_forwards, path)
        method = self.method
        taught_by = _taught_by(self.step.knowledge, method, self.learner.task)
        if self.written_by is not None and self.written_by.digest not in [teacher.digest for teacher in taught_by]:
            taught_by = (*taught_by, self.written_by)
        lineage = lineage_of({"name": method.name, **plain(method)}, taught_by)
        classes = self.learner.task.class_names
        named = {CLASSES: list(classes)} if len(classes) <= _NAMED_CLASSES else {}
        return keep(self.learner, folder, run, {"method": method.name, "lineage": lineage, **named})

    def fit(self, door: str, log: Callable[[dict[str, Any]], None], **lightning: Any) -> Run:
        # Dropout is seeded at every step: the caller's generators are put back afterwards.
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            return self._plain(log) if door == "plain" else self._lightning(log, **lightning)

    def _plain(self, log: Callable[[dict[str, Any]], None]) -> Run:
        self.learner.to(find_device(self.training.accelerator))
        _channels_last(self.learner)
        groups = self._groups(0, 1)
        run = self._run(self.learner, groups)
        fit(run, groups, validation=self.validation, folder=self.checkpoints, log=log)
        return run

    def _lightning(self, log: Callable[[dict[str, Any]], None], **options: Any) -> Run:
        from bookkd.learning.lightning import fit_lightning, make_trainer

        trainer = make_trainer(self.training, folder=self.checkpoints, **options)
        _channels_last(self.learner)
        return fit_lightning(
            self.learner,
            self._run,
            self._groups,
            trainer,
            validation=self.validation,
            folder=self.checkpoints,
            log=log,
        )

    def _groups(self, rank: int, world_size: int) -> Groups:
        return make_groups(
            self.replay,
            self.training,
            samples=self.samples,
            n_views=self.n_views,
            views_per_sample=self.method.needs(self.learner.task).views_per_sample,
            rank=rank,
            world_size=world_size,
            labels=self.labels,
            whole=self.step.objective.relational,
            window=self.order.window,
            ahead=None if self.order.window is None else reading_ahead(books_of(self.step.knowledge), self.fields),
        )

    def _run(self, placed: Learner, groups: Groups) -> Run:
        if self.training.compile:
            placed.student.compile()
        if self.training.devices > 1:
            # Each process asks its own teacher, beside its student.
            for live in teachers_of(self.step.knowledge):
                live.teacher.to(next(placed.parameters()).device)
        return begin_run(
            placed,
            self.step,
            self.method,
            self.training,
            groups,
            surroundings=self.surroundings,
            on_policy=self.on_policy,
        )


def _replay(replay: Replay, training: Training) -> Replay | CachedViews:
    if not training.cache_views:
        return replay
    return CachedViews(replay, max_bytes=training.cache_bytes, workers=training.workers)


def _channels_last(learner: Learner) -> None:
    if next(learner.parameters()).device.type == "cpu":
        learner.to(memory_format=torch.channels_last)
