"""What a student is to learn, checked before there is anything to train."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from bookkd.book import TeacherInfo
from bookkd.core.errors import ConfigError, expected
from bookkd.core.protocols import Knowledge
from bookkd.knowledge import (
    books_of,
    check_alignment,
    check_needs,
    teachers_behind,
    teachers_of,
    with_pool_of,
)
from bookkd.knowledge.writing import Viewed
from bookkd.learning.building import for_networks, learner_for, offer_needs
from bookkd.learning.cohort import Cohort
from bookkd.learning.configuration import (
    check_cached,
    check_data,
    check_documents,
    check_inputs,
    check_labels,
    check_task,
    check_tokens,
    check_utterances,
    check_validation,
    find_rows,
    run_config,
    silent_labels,
)
from bookkd.learning.data import check_batches
from bookkd.learning.folder import plain
from bookkd.learning.learned import LearningWarning
from bookkd.learning.learner import Learner
from bookkd.learning.on_policy import OnPolicy
from bookkd.learning.training import Training, trainable
from bookkd.learning.validation import Validation
from bookkd.methods import Method
from bookkd.objectives import Objective
from bookkd.tasks import Task
from bookkd.views import CachedViews, Replay, Views
from bookkd.zoo import check_takes

__all__ = ["Lesson", "lesson_of"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Lesson:
    """What a student is to learn, from what, by which method: as `learn` is given it, with what follows from it.

    Args:
        dataset: The samples.
        views: Replayable augmentation, with the pool of partners of the book.
        task: Owns the shapes.
        knowledge: Books, live teachers, or None.
        method: What to minimise, looking at the layers that both networks name.
        objective: Its terms.
        training: Epochs, optimizer, devices and so on.
        validation: What is measured after each epoch.
        labels: Those that replace the data set's.
        rows: Book row of each sample, where these are others than 0, 1, ...
        cached: Views drawn before.
        on_policy: Which samples the student writes itself.
        layers: Name -> module path of the student's layers.
        notes: What is to be read beside the figures.
    """

    dataset: Any
    views: Views
    task: Task
    knowledge: Knowledge | None
    method: Method
    objective: Objective
    training: Training
    validation: Validation | None
    labels: npt.NDArray[Any] | None
    rows: Sequence[int] | None
    cached: CachedViews | None
    on_policy: OnPolicy | None
    layers: Mapping[str, str] | None
    notes: tuple[str, ...]

    @property
    def samples(self) -> int | npt.NDArray[np.int64]:
        """How many rows there are, or which."""
        return len(self.dataset) if self.rows is None else np.asarray(self.rows)

    @property
    def fields(self) -> tuple[str, ...]:
        """What the method reads of the knowledge."""
        return tuple(self.method.needs(self.task).fields)

    @property
    def views_per_sample(self) -> int:
        """How many views of a sample stand next to each other in a batch."""
        return self.method.needs(self.task).views_per_sample

    @property
    def taught_by(self) -> tuple[TeacherInfo, ...]:
        """The teachers whose word the method takes; a book that gives views alone taught nothing."""
        needs = self.method.needs(self.task)
        return teachers_behind(self.knowledge) if needs.fields or needs.live_teacher else ()

    def replay(self, probe_share: float = 0.0) -> Replay:
        """Return the views of the samples, a share of which is compared with what the teacher saw."""
        return Replay(self.dataset, self.views, rows=self.rows, probe_share=probe_share)

    def learner(self, student: nn.Module, preprocess: Callable[[Tensor], Tensor] | None) -> Learner:
        """Return the student with all that learns beside it, after asking each network whether it takes the samples."""
        trainable(student)
        learner = learner_for(
            student,
            self.task,
            self.method,
            replay=self.replay(),
            knowledge=self.knowledge,
            preprocess=preprocess,
            layers=self.layers,
            seed=self.training.seed,
        )
        _check_networks(student, self.knowledge, self.dataset, self.validation)
        check_inputs(student, self.task, self.dataset, self.views, self.rows)
        check_documents(student, self.task, self.dataset, self.taught_by)
        if self.on_policy is not None:
            self.on_policy.check(learner, self.task, self.knowledge)
        return learner

    def config(self, learner: Learner, door: str, start: str | None) -> dict[str, Any]:
        """Return what a run of this lesson is told apart by."""
        found = run_config(
            learner, self.dataset, self.views, self.knowledge, self.method, self.training, self.validation, self.labels,
            self.rows, door, start,
        )  # fmt: skip
        return found if self.on_policy is None else {**found, "on_policy": plain(self.on_policy)}


def lesson_of(
    student: nn.Module,
    dataset: Any,
    views: Views,
    *,
    task: Task,
    knowledge: Knowledge | None,
    method: Method,
    training: Training,
    validation: Validation | None,
    labels: npt.ArrayLike | None,
    rows: Sequence[int] | None,
    keys: npt.ArrayLike | None,
    cached: CachedViews | None,
    on_policy: OnPolicy | None,
    layers: Mapping[str, str] | None,
) -> Lesson:
    """Return what is to be learnt, after every check that needs no learner; arguments and errors as `learn`."""
    check_task(method, task)
    check_data(task, dataset, validation)
    _check_cohort(student, method)
    method = for_networks(method, student, knowledge, layers)
    objective, needs = method.objective(task), method.needs(task)
    rows = find_rows(dataset, knowledge, rows, keys)
    for book in books_of(knowledge):
        views = with_pool_of(book, views)
    offer_needs(method, task, knowledge, Replay(dataset, views, rows=rows, probe_share=0.0))
    check_needs(needs, knowledge, method.name, n_views=views.n_views)
    check_validation(needs, validation, method.name)
    check_tokens(objective, knowledge, dataset)
    _check_aligned(views, knowledge, dataset, task, rows)
    check_cached(cached, dataset, views, rows)
    own = None if labels is None else np.asarray(labels)
    check_labels(objective, dataset, own, rows, task)
    check_utterances(objective, task, dataset, views, own)
    silent = silent_labels(method, objective, training.epochs)
    if silent:
        warnings.warn(silent, LearningWarning, stacklevel=3)
    samples = len(dataset) if rows is None else len(rows)
    check_batches(training, samples=samples, views_per_sample=needs.views_per_sample, whole=objective.relational)
    return Lesson(
        dataset=dataset,
        views=views,
        task=task,
        knowledge=knowledge,
        method=method,
        objective=objective,
        training=training,
        validation=validation,
        labels=own,
        rows=rows,
        cached=cached,
        on_policy=on_policy,
        layers=layers,
        notes=(silent,) if silent else (),
    )


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
