"""In which order a run reads its books: rows over the whole epoch, or windows of blocks where memory is too small for that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bookkd.core.errors import CheckpointError, ConfigError, expected
from bookkd.core.memory import available_memory
from bookkd.knowledge import StoredKnowledge
from bookkd.learning.folder import RunFolder, is_main_process
from bookkd.learning.training import Training
from bookkd.views import BlockWindow

__all__ = ["ReadingOrder", "choose_order", "class_order", "order_of_run", "reading_ahead"]

_LOG = logging.getLogger("bookkd")

FREE_SHARE = 2
"""A window and the next one, read ahead, take one part in so many of the free memory; an epoch that takes no more is shuffled by rows."""


@dataclass(frozen=True)
class ReadingOrder:
    """How the samples of an epoch are shuffled, and why.

    Args:
        window: Blocks and the rows inside a window of them; None for all rows in one permutation.
        reason: Why, in words.
    """

    window: BlockWindow | None
    reason: str

    def __str__(self) -> str:
        if self.window is None:
            return f"samples are shuffled by rows: {self.reason}."
        blocks, rows = self.window.blocks, self.window.rows
        return f"samples are shuffled by blocks of {rows} rows in windows of {blocks}: {self.reason}."

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        window = self.window
        shape = {} if window is None else {"window_blocks": window.blocks, "block_rows": window.rows}
        return {"shuffle": "rows" if window is None else "blocks", **shape, "reason": self.reason}

    @classmethod
    def from_json(cls, found: Mapping[str, Any], where: str) -> ReadingOrder:
        """Return what `to_json` gave.

        Raises:
            CheckpointError: if it is something else.
        """
        kind, reason = found.get("shuffle"), found.get("reason")
        blocks, rows = found.get("window_blocks"), found.get("block_rows")
        if isinstance(reason, str) and kind == "rows":
            return cls(None, reason)
        if isinstance(reason, str) and kind == "blocks" and all(type(n) is int and n > 0 for n in (blocks, rows)):
            return cls(BlockWindow(blocks, rows), reason)  # type: ignore[arg-type]
        raise CheckpointError(
            f"Expected {where} to say how a run is shuffled, got something else. Pass --overwrite to start again."
        )


def choose_order(
    training: Training,
    books: Sequence[StoredKnowledge],
    fields: Sequence[str],
    *,
    n_samples: int,
    views_per_sample: int = 1,
    free: int | None = None,
) -> ReadingOrder:
    """Return how to shuffle: as `training` says, or by what an epoch reads of the books and the free memory.

    Args:
        training: `shuffle` and `shuffle_window`.
        books: What is read; none for a live teacher or labels alone.
        fields: What is read of them.
        n_samples: Samples of an epoch.
        views_per_sample: Views of each that an epoch reads.
        free: Bytes of memory; None asks the system.

    Raises:
        ConfigError: if blocks are asked for where no book and no memory says how many make a window.

    >>> print(choose_order(Training(), [], [], n_samples=100))
    samples are shuffled by rows: there is no book to read.
    """
    if training.shuffle == "rows":
        return ReadingOrder(None, "as asked")
    rows = max((stored.book.plan.block_rows or 1 for stored in books), default=4096)
    if training.shuffle_window is not None:
        return ReadingOrder(BlockWindow(training.shuffle_window, rows), "as asked")
    free = available_memory() if free is None else free
    asked = training.shuffle == "blocks"
    if not books or free is None:
        reason = "there is no book to read" if not books else "the system does not say how much memory is free"
        if asked:
            do = "Pass --training.shuffle_window."
            raise ConfigError(expected("shuffle_window", f"given, since {reason}", None, where="training", do=do))
        return ReadingOrder(None, reason)
    record = sum(_record_bytes(stored, fields) for stored in books) * views_per_sample
    if not record:
        return ReadingOrder(None, "nothing is read of the book")
    epoch = int(record * n_samples)
    said = f"an epoch reads {_size(epoch)} of the book{'s' if len(books) > 1 else ''}, {_size(free)} of memory are free"
    if not asked and epoch <= free // FREE_SHARE:
        return ReadingOrder(None, said)
    blocks = max(1, int(free // (2 * FREE_SHARE) // (record * rows)))
    return ReadingOrder(BlockWindow(min(blocks, -(-n_samples // rows)), rows), f"as asked; {said}" if asked else said)


def order_of_run(
    training: Training,
    books: Sequence[StoredKnowledge],
    fields: Sequence[str],
    folder: RunFolder | None,
    *,
    labels: Any = None,
    rows: Sequence[int] | None = None,
    n_samples: int,
    views_per_sample: int = 1,
) -> ReadingOrder:
    """Return what `choose_order` chose when the run began, and keep it in its folder; windows are said in the log.

    Args:
        training: As `choose_order`, and the next two.
        books: What is read.
        fields: What is read of them.
        folder: Of the run; None where nothing is kept.
        labels: Class of each sample, for a caution where they lie sorted.
        rows: Book row of each sample; None where it is its number.
        n_samples: Samples of an epoch.
        views_per_sample: Views of each that an epoch reads.

    Raises:
        CheckpointError: if what the folder kept is damaged.
    """
    order = None if folder is None else _order_kept(folder)
    if order is None:
        order = choose_order(training, books, fields, n_samples=n_samples, views_per_sample=views_per_sample)
        if order.window is not None:
            order = replace(order, reason=order.reason + class_order(labels, rows))
        if folder is not None:
            folder.note_order(order.to_json())
    if order.window is not None and is_main_process():
        _LOG.warning("Note: %s", order)
    return order


def _order_kept(folder: RunFolder) -> ReadingOrder | None:
    """Return the order of a run that is gone on with, or that another process of it has chosen; None for a fresh choice."""
    if not folder.begun and is_main_process():
        return None
    found = folder.order()
    if found is not None:
        return ReadingOrder.from_json(found, str(folder.path / "order.json"))
    return ReadingOrder(None, "as before") if folder.begun else None  # begun by a version that knew no other order


def class_order(labels: Any, rows: Sequence[int] | None = None) -> str:
    """Return a caution where the samples lie sorted by class, so that a narrow window sees a few classes at a time.

    Args:
        labels: Class of each sample, [samples]; anything else, or None, is not judged.
        rows: Book row of each sample; None where it is its number.

    Returns:
        Words to add to a reason; empty where neighbours are of one class about as often as any two samples are.

    >>> class_order([0, 0, 0, 1, 1, 1]), class_order([0, 1, 0, 1, 1, 0])
    ('; the samples lie sorted by class, which a narrow window does not mix: make the book of a data set in random order', '')
    """
    found = np.asarray([] if labels is None else labels)
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) < 2:
        return ""
    if rows is not None:
        found = found[np.argsort(rows)]
    _, counts = np.unique(found, return_counts=True)
    chance = float(np.square(counts / len(found)).sum())
    together = float(np.mean(found[1:] == found[:-1]))
    return _SORTED if together - chance > (1 - chance) / 2 else ""


_SORTED = (
    "; the samples lie sorted by class, which a narrow window does not mix: make the book of a data set in random order"
)


def reading_ahead(books: Sequence[StoredKnowledge], fields: Sequence[str]) -> Callable[[int, int, int], None]:
    """Return the function that has the books read a block ahead.

    Args:
        books: What is read.
        fields: What is read of them.
    """
    wanted = [(stored.book, stored.read_of(fields)) for stored in books]

    def ahead(start: int, stop: int, view: int) -> None:
        for book, names in wanted:
            book.prefetch(start, stop, view, names)

    return ahead


def _record_bytes(stored: StoredKnowledge, fields: Sequence[str]) -> float:
    """Return the bytes of a record that are read; of ragged parts, their share of the book by the most that they take."""
    plans = stored.book.plan.fields
    most = {name: plan.codec.bytes_per_record(plan.shape) for name, plan in plans.items()}
    return stored.book.bytes_per_record * sum(most[name] for name in stored.read_of(fields)) / sum(most.values())


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.2f} MiB"
