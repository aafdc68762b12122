"""What teachers say of the test split and what they score there, each asked once: by books of it, or live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bookkd.book import TeacherInfo
from bookkd.core.errors import BookMismatchError, ConfigError, expected
from bookkd.core.jsonio import digest
from bookkd.evaluation import lower_is_better
from bookkd.knowledge import StoredKnowledge
from bookkd.learning import measure, measure_network
from bookkd.learning.folder import plain
from bookkd.pipelines.compare.sweep import Source
from bookkd.pipelines.compare.teacher_predictions import (
    TeacherPredictions,
    live_predictions,
    mean_of,
    measure_stored,
    refuse_sparse,
    stored_predictions,
)
from bookkd.pipelines.evaluate_student import unchanged_views
from bookkd.pipelines.make_book import note_accuracy
from bookkd.pipelines.options import NetworkOptions
from bookkd.pipelines.task import check_book, says_variance, with_variance
from bookkd.tasks import predict

if TYPE_CHECKING:
    from bookkd.pipelines.compare.shared import Shared

__all__ = ["AskedTeachers"]


class AskedTeachers:
    """The teachers of a sweep on its test split.

    Args:
        shared: Has the data, the books and the live teachers.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._live: dict[str, TeacherPredictions] = {}
        self._first: dict[str, float] = {}
        self._said: dict[str, dict[str, Tensor] | None] = {}

    def beside(self, source: Source | None) -> dict[str, Any]:
        """Return what sequences of the test split are compared with: the source's book of it, or a live teacher with its weights.

        One alone, as `measure_network` takes it; nothing where there are several, or nobody can be asked.
        """
        if source is not None and source.test_books:
            ((path, members),) = self.members_on_test(source)
            return {"book": self.shared.book(path, members)}
        found = self.live_behind(source)
        return {"teacher": self.shared.teacher(found[0])} if len(found) == 1 else {}

    def live_behind(self, source: Source | None) -> Sequence[NetworkOptions]:
        """Return the live teachers of a source; of sequences those with the weights of its books' teachers too."""
        if source is None or source.teachers or not self.shared.of_sequences:
            return () if source is None else source.teachers
        twin = self._live_twin(source)
        return () if twin is None else twin.teachers

    def measure(self, source: Source | None) -> None:
        """Measure the teachers of a source on the test split as far as they can be asked, once each."""
        for options in self.live_behind(source):
            self._measured(options)
        for stored in [] if source is None else self.shared.stored(source):
            for info in stored.teachers:
                self.quality(info)

    def quality(self, info: TeacherInfo) -> dict[str, Any]:
        """Return the first metric of the task that a teacher has (`accuracy`), and the split on which it was measured.

        That is what it notes itself, unless less of the metric is better, or students are of some of its classes alone. A teacher notes
        a share of all classes, which says nothing of these, of perplexity or of word errors: they are measured on the test split, of any
        live teacher of the sweep with its weights, or of what a book of that split says.
        """
        task = self.shared.samples.task
        if not lower_is_better(task.primary_metric) and not task.every_class:
            return {"accuracy": info.accuracy, "split": info.split}
        if info.digest not in self._first:
            self._measure_first(info.digest)
        value = self._first.get(info.digest)
        return {"accuracy": value, "split": "" if value is None else self.shared.sweep.test}

    def said(self, source: Source | None) -> dict[str, Tensor] | None:
        """Return what a source's teachers say of the test split, together; None where nobody can be asked.

        A book of the training samples says nothing of them: they come from a book of the test split, or from live teachers
        of the sweep with the same weights.
        """
        if source is None or self.shared.of_sequences:
            return None
        key = digest(plain(source))
        if key not in self._said:
            said = self._ask(source)
            self._said[key] = mean_of(said) if said else None
        return self._said[key]

    def members_on_test(self, source: Source) -> list[tuple[str, tuple[int, ...]]]:
        """Return which teachers of each book of the test split are those of a source, () where books name none.

        Raises:
            BookMismatchError: if a teacher of the source speaks in none of them.
        """
        wanted = {teacher.digest: teacher.name for book in self.shared.stored(source) for teacher in book.teachers}
        found, missing = [], dict(wanted)
        for path in source.test_books:
            theirs = [teacher.digest for teacher in self.shared.book(path).teachers]
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

    def check_one_beside(self, source: Source, members: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Refuse books of the test split that sequences cannot be compared with: what is said of all of them is never averaged."""
        books = [self.shared.book(path, places) for path, places in members]
        teachers = [teacher.name for book in books for teacher in book.teachers]
        if len(books) != 1 or len(teachers) > 1:
            do = "Leave `test` out: agreement is measured with one teacher at a time."
            where, got = f"sweep, {source.label}", f"{len(books)} books by {', '.join(teachers) or 'no teacher'}"
            raise ConfigError(expected("test", "one book by one teacher, for sequences", got, where=where, do=do))
        self._check_test_book(books[0])
        refuse_sparse(self.shared.samples.task, books[0], self.shared.samples.test)

    def _measured(self, options: NetworkOptions) -> TeacherPredictions:
        """Return what a live teacher says of the test split, and note on it what it scores there."""
        key = digest(plain(options))
        if key not in self._live:
            found, plain_task, test = self.shared.teacher(options), self.shared.samples.task, self.shared.samples.test
            if self.shared.of_sequences:
                # Pixels are measured as images, at the task's own size, and not as cells of a book.
                task_there = plain_task if plain_task.name == "segmentation" else plain_task.of_teacher()
                measured = measure_network(found, test, task_there, device=self.shared.device, replicates=0)
                note_accuracy(found, measured, plain_task, self.shared.sweep.test)
                self._first[found.digest] = measured.metrics[plain_task.primary_metric].value
                return self._live.setdefault(key, {})
            task = with_variance(plain_task, teacher=None, student=says_variance(plain_task, found, test))
            said = predict(found, test, task, device=self.shared.device)
            found.accuracy = measure(task, said, replicates=0).metrics[task.primary_metric].value
            found.split = self.shared.sweep.test
            self._first[found.digest] = found.accuracy
            self._live[key] = live_predictions(task, said.fields)
        return self._live[key]

    def _measure_first(self, wanted: str) -> None:
        """Measure the teacher of a digest, whatever arm or source it is of: which runs come first has no say."""
        for source in self.shared.sweep.every_source:
            for options in source.teachers:
                if self.shared.teacher(options).digest == wanted:
                    self._measured(options)
                    return
        for source in self.shared.sweep.every_source if self.shared.of_sequences else ():
            for path, members in self.members_on_test(source):
                stored, task = self.shared.book(path, members), self.shared.samples.task
                if [teacher.digest for teacher in stored.teachers] == [wanted]:
                    found = measure_stored(task, stored, self.shared.samples.test, device=self.shared.device)
                    self._first[wanted] = found.metrics[task.primary_metric].value
                    return

    def _ask(self, source: Source) -> list[TeacherPredictions]:
        if source.test_books:
            return [self._read(path, members) for path, members in self.members_on_test(source)]
        live = source if source.teachers else self._live_twin(source)
        return [] if live is None else [self._measured(options) for options in live.teachers]

    def _read(self, path: str, members: tuple[int, ...]) -> TeacherPredictions:
        stored = self.shared.book(path, members)
        self._check_test_book(stored)
        return stored_predictions(self.shared.samples.task, stored, len(self.shared.samples.test))

    def _live_twin(self, source: Source) -> Source | None:
        digests = {teacher.digest for stored in self.shared.stored(source) for teacher in stored.teachers}
        for live in self.shared.sweep.teachers:
            if {self.shared.teacher(options).digest for options in live.teachers} == digests:
                return live
        return None

    def _check_test_book(self, stored: StoredKnowledge) -> None:
        check_book(stored, self.shared.samples.test, unchanged_views(stored), self.shared.samples.task)
