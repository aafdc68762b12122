"""Which samples students learn from, which are held out, and which are reported on; the same for all that is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.core.errors import ConfigError, DataError, UnknownNameError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.knowledge import StoredKnowledge, keys_of
from bookkd.pipelines.learn_student import rows_in_whole, seen_labels
from bookkd.pipelines.options import DataOptions
from bookkd.pipelines.task import build_task, check_dataset
from bookkd.tasks import Task
from bookkd.views import Views
from bookkd.zoo import ImageDataset, SubsetDataset
from bookkd.zoo.order import stratified_order

__all__ = ["HELD_OUT", "Rows", "Samples", "hold_out", "open_samples"]

Rows = npt.NDArray[np.int64]

HELD_OUT = 0.1
"""Share of the training samples that is held out where nothing else is said."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The data sets of a comparison.

    Args:
        whole: All training samples.
        kept: Places in `whole` that students learn from.
        validation: What is chosen and fitted on; None for nothing.
        validation_name: What that is, in a few words; empty for none.
        test: What is reported on.
        task: With the classes or outputs of the data; numbers without variance, which networks decide.
    """

    whole: ImageDataset
    kept: Rows
    validation: ImageDataset | None
    validation_name: str
    test: ImageDataset
    task: Task

    @property
    def complete(self) -> bool:
        """Whether students learn from every training sample."""
        return len(self.kept) == len(self.whole)

    @property
    def train(self) -> ImageDataset:
        """The samples that students learn from."""
        return self.whole if self.complete else SubsetDataset(self.whole, self.kept)

    def rows(self, book: StoredKnowledge | None) -> Rows:
        """Return the row of a book of each sample in `whole`: by key, or by place in the data that the book is about."""
        if book is not None and book.book.keys is not None:
            keys = keys_of(self.whole)
            if keys is not None:
                return book.book.rows_of(keys)
        if book is not None and len(self.whole) != book.book.n_samples and isinstance(self.whole, SubsetDataset):
            found = rows_in_whole(self.whole, book.book.n_samples)
            if found is not None:
                return found
        return np.arange(len(self.whole))

    def labels(self, rows: Rows, fraction: float, seed: int) -> npt.NDArray[Any]:
        """Return the labels that a student may see, by row of the book.

        Raises:
            ConfigError: where a sample has no one label.
        """
        if not hasattr(self.train, "labels"):
            do = "Leave --label_fraction out: what is to be learnt of a sequence is the data set's to say."
            raise ConfigError(expected("label_fraction", "1 where samples have no one label", fraction, do=do))
        return seen_labels(np.asarray(self.train.labels), fraction, seed, rows[self.kept])

    def check_partners(self, views: Views, *, where: str, do: str) -> None:
        """Refuse mixed views where samples are held out, since any training sample may be a partner.

        Raises:
            ConfigError: naming what is held out.
        """
        if views.mix is not None and not self.complete:
            wish = "a split of its own where views are mixed, since any training sample may be a partner"
            raise ConfigError(expected("validation", wish, self.validation_name, where=where, do=do))


def hold_out(labels: npt.NDArray[Any], fraction: float) -> Rows:
    """Return the places of a share of the samples, with every class in its share; the same ones at every call.

    A larger share holds a smaller one; samples of whose label nothing is known are never in it. Vectors and numbers have no
    classes to keep in their shares, and are drawn as they come.

    Args:
        labels: Classes int64 [n], vectors [n, ...], or floating numbers [n].
        fraction: Share of the samples whose label is known, above 0.

    >>> held = hold_out(np.repeat(np.arange(2), 10), 0.2)
    >>> len(held), [int((held < 10).sum()), int((held >= 10).sum())]
    (4, [2, 2])
    """
    hidden = np.isnan(labels) if labels.dtype.kind == "f" else labels == IGNORE_LABEL
    known = np.flatnonzero(~hidden.reshape(len(labels), -1).all(axis=1))
    one_class = labels.ndim == 1 and labels.dtype.kind != "f"
    classes = labels[known] if one_class else np.zeros(len(known), dtype=np.int64)
    count = max(1, round(fraction * len(known)))
    found: Rows = np.sort(known[stratified_order(classes, "validation")[:count]])
    return found


def open_samples(
    data: DataOptions,
    task_name: str,
    *,
    test: str,
    validation: str = "",
    held_out: float = 0.0,
    where: str,
    task_args: Mapping[str, Any] | None = None,
) -> Samples:
    """Open the data sets of a comparison.

    Args:
        data: The training samples.
        task_name: Name of the task, in `TASKS`.
        test: Split that is reported.
        validation: Split that is chosen and fitted on; empty for none.
        held_out: In its place, share of the training samples, 0 for none.
        where: What is compared, for errors.
        task_args: Options of the task.

    Raises:
        ConfigError: if there is no such split, or the task does not take its options.
        DataError: if files or labels are not what is needed, or nothing is left to learn from.
    """
    whole = data.open()
    task = build_task(task_name, whole, task_args)
    check_dataset(task, whole, data.name)
    # Where a sample has no one label, as a text has none, any of them may be held out.
    labels = np.asarray(getattr(whole, "labels", np.zeros(len(whole), dtype=np.int64)))
    reported = _split(data, test, "test")
    if validation:
        other = _split(data, validation, "validation")
        return Samples(whole, np.arange(len(whole)), other, validation, reported, task)
    if not held_out:
        return Samples(whole, np.arange(len(whole)), None, "", reported, task)
    held = hold_out(labels, held_out)
    kept = np.setdiff1d(np.arange(len(whole)), held)
    if not len(kept):
        raise DataError(expected("data", "more samples than are held out", len(whole), where=where))
    name = f"{len(held)} held-out samples of {data.split}"
    return Samples(whole, kept, SubsetDataset(whole, held), name, reported, task)


def _split(data: DataOptions, name: str, what: str) -> ImageDataset:
    try:
        found = data.other(name).open()
    except (DataError, UnknownNameError) as error:
        raise ConfigError(f"{error} This is the split of `{what}`: pass --{what} SPLIT.") from error
    return found
