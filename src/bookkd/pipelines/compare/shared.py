"""What the runs of one process share: data, open books, teachers, views drawn once, and what teachers say of the test split."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from bookkd.core.errors import ConfigError, FidelityError, expected
from bookkd.core.fields import LOGITS, SAMPLE, VIEW, WEIGHT
from bookkd.core.jsonio import digest
from bookkd.core.protocols import Knowledge
from bookkd.knowledge import Ensemble, LiveKnowledge, StoredKnowledge, Teacher, check_alignment, with_pool_of
from bookkd.learning import find_device
from bookkd.learning.folder import plain
from bookkd.losses.targets import FullTarget
from bookkd.pipelines.compare.arms import Arm
from bookkd.pipelines.compare.sweep import Source, Sweep
from bookkd.pipelines.learn_student import views_of_book
from bookkd.pipelines.options import NetworkOptions, ViewOptions
from bookkd.pipelines.samples import Rows, Samples, open_samples
from bookkd.tasks import predict
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
        self._books: dict[str, StoredKnowledge] = {}
        self._teachers: dict[str, Teacher] = {}
        self._said: dict[str, Tensor | None] = {}
        self._views: dict[str, CachedViews] = {}

    @cached_property
    def samples(self) -> Samples:
        """The data sets."""
        sweep = self.sweep
        return open_samples(
            sweep.data, test=sweep.test, validation=sweep.validation, held_out=sweep.held_out, where="sweep"
        )

    @property
    def device(self) -> torch.device:
        """Where students and teachers run."""
        return find_device(self.sweep.training.accelerator)

    def book(self, path: str) -> StoredKnowledge:
        """Return a book, open."""
        if path not in self._books:
            self._books[path] = StoredKnowledge(path)
        return self._books[path]

    def teacher(self, options: NetworkOptions) -> Teacher:
        """Return a live teacher, measured on the test split."""
        key = digest(plain(options))
        if key not in self._teachers:
            found = options.teacher(self.samples.task.n_classes, self.device)
            said = predict(found, self.samples.test, self.samples.task, device=self.device)
            self._said[key] = said.fields[LOGITS]
            found.accuracy = float((said.fields[LOGITS].argmax(-1) == said.labels).float().mean())
            found.split = self.sweep.test
            self._teachers[key] = found
        return self._teachers[key]

    def knowledge(self, source: Source | None) -> Knowledge | None:
        """Return whom a run asks, with its own count of teacher passes; None for nobody."""
        if source is None:
            return None
        asked: list[Knowledge] = [self.book(path) for path in source.books]
        asked += [LiveKnowledge(self.teacher(options), self.samples.task) for options in source.teachers]
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
            classes = self.samples.task.class_names
            check_alignment(book, self.samples.whole, views, class_names=classes, rows=None if same else rows.tolist())
        do = "Pass --validation SPLIT, or --validation_fraction 0."
        self.samples.check_partners(views, where="sweep", do=do)
        return views, rows

    def cached(self, views: Views, rows: Rows | None, epochs: int) -> CachedViews | None:
        """Return the views in memory, drawn now or for an earlier run; None where they would not fit or not pay."""
        train, training = self.samples.train, self.sweep.training
        key = digest([views.recipe(len(train)), None if rows is None else rows.tolist()])
        room = int(training.cache_bytes * self.share) - sum(held.nbytes for held in self._views.values())
        if key not in self._views and epochs * self.runs >= views.n_views and room > 0:
            replay = Replay(train, views, rows=rows, probe_share=training.probe_share)
            try:
                self._views[key] = CachedViews(replay, max_bytes=room, workers=training.workers)
            except ConfigError:  # they do not fit
                return None
        return self._views.get(key)

    def said_on_test(self, source: Source | None) -> Tensor | None:
        """Return log-probabilities of a source's teachers on the test split; None where nobody can be asked.

        A book of the training samples says nothing of them: they come from a book of the test split, or from live teachers
        of the sweep with the same weights.
        """
        if source is None:
            return None
        if source.label not in self._said:
            self._said[source.label] = self._ask(source)
        return self._said[source.label]

    def _ask(self, source: Source) -> Tensor | None:
        if source.test_books:
            return _mean([self._read(path) for path in source.test_books])
        live = source if source.teachers else self._live_twin(source)
        if live is None:
            return None
        said = []
        for options in live.teachers:
            self.teacher(options)
            logits = self._said[digest(plain(options))]
            said += [] if logits is None else [logits.double().log_softmax(-1)]
        return _mean(said)

    def _live_twin(self, source: Source) -> Source | None:
        digests = {teacher.digest for path in source.books for teacher in self.book(path).book.plan.teachers}
        for live in self.sweep.teachers:
            if {self.teacher(options).digest for options in live.teachers} == digests:
                return live
        return None

    def _read(self, path: str) -> Tensor:
        test, stored = self.samples.test, self.book(path)
        check_alignment(stored, test, Views(None, 1), class_names=self.samples.task.class_names)
        rows = torch.arange(len(test))
        batch = {SAMPLE: rows, VIEW: torch.zeros_like(rows), WEIGHT: torch.ones(len(test))}
        target = stored.targets(batch, [LOGITS])[LOGITS]
        if not isinstance(target, FullTarget):
            do = "Make it with codec dense or int8."
            raise FidelityError(expected("test", "a book of every class", "a sparse codec", where=path, do=do))
        return target.log_probabilities(1.0).double()


def _mean(said: list[Tensor]) -> Tensor:
    """Return the logarithm of the mean probability."""
    return torch.stack(said).logsumexp(0) - torch.tensor(float(len(said))).log()


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
