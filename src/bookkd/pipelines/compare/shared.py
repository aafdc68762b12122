"""What the runs of one process share: data, open books, teachers, views drawn once, and what teachers say of the test split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bookkd.book import TeacherInfo
from bookkd.core.errors import BookMismatchError, ConfigError, expected
from bookkd.core.features import is_feature
from bookkd.core.fields import LOGITS, VARIANCE, FieldInfo
from bookkd.core.jsonio import digest
from bookkd.core.protocols import Knowledge
from bookkd.evaluation import lower_is_better
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
from bookkd.learning import find_device, measure, measure_network
from bookkd.learning.folder import plain
from bookkd.pipelines.compare.arms import Arm
from bookkd.pipelines.compare.sweep import Source, Sweep
from bookkd.pipelines.compare.teacher_predictions import (
    TeacherPredictions,
    live_predictions,
    mean_of,
    measure_stored,
    refuse_sparse,
    stored_predictions,
)
from bookkd.pipelines.evaluate_student import unchanged_views
from bookkd.pipelines.learn_student import views_of_book
from bookkd.pipelines.make_book import note_accuracy
from bookkd.pipelines.options import NetworkOptions, ViewOptions
from bookkd.pipelines.samples import Rows, Samples, open_samples
from bookkd.pipelines.task import beam_of, check_book, says_variance, task_name, with_grid, with_masked, with_variance
from bookkd.tasks import Task, predict
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
        self._live: dict[str, TeacherPredictions] = {}
        self._first: dict[str, float] = {}
        self._said: dict[str, dict[str, Tensor] | None] = {}
        self._views: dict[str, CachedViews] = {}
        self._checked: set[str] = set()

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

    def beside(self, source: Source | None) -> dict[str, Any]:
        """Return what sequences of the test split are compared with: the source's book of it, or a live teacher with its weights.

        One alone, as `measure_network` takes it; nothing where there are several, or nobody can be asked.
        """
        if source is not None and source.test_books:
            ((path, members),) = self._test_members(source)
            return {"book": self.book(path, members)}
        found = self.live_behind(source)
        return {"teacher": self.teacher(found[0])} if len(found) == 1 else {}

    def live_behind(self, source: Source | None) -> Sequence[NetworkOptions]:
        """Return the live teachers of a source; of sequences those with the weights of its books' teachers too."""
        if source is None or source.teachers or not self.of_sequences:
            return () if source is None else source.teachers
        twin = self._live_twin(source)
        return () if twin is None else twin.teachers

    def check_sources(self) -> None:
        """Refuse what the task cannot learn from, before anything starts.

        Raises:
            BookMismatchError: for a book of another task.
            ConfigError: for several books or teachers asked together about numbers.
        """
        task = self.samples.task
        for source in self.sweep.every_source:
            self.stored(source)  # says which of its teachers are not there
            members = self._test_members(source)  # says which books are of other teachers
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
                self._check_one_beside(source, members)
            if LOGITS not in task.field_infos and len(source.books or source.teachers) > 1:
                wish = f"read one by one for task {task.name}, which has no ensembles"
                got = f"{len(source.books or source.teachers)} together"
                raise ConfigError(expected("books", wish, got, where=f"sweep, {source.label}"))

    def _check_one_beside(self, source: Source, members: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Refuse books of the test split that sequences cannot be compared with: what is said of all of them is never averaged."""
        books = [self.book(path, places) for path, places in members]
        teachers = [teacher.name for book in books for teacher in book.teachers]
        if len(books) != 1 or len(teachers) > 1:
            do = "Leave `test` out: agreement is measured with one teacher at a time."
            where, got = f"sweep, {source.label}", f"{len(books)} books by {', '.join(teachers) or 'no teacher'}"
            raise ConfigError(expected("test", "one book by one teacher, for sequences", got, where=where, do=do))
        self._check_test_book(books[0])
        refuse_sparse(self.samples.task, books[0], self.samples.test)

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
        """Return a live teacher; what it scores is not known before `measured`."""
        key = digest(plain(options))
        if key not in self._teachers:
            width = self.samples.task.of_teacher().n_outputs
            self._teachers[key] = options.for_data(self.samples.whole).teacher(width, self.device)
        return self._teachers[key]

    def measured(self, options: NetworkOptions) -> TeacherPredictions:
        """Return what a live teacher says of the test split, and note on it what it scores there."""
        key = digest(plain(options))
        if key not in self._live:
            found, plain_task, test = self.teacher(options), self.samples.task, self.samples.test
            if self.of_sequences:
                # Pixels are measured as images, at the task's own size, and not as cells of a book.
                task_there = plain_task if plain_task.name == "segmentation" else plain_task.of_teacher()
                measured = measure_network(found, test, task_there, device=self.device, replicates=0)
                note_accuracy(found, measured, plain_task, self.sweep.test)
                self._first[found.digest] = measured.metrics[plain_task.primary_metric].value
                return self._live.setdefault(key, {})
            task = with_variance(plain_task, teacher=None, student=says_variance(plain_task, found, test))
            said = predict(found, test, task, device=self.device)
            found.accuracy = measure(task, said, replicates=0).metrics[task.primary_metric].value
            found.split = self.sweep.test
            self._first[found.digest] = found.accuracy
            self._live[key] = live_predictions(task, said.fields)
        return self._live[key]

    def measure_teachers(self, source: Source | None) -> None:
        """Measure the teachers of a source on the test split as far as they can be asked, once each."""
        for options in self.live_behind(source):
            self.measured(options)
        for stored in [] if source is None else self.stored(source):
            for info in stored.teachers:
                self.quality(info)

    def quality(self, info: TeacherInfo) -> dict[str, Any]:
        """Return the first metric of the task that a teacher has (`accuracy`), and the split on which it was measured.

        That is what it notes itself, unless less of the metric is better, or students are of some of its classes alone. A teacher notes
        a share of all classes, which says nothing of these, of perplexity or of word errors: they are measured on the test split, of any
        live teacher of the sweep with its weights, or of what a book of that split says.
        """
        task = self.samples.task
        if not lower_is_better(task.primary_metric) and not task.every_class:
            return {"accuracy": info.accuracy, "split": info.split}
        if info.digest not in self._first:
            self._measure_first(info.digest)
        value = self._first.get(info.digest)
        return {"accuracy": value, "split": "" if value is None else self.sweep.test}

    def _measure_first(self, wanted: str) -> None:
        """Measure the teacher of a digest, whatever arm or source it is of: which runs come first has no say."""
        for source in self.sweep.every_source:
            for options in source.teachers:
                if self.teacher(options).digest == wanted:
                    self.measured(options)
                    return
        for source in self.sweep.every_source if self.of_sequences else ():
            for path, members in self._test_members(source):
                stored, task = self.book(path, members), self.samples.task
                if [teacher.digest for teacher in stored.teachers] == [wanted]:
                    found = measure_stored(task, stored, self.samples.test, device=self.device)
                    self._first[wanted] = found.metrics[task.primary_metric].value
                    return

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

    def said_on_test(self, source: Source | None) -> dict[str, Tensor] | None:
        """Return what a source's teachers say of the test split, together; None where nobody can be asked.

        A book of the training samples says nothing of them: they come from a book of the test split, or from live teachers
        of the sweep with the same weights.
        """
        if source is None or self.of_sequences:
            return None
        key = digest(plain(source))
        if key not in self._said:
            said = self._ask(source)
            self._said[key] = mean_of(said) if said else None
        return self._said[key]

    def _ask(self, source: Source) -> list[TeacherPredictions]:
        if source.test_books:
            return [self._read(path, members) for path, members in self._test_members(source)]
        live = source if source.teachers else self._live_twin(source)
        return [] if live is None else [self.measured(options) for options in live.teachers]

    def _test_members(self, source: Source) -> list[tuple[str, tuple[int, ...]]]:
        """Return which teachers of each book of the test split are those of a source, () where books name none.

        Raises:
            BookMismatchError: if a teacher of the source speaks in none of them.
        """
        wanted = {teacher.digest: teacher.name for book in self.stored(source) for teacher in book.teachers}
        found, missing = [], dict(wanted)
        for path in source.test_books:
            theirs = [teacher.digest for teacher in self.book(path).teachers]
            mine = tuple(place for place, digest in enumerate(theirs) if digest in wanted)
            if mine or not theirs or not wanted:
                found.append((path, mine))
            missing = {} if not theirs else {key: name for key, name in missing.items() if key not in theirs}
        if source.test_books and missing:
            do = "Make it with the teachers of the training book, or leave it out."
            got = f"none by {next(iter(missing.values()))}"
            where = f"sweep, {source.label}"
            raise BookMismatchError(expected("test books", "by the teachers of the books", got, where=where, do=do))
        return found

    def _live_twin(self, source: Source) -> Source | None:
        digests = {teacher.digest for stored in self.stored(source) for teacher in stored.teachers}
        for live in self.sweep.teachers:
            if {self.teacher(options).digest for options in live.teachers} == digests:
                return live
        return None

    def _read(self, path: str, members: tuple[int, ...]) -> TeacherPredictions:
        stored = self.book(path, members)
        self._check_test_book(stored)
        return stored_predictions(self.samples.task, stored, len(self.samples.test))

    def _check_test_book(self, stored: StoredKnowledge) -> None:
        check_book(stored, self.samples.test, unchanged_views(stored), self.samples.task)


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
