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
from bookkd.views.sampler import VIEW_ROWS

__all__ = ["ReadingOrder", "choose_order", "order_of_run", "reading_ahead", "sorted_by_class"]

_LOG = logging.getLogger("bookkd")

FREE_SHARE = 2
"""A window and the next one, read ahead, take one part in so many of the free memory; an epoch that takes no more is shuffled by rows."""

FINEST_READ = 2**18
"""Bytes that a block of samples sorted by class is at least: smaller reads a disk gives much slower than large ones."""


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
    by_class: bool = False,
) -> ReadingOrder:
    """Return how to shuffle: as `training` says, or by what an epoch reads of the books and the free memory.

    Blocks are those that the books are hashed by, which are read and checked at once. Of samples that lie sorted by class, a
    block holds one class or two: there blocks are halved, as far as `FINEST_READ`, until a window holds as many of them as a
    batch holds samples, so that the classes of a window vary no more than those of a batch do anyway.

    Of a book at an address what is kept of it here counts as well: rows in any order fetch what does not fit with every batch
    anew. Whole shards are fetched into a cache, so that they are the blocks of its windows, of which two fit it.

    Args:
        training: `shuffle`, `shuffle_window` and `shuffle_block_rows`.
        books: What is read; none for a live teacher or labels alone.
        fields: What is read of them.
        n_samples: Samples of an epoch.
        views_per_sample: Views of each that an epoch reads.
        free: Bytes of memory; None asks the system.
        by_class: The samples lie sorted by class (`sorted_by_class`).

    Raises:
        ConfigError: if blocks are asked for where no book and no memory says how many make a window.

    >>> print(choose_order(Training(), [], [], n_samples=100))
    samples are shuffled by rows: there is no book to read.
    """
    if training.shuffle == "rows":
        return ReadingOrder(None, "as asked")
    hashed = max((stored.book.plan.block_rows or 1 for stored in books), default=4096)
    rows, far = training.shuffle_block_rows or hashed, _fetched(books, fields, views_per_sample)
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
    if far is not None:
        said += f", {_size(far.room)} of what is fetched are kept"
    if not asked and epoch <= free // FREE_SHARE and (far is None or far.fits(n_samples)):
        return ReadingOrder(None, said)
    room = free // (2 * FREE_SHARE)
    held = int(room // record)
    own = training.shuffle_block_rows is None
    if own and far is None and by_class:
        finest = FINEST_READ * views_per_sample * len(books) / record
        rows = _finer(rows, finest, held, training.batch_size)
        said += "; blocks are finer than the book's, since the samples lie sorted by class" if rows < hashed else ""
    elif own and far is not None and rows < far.rows <= held:
        rows = far.rows
    blocks = held // rows if far is None else min(held // rows, far.blocks(rows))
    blocks = max(1, min(blocks, -(-n_samples // rows)))
    return ReadingOrder(BlockWindow(blocks, rows), f"as asked; {said}" if asked else said)


@dataclass(frozen=True)
class _Fetched:
    """What is fetched of the books that lie at addresses.

    Args:
        room: Most bytes of it that are kept here.
        rows: Rows that are fetched at once.
        record: Bytes that are fetched for a sample, where all rows of such a block are read.
        scattered: Bytes for a sample, where rows are in any order: a shard of many rows then is read in several views.
        whole: Bytes of all that may be read.
    """

    room: int
    rows: int
    record: float
    scattered: float
    whole: float

    def fits(self, n_samples: int) -> bool:
        """Say whether rows in any order are fetched once: where all is kept, or what an epoch reads beside what is read ahead."""
        return self.whole <= self.room or self.scattered * n_samples <= self.room // FREE_SHARE

    def blocks(self, rows: int) -> int:
        """Return how many blocks of so many rows are kept beside as many that are read ahead."""
        return int(self.room // FREE_SHARE // (self.record * max(rows, self.rows)))


def _fetched(books: Sequence[StoredKnowledge], fields: Sequence[str], views_per_sample: int) -> _Fetched | None:
    """Return what is fetched of the books; None where none lies at an address."""
    rooms: list[int] = []
    rows = 1
    record = scattered = whole = 0.0
    for stored in books:
        book, room = stored.book, stored.book.room
        if room is None:
            continue
        plan = book.plan
        at_once = (plan.block_rows if book.streamed else plan.unit_rows) or book.n_samples
        each = _record_bytes(stored, fields) if book.streamed else book.bytes_per_record
        # Neighbours have one view for so many rows (`ViewSampler`).
        views = min(book.n_views, views_per_sample * -(-at_once // VIEW_ROWS))
        record, scattered = record + each * views_per_sample, scattered + each * views
        rooms, rows, whole = [*rooms, room], max(rows, at_once), whole + each * book.n_samples * book.n_views
    return _Fetched(min(rooms), rows, record, scattered, whole) if rooms else None


def _finer(rows: int, finest: float, room: int, batch_size: int) -> int:
    """Return the rows of a block: halved while a window of `room` rows has fewer blocks than `batch_size`, not below `finest`."""
    while room // rows < batch_size and rows > 1 and rows // 2 >= finest:
        rows //= 2
    return rows


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
        by_class = sorted_by_class(labels, rows)
        order = choose_order(
            training, books, fields, n_samples=n_samples, views_per_sample=views_per_sample, by_class=by_class
        )
        if order.window is not None and by_class and _mixes_badly(order.window, training, n_samples):
            order = replace(order, reason=order.reason + _NARROW)
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


def sorted_by_class(labels: Any, rows: Sequence[int] | None = None) -> bool:
    """Return whether the samples lie sorted by class, so that a block holds a few classes only.

    Args:
        labels: Class of each sample, [samples]; anything else, or None, is not judged.
        rows: Book row of each sample; None where it is its number.

    Returns:
        False where neighbours are of one class about as often as any two samples are.

    >>> sorted_by_class([0, 0, 0, 1, 1, 1]), sorted_by_class([0, 1, 0, 1, 1, 0])
    (True, False)
    """
    found = np.asarray([] if labels is None else labels)
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) < 2:
        return False
    if rows is not None:
        found = found[np.argsort(rows)]
    _, counts = np.unique(found, return_counts=True)
    chance = float(np.square(counts / len(found)).sum())
    together = float(np.mean(found[1:] == found[:-1]))
    return together - chance > (1 - chance) / 2


_NARROW = (
    "; the samples lie sorted by class, and a window has fewer blocks than a batch has samples, which does not mix them well: "
    "make the book of a data set in random order"
)


def _mixes_badly(window: BlockWindow, training: Training, n_samples: int) -> bool:
    """Say whether a window of sorted samples holds fewer blocks than a batch has samples, and is not all of them."""
    return window.blocks < training.batch_size and window.blocks * window.rows < n_samples


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
    most = {name: plan.bytes_per_record for name, plan in plans.items()}
    return stored.book.bytes_per_record * sum(most[name] for name in stored.read_of(fields)) / sum(most.values())


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.2f} MiB"
