"""What all runs of one process share: data, views, books, teachers, each opened once."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bookkd.book import Book
from bookkd.core.errors import ConfigError, DataError
from bookkd.core.fields import LOGITS
from bookkd.core.jsonio import digest
from bookkd.core.protocols import Knowledge
from bookkd.core.rng import generator
from bookkd.knowledge import Ensemble, LiveKnowledge, StoredKnowledge, Teacher, books_of, with_pool_of
from bookkd.learning import find_device, visible_labels
from bookkd.learning.folder import plain
from bookkd.pipelines.compare.runs import RunSpec
from bookkd.pipelines.compare.sweep import Sweep
from bookkd.pipelines.learn_student import views_of_book
from bookkd.pipelines.make_book import measure_teacher
from bookkd.pipelines.options import ViewOptions
from bookkd.tasks import Classification, predict
from bookkd.views import CachedViews, Replay, Views
from bookkd.zoo import SubsetDataset

__all__ = ["Workshop", "held_out_rows"]

_CACHE_BYTES = 2 * 2**30


def held_out_rows(labels: npt.NDArray[np.int64], fraction: float) -> npt.NDArray[np.int64]:
    """Return the rows that no student learns from: the same share of every class, the same ones each time.

    >>> held_out_rows(np.repeat(np.arange(2), 10), 0.2).tolist()
    [4, 8, 15, 18]
    """
    found = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = int(fraction * len(rows) + 0.5)
        found.append(generator(0, "validation rows", int(label) & 0xFFFFFFFF).permutation(rows)[:count])
    return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


class Workshop:
    """Opens what a sweep names, once for all its runs in this process.

    Args:
        sweep: The sweep.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._cached: dict[str, CachedViews | None] = {}
        self._teachers: dict[str, Teacher] = {}

    @cached_property
    def whole(self) -> Any:
        """All training samples, in the rows of the books."""
        return self.sweep.data.open()

    @cached_property
    def test(self) -> Any:
        """The split that is reported on."""
        return self.sweep.data.other(self.sweep.test).open()

    @cached_property
    def task(self) -> Classification:
        """The task."""
        return Classification(self.whole.class_names)

    @cached_property
    def validation_rows(self) -> npt.NDArray[np.int64]:
        """Rows that no student learns from."""
        return held_out_rows(np.asarray(self.whole.labels), self.sweep.validation_fraction)

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """Rows that students learn from."""
        return np.setdiff1d(np.arange(len(self.whole)), self.validation_rows)

    @cached_property
    def train(self) -> SubsetDataset:
        """The samples that students learn from."""
        return SubsetDataset(self.whole, self.rows)

    @cached_property
    def validation(self) -> SubsetDataset | None:
        """The samples that options are tuned on; None where nothing is held out."""
        return SubsetDataset(self.whole, self.validation_rows) if len(self.validation_rows) else None

    def labels(self, seed: int) -> npt.NDArray[np.int64] | None:
        """Return the labels that students of a seed see, by row; None for all."""
        if self.sweep.label_fraction == 1:
            return None
        return visible_labels(np.asarray(self.whole.labels), self.sweep.label_fraction, seed)

    @cache  # noqa: B019 - lives as long as the process
    def book(self, label: str) -> Knowledge:
        """Return what the book of a label says."""
        stored = [StoredKnowledge(Book(path)) for path in self.sweep.books[label]]
        return stored[0] if len(stored) == 1 else Ensemble(stored)

    def teacher(self, label: str) -> Teacher:
        """Return a live teacher with its accuracy on the test split."""
        if label not in self._teachers:
            options, device = self.sweep.teachers[label], find_device(self.sweep.training.accelerator)
            teacher = options.teacher(self.task.n_classes, device)
            measure_teacher(teacher, self.sweep.data, self.task, self.sweep.test)
            self._teachers[label] = teacher
        return self._teachers[label]

    def knowledge(self, run: RunSpec) -> Knowledge | None:
        """Return what a run learns from."""
        if run.book is not None:
            return self.book(run.book)
        return None if run.teacher is None else LiveKnowledge(self.teacher(run.teacher), self.task)

    def views(self, run: RunSpec) -> ViewOptions:
        """Return the augmentation of a run: of its override, its book, the sweep, or the first book."""
        if run.views is not None:
            return run.views
        if run.book is not None:
            return self._views_of(run.book)
        if self.sweep.views is not None:
            return self.sweep.views
        if self.sweep.books:
            return self._views_of(next(iter(self.sweep.books)))
        return ViewOptions("none", 1)

    def _views_of(self, label: str) -> ViewOptions:
        found = views_of_book(books_of(self.book(label))[0].book)
        if found is None and self.sweep.views is None:
            raise ConfigError(
                f"Expected `views` in the sweep, since the views of book {label} are not ones of ours and are never imported "
                "from a book. Name them as package.module:callable."
            )
        return found or self.sweep.views  # type: ignore[return-value]

    def built_views(self, run: RunSpec) -> Views:
        """Return the views of a run, with the partners that its books froze."""
        views = self.views(run).build()
        for book in books_of(self.knowledge(run)):
            views = with_pool_of(book, views)
        return views

    def cached(self, run: RunSpec) -> CachedViews | None:
        """Return the views of a run in memory, with their probes, where they fit and are not mixed."""
        options = self.views(run)
        if options.mix != "none":
            return None
        key = digest(plain(options))
        if key not in self._cached:
            replay = Replay(self.train, self.built_views(run), rows=self.rows, probe_share=1.0)
            try:
                self._cached[key] = CachedViews(replay, max_bytes=_CACHE_BYTES)
            except (ConfigError, DataError):
                # Too many to hold, or of different shapes: drawn again for every batch instead.
                self._cached[key] = None
        return self._cached[key]

    @cache  # noqa: B019 - lives as long as the process
    def teacher_on_test(self, label: str) -> Tensor | None:
        """Return a live teacher's logits on the test split; None where the sweep has no such teacher."""
        if label not in self.sweep.teachers:
            return None
        teacher = self.teacher(label)
        return predict(teacher, self.test, self.task, device=teacher.device).fields[LOGITS]
