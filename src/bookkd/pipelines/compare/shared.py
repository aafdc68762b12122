"""What the runs of one process share: data, open books, teachers, and views drawn once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from bookkd.core.errors import BookMismatchError, ConfigError, expected
from bookkd.core.features import is_feature
from bookkd.core.fields import LOGITS, VARIANCE, FieldInfo
from bookkd.core.jsonio import digest
from bookkd.core.protocols import Knowledge
from bookkd.knowledge import (
    Ensemble,
    LiveKnowledge,
    StoredKnowledge,
    Teacher,
    check_fields,
    check_needs,
    check_views,
    with_pool_of,
)
from bookkd.learning import find_device
from bookkd.learning.folder import plain
from bookkd.pipelines.compare.arms import Arm
from bookkd.pipelines.compare.asked import AskedTeachers
from bookkd.pipelines.compare.sweep import Source, Sweep
from bookkd.pipelines.learn_student import views_of_book
from bookkd.pipelines.options import NetworkOptions, ViewOptions
from bookkd.pipelines.samples import Rows, Samples, open_samples
from bookkd.pipelines.task import (
    beam_of,
    check_book,
    says_variance,
    task_name,
    teacher_for,
    with_grid,
    with_masked,
    with_variance,
)
from bookkd.tasks import Task
from bookkd.views import CachedViews, Replay, Views

__all__ = ["Shared"]


class Shared:
    """Opened once, on first use.

    Args:
        sweep: What is compared.
        runs: How many runs this process is likely to do; views are drawn beforehand if they will be seen often enough.
        share: Part of the memory for views that this process may use.
    """

    def __init__(self, sweep: Sweep, *, runs: int = 1, share: float = 1.0) -> None:
        self.sweep = sweep
        self.runs = runs
        self.share = share
        self._books: dict[tuple[str, tuple[str | int, ...]], StoredKnowledge] = {}
        self._teachers: dict[str, Teacher] = {}
        self._views: dict[str, CachedViews] = {}
        self._checked: set[str] = set()
        self.asked = AskedTeachers(self)

    @cached_property
    def samples(self) -> Samples:
        """The data sets; tokens that the first book masks are those of every arm, since figures over others do not compare."""
        path = next((path for source in self.sweep.every_source for path in source.books), None)
        first = None if path is None else self.book(path)
        sweep = self.sweep
        found = open_samples(
            sweep.data,
            task_name(sweep.task, first),
            test=sweep.test,
            validation=sweep.validation,
            held_out=sweep.held_out,
            where="sweep",
            task_args=sweep.task_args,
        )
        return replace(found, task=with_masked(found.task, first))

    @property
    def width(self) -> int:
        """Number of classes, outputs or tokens."""
        return self.samples.task.n_outputs

    @property
    def of_sequences(self) -> bool:
        """Whether a sample has an answer at every position, so that what is said of all of them is never held together."""
        return any(info.by_position for info in self.samples.task.field_infos.values())

    @property
    def beam(self) -> int:
        """By which translations are written out; 0 for not at all."""
        return beam_of(self.samples.task, self.samples.test, self.sweep.beam)[0]

    def notes(self) -> list[str]:
        """Return what is not measured, in one line each."""
        _, why = beam_of(self.samples.task, self.samples.test, self.sweep.beam)
        several = [source.label for source in self.sweep.every_source if self.of_sequences and self._is_several(source)]
        told = [
            f"{label}: several teachers are asked together, and agreement with them is not measured."
            for label in several
        ]
        return [*([why] if why else []), *told]

    def _is_several(self, source: Source) -> bool:
        asked = [*source.teachers, *(info for stored in self.stored(source) for info in stored.teachers)]
        return len(asked) > 1

    def check_sources(self) -> None:
        """Refuse what the task cannot learn from, before anything starts.

        Raises:
            BookMismatchError: for a book of another task.
            ConfigError: for several books or teachers asked together about numbers.
        """
        task = self.samples.task
        for source in self.sweep.every_source:
            self.stored(source)  # says which of its teachers are not there
            members = self.asked.members_on_test(source)  # says which books are of other teachers
            for path in (*source.books, *source.test_books):
                plan = self.book(path).book.plan
                if plan.task != task.name:
                    do = f"Pass --task {plan.task}, or a book of task {task.name}."
                    raise BookMismatchError(expected("books", f"of task {task.name}", plan.task, where=path, do=do))
                if tuple(plan.masked_classes) != tuple(task.masked):
                    do = "Figures over other tokens do not compare: give books of other masked tokens sweeps of their own."
                    wish, masked = f"{list(task.masked)}, as the sweep's", list(plan.masked_classes)
                    raise BookMismatchError(expected("masked tokens", wish, masked, where=path, do=do))
            if self.of_sequences and source.test_books:
                self.asked.check_one_beside(source, members)
            if LOGITS not in task.field_infos and len(source.books or source.teachers) > 1:
                wish = f"read one by one for task {task.name}, which has no ensembles"
                got = f"{len(source.books or source.teachers)} together"
                raise ConfigError(expected("books", wish, got, where=f"sweep, {source.label}"))

    def check_arm(self, arm: Arm) -> None:
        """Refuse a method that needs what its books, teachers or views have not, or books of other data; no teacher is asked.

        Raises:
            BookMismatchError: if a book is about other data, views, or frames.
            ConfigError: if a field is missing, a live teacher is needed, there are too few views, or labels are to be hidden of samples
                that have no one label.
            FidelityError: if a codec cannot honour a temperature or a loss.
        """
        method, task, source = arm.method.build(), self.samples.task, arm.source
        needs, books = method.needs(task), [] if arm.seen_as is None else self.stored(arm.seen_as)
        if source is not None and source.books:
            stored = self.stored(source)
            asked: Knowledge = stored[0] if len(stored) == 1 else Ensemble(stored)
            check_needs(needs, asked, method.name, where=arm.name)
        elif source is not None:
            # What is inside of a live teacher is found when it is asked.
            inside = {name: FieldInfo(()) for name in needs.fields if is_feature(name)}
            check_fields(needs, {**task.field_infos, **inside}, method.name, where=arm.name)
        if source is not None and getattr(method, "weights", None) == "accuracy":
            self._check_accuracies(source, arm.name)
        drawn = (arm.views or _views_of(books)).n_views
        check_views(needs, drawn, method.name, books=[each.book for each in books], where=arm.name)
        rows = self.views(arm)[1]
        if arm.label_fraction != 1:
            self.samples.labels(rows, arm.label_fraction, 0)

    def _check_accuracies(self, source: Source, where: str) -> None:
        """Refuse teachers weighed by what they score on the split of the report: nothing is chosen on it."""
        stored = [teacher for book in self.stored(source) for teacher in book.teachers]
        # A live teacher is measured on no other split.
        seen = [teacher.name for teacher in stored if teacher.split == self.sweep.test]
        seen += [options.name for options in source.teachers]
        if seen:
            wish = f"measured on another split than {self.sweep.test}, which is reported, to weigh teachers by them"
            do = "Make the books with --held_out of another split, or give the weights as numbers."
            got = f"those of {seen[0]} on {self.sweep.test}"
            raise ConfigError(expected("accuracies", wish, got, where=where, do=do))

    def task_of(
        self, source: Source | None, student: nn.Module, preprocess: Callable[[Tensor], Tensor], views: Views
    ) -> Task:
        """Return the task as the networks of an arm are: numbers with or without a variance, any other as it is."""
        task, train = self.samples.task, self.samples.train
        own = says_variance(task, student, train, views=views, preprocess=preprocess)
        theirs: bool | None = None
        for book in [] if source is None else self.stored(source):
            task = with_grid(task, book)
        if source is not None:
            stored = [VARIANCE in book.fields for book in self.stored(source)]
            live = [says_variance(task, self.teacher(options), train, views=views) for options in source.teachers]
            theirs = all([*stored, *live])
        return with_variance(task, teacher=theirs, student=own)

    @property
    def device(self) -> torch.device:
        """Where students and teachers run."""
        return find_device(self.sweep.training.accelerator)

    def book(self, path: str, members: tuple[str | int, ...] = ()) -> StoredKnowledge:
        """Return a book, open; of several teachers those alone that are named, all where none is."""
        if (path, members) not in self._books:
            self._books[path, members] = StoredKnowledge(path, members or None)
        return self._books[path, members]

    def stored(self, source: Source) -> list[StoredKnowledge]:
        """Return the books of a source, read as it says."""
        return [self.book(path, source.members) for path in source.books]

    def teacher(self, options: NetworkOptions) -> Teacher:
        """Return a live teacher; what it scores is not known before it is `asked`."""
        key = digest(plain(options))
        if key not in self._teachers:
            self._teachers[key] = teacher_for(options, self.samples.whole, self.samples.task, self.device)
        return self._teachers[key]

    def knowledge(self, source: Source | None, task: Task) -> Knowledge | None:
        """Return whom a run of this task asks, with its own count of teacher passes; None for nobody."""
        if source is None:
            return None
        asked: list[Knowledge] = list(self.stored(source))
        asked += [LiveKnowledge(self.teacher(options), task) for options in source.teachers]
        return asked[0] if len(asked) == 1 else Ensemble(asked)

    def views(self, arm: Arm) -> tuple[Views, Rows]:
        """Return the views of an arm and the book row of each training sample, after a check of the books.

        Raises:
            ConfigError: if no book names the views in words of ours, and none are given.
            BookMismatchError: if a book is about other data or views.
        """
        books = [] if arm.seen_as is None else [self.book(path) for path in arm.seen_as.books]
        views = (arm.views or _views_of(books)).build()
        rows = self.samples.rows(books[0] if books else None)
        same = bool((rows == range(len(rows))).all())
        for book in books:
            views = with_pool_of(book, views)
            given = None if same else rows.tolist()
            key = digest([str(book.book.path), views.recipe(len(rows)), views.n_views])
            if key not in self._checked:  # the same for every arm of a book
                check_book(book, self.samples.whole, views, self.samples.task, rows=given)
                self._checked.add(key)
        do = "Pass --validation SPLIT, or --validation_fraction 0."
        self.samples.check_partners(views, where="sweep", do=do)
        return views, rows

    def cached(self, views: Views, rows: Rows | None, epochs: int) -> CachedViews | None:
        """Return the views in memory, drawn now or for an earlier run; None where they would not fit or not pay."""
        train, training = self.samples.train, self.sweep.training
        if getattr(train, "pad_value", None) is not None:  # each has a length of its own
            return None
        key = digest([views.recipe(len(train)), None if rows is None else rows.tolist()])
        room = int(training.cache_bytes * self.share) - sum(held.nbytes for held in self._views.values())
        if key not in self._views and epochs * self.runs >= views.n_views and room > 0:
            replay = Replay(train, views, rows=rows, probe_share=training.probe_share)
            try:
                self._views[key] = CachedViews(replay, max_bytes=room, workers=training.workers)
            except ConfigError:  # they do not fit
                return None
        return self._views.get(key)


def _views_of(books: list[StoredKnowledge]) -> ViewOptions:
    if not books:
        return ViewOptions("none", 1)
    found = views_of_book(books[0].book)
    if found is None:
        given = books[0].book.plan.views.get("transform")
        do = "Pass --views package.module:callable; nothing is imported because a book says so."
        where = str(books[0].book.path)
        raise ConfigError(
            expected("views", f"given, since the book's {given!r} is not one of ours", None, where=where, do=do)
        )
    fewest = min(book.book.n_views for book in books)
    return ViewOptions(found.transform, fewest, found.seed, found.args, found.mix, found.mix_alpha)
