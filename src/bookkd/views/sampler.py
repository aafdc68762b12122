"""`ViewSampler`: which views stand in which batch, of which epoch, on which rank; resumable inside an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import xxhash
from torch.utils.data import Sampler

from bookkd.core.check import at_least, between
from bookkd.core.errors import CheckpointError, ConfigError, expected
from bookkd.core.rng import draw64
from bookkd.views.order import BlockOrder, BlockWindow, Order, RowOrder
from bookkd.views.picks import Pick

__all__ = ["VIEW_ROWS", "ViewSampler"]

VIEW_ROWS = 4096
"""Neighbours that an epoch shows in one view."""


class ViewSampler(Sampler[list[Pick]]):
    """A batch sampler over (sample, view) pairs; pass it as `batch_sampler` and let no trainer re-shard it.

    Epoch e shows view (e k + j + offset[sample // block_rows]) mod n_views, j = 0 to k - 1, k = views_per_sample:
    blocks of samples start at different views, so views mix inside an epoch while a block reads one view as a whole.
    After n_views epochs every (sample, view) was seen exactly k times. One permutation an epoch covers all ranks; a
    global batch is dealt out over the ranks one sample at a time. The last global batch is filled up with picks of
    weight 0, so that every batch of every rank has `batch_size` rows.

    Iterating starts at the first batch that was not consumed, and does not move the state: the trainer calls
    `consumed()` after each optimizer step and `set_epoch(e)` before each epoch. So batches that workers fetched ahead
    are not lost when a run stops.

    A `BlockWindow` in place of `shuffle=True` is for books larger than memory: the system can read a block at the speed of
    the disk, and single rows at a small part of it. What is said above holds for it too.

    Args:
        n_samples: Rows of the book.
        n_views: Views of the book.
        batch_size: Picks in a batch of one rank; a multiple of views_per_sample.
        seed: Of the permutations and offsets; 0 to 2**64 - 1.
        rank: Of this process.
        world_size: Processes.
        views_per_sample: Views of one sample in a batch, next to each other; at most n_views.
        shuffle: True for all rows in one permutation, a `BlockWindow` for blocks and the rows inside a window of them; False
            keeps the order of `samples`.
        drop_last: Leave out the last global batch instead of filling it up; other samples in every epoch, so that not
            every (sample, view) is seen equally often.
        block_rows: Samples that share an offset.
        samples: The rows to draw from, without repeats; None for all.
        ahead: Called with (first sample, end, view) of each block that a `BlockWindow` comes to within the next window, so that
            it can be read meanwhile; see `Book.prefetch`.

    Raises:
        ConfigError: if an option is outside its range or contradicts another.

    >>> sampler = ViewSampler(3, 2, batch_size=2, shuffle=False)
    >>> [[pick.sample for pick in batch] for batch in sampler], [pick.weight for pick in list(sampler)[1]]
    ([[0, 1], [2, 0]], [1.0, 0.0])
    """

    def __init__(
        self,
        n_samples: int,
        n_views: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        views_per_sample: int = 1,
        shuffle: bool | BlockWindow = True,
        drop_last: bool = False,
        block_rows: int = VIEW_ROWS,
        samples: npt.ArrayLike | None = None,
        ahead: Callable[[int, int, int], object] | None = None,
    ) -> None:
        self.n_samples = at_least(n_samples, 1, "n_samples", where="ViewSampler")
        self.n_views = at_least(n_views, 1, "n_views", where="ViewSampler")
        self.batch_size = at_least(batch_size, 1, "batch_size", where="ViewSampler")
        self.seed = int(between(seed, 0, 2**64 - 1, "seed", where="ViewSampler"))
        self.world_size = at_least(world_size, 1, "world_size", where="ViewSampler")
        self.rank = int(between(at_least(rank, 0, "rank"), 0, world_size - 1, "rank", where="ViewSampler"))
        self.views_per_sample = at_least(views_per_sample, 1, "views_per_sample", where="ViewSampler")
        self.block_rows = at_least(block_rows, 1, "block_rows", where="ViewSampler")
        self.window = shuffle if isinstance(shuffle, BlockWindow) else None
        self.shuffle, self.drop_last = bool(shuffle), bool(drop_last)
        if self.window is not None and block_rows % self.window.rows:
            wish = f"a divisor of block_rows = {block_rows}, so that a block has one view"
            raise ConfigError(expected("rows", wish, self.window.rows, where="BlockWindow"))
        between(views_per_sample, 1, n_views, "views_per_sample", where="ViewSampler", do="Make a book of more views.")
        if batch_size % views_per_sample:
            raise ConfigError(
                expected("batch_size", f"a multiple of views_per_sample = {views_per_sample}", batch_size)
            )
        self.samples = _check_samples(samples, n_samples)
        if drop_last and len(self.samples) < self._stride:
            raise ConfigError(
                expected(
                    "drop_last",
                    f"off for {len(self.samples)} samples, fewer than one global batch of {self._stride}",
                    True,
                    where="ViewSampler",
                )
            )
        blocks = np.arange(-(-n_samples // block_rows))
        self._offsets = (draw64(self.seed, "offset", blocks, blocks * 0)[:, 0] % np.uint64(n_views)).astype(np.int64)
        self._digest = xxhash.xxh3_64_intdigest(self.samples.astype("<i8").tobytes()) >> 1
        self._ahead = ahead
        self._epoch = 0
        self._consumed = 0

    @property
    def _stride(self) -> int:
        """Samples in a global batch."""
        return self.batch_size // self.views_per_sample * self.world_size

    @property
    def epoch(self) -> int:
        """The epoch that iterating yields."""
        return self._epoch

    def __len__(self) -> int:
        """Return the batches of one rank in a whole epoch, however many of them are consumed."""
        full, rest = divmod(len(self.samples), self._stride)
        return full + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[list[Pick]]:
        epoch, order, total = self._epoch, self._order(), len(self.samples)
        for batch in range(self._consumed, len(self)):
            places = np.arange(batch * self._stride + self.rank, (batch + 1) * self._stride, self.world_size)
            if self._ahead is not None:
                self._tell(order.coming(batch * self._stride, min((batch + 1) * self._stride, total)), epoch)
            rows = order.at(places % total)
            views = self._views(rows, epoch)
            weights = (places < total).astype(np.float64).repeat(self.views_per_sample)
            samples = rows.repeat(self.views_per_sample)
            yield [
                Pick(*values) for values in zip(samples.tolist(), views.ravel().tolist(), weights.tolist(), strict=True)
            ]

    def _views(self, rows: npt.NDArray[np.int64], epoch: int) -> npt.NDArray[np.int64]:
        """Return the views that an epoch shows of each row, [rows, views_per_sample]."""
        first = epoch * self.views_per_sample + self._offsets[rows // self.block_rows]
        return np.asarray((first[:, None] + np.arange(self.views_per_sample)) % self.n_views)

    def _order(self) -> Order:
        if self.window is not None:
            return BlockOrder(self.samples, self.window, self.seed, self._epoch)
        return RowOrder(self.samples, self.seed, self._epoch, shuffle=self.shuffle)

    def _tell(self, blocks: list[int], epoch: int) -> None:
        if self._ahead is None or self.window is None:
            return
        for block in blocks:
            start = block * self.window.rows
            stop = min(start + self.window.rows, self.n_samples)
            for view in self._views(np.array([start]), epoch)[0].tolist():
                self._ahead(start, stop, view)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; the epoch that is under way stays where it is, so that a resumed run goes on."""
        at_least(epoch, 0, "epoch", where="ViewSampler")
        if epoch != self._epoch:
            self._epoch, self._consumed = epoch, 0

    def consumed(self, n_batches: int = 1) -> None:
        """Count batches whose optimizer step is done; iterators that are under way are not affected."""
        done = self._consumed + at_least(n_batches, 1, "n_batches", where="ViewSampler")
        if done > len(self):
            raise ConfigError(
                expected(
                    "n_batches",
                    f"at most the {len(self) - self._consumed} batches that epoch {self._epoch} has left",
                    n_batches,
                    where="ViewSampler",
                    do="Call set_epoch before each epoch.",
                )
            )
        self._consumed = done

    def _identity(self) -> dict[str, int]:
        # Rows are 0 or 1, as they were before there were windows: states of old stay good.
        window = {} if self.window is None else {"window_blocks": self.window.blocks, "window_rows": self.window.rows}
        return {
            "n_samples": self.n_samples,
            "n_views": self.n_views,
            "seed": self.seed,
            "global_batch": self.batch_size * self.world_size,
            "views_per_sample": self.views_per_sample,
            "shuffle": int(self.shuffle) if self.window is None else 2,
            **window,
            "drop_last": int(self.drop_last),
            "block_rows": self.block_rows,
            "samples": len(self.samples),
            "samples_digest": self._digest,
        }

    def state_dict(self) -> dict[str, int]:
        """Return plain whole numbers: which sampler this is, the epoch, and the samples consumed on all ranks."""
        done = min(self._consumed * self._stride, len(self.samples))
        return {**self._identity(), "epoch": self._epoch, "consumed": done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where `state` was taken; another number of ranks is fine if the global batch is the same.

        Raises:
            CheckpointError: if the state is of another sampler, or not a state.
        """
        for name, here in self._identity().items():
            if state.get(name) != here:
                raise CheckpointError(
                    expected(
                        name,
                        f"{here} as in this run",
                        state.get(name),
                        where="state of ViewSampler",
                        do="Resume with the configuration of the run that wrote the checkpoint.",
                    )
                )
        epoch, done = state.get("epoch", -1), state.get("consumed", -1)
        if min(epoch, done) < 0 or done > len(self.samples) or (done % self._stride and done != len(self.samples)):
            raise CheckpointError(
                expected("consumed", f"whole batches of {self._stride} of {len(self.samples)} samples", done)
            )
        self._epoch, self._consumed = epoch, min(-(-done // self._stride), len(self))


def _check_samples(samples: npt.ArrayLike | None, n_samples: int) -> npt.NDArray[np.int64]:
    if samples is None:
        return np.arange(n_samples)
    found = np.asarray(samples)
    where = "ViewSampler"
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
        raise ConfigError(
            expected("samples", "a list of rows, not empty", f"{found.dtype} of shape {found.shape}", where=where)
        )
    outside = found[(found < 0) | (found >= n_samples)]
    if len(outside):
        raise ConfigError(expected("samples", f"rows from 0 to {n_samples - 1}", int(outside[0]), where=where))
    rows, counts = np.unique(found, return_counts=True)
    if counts.max() > 1:
        raise ConfigError(expected("samples", "without repeats", f"{int(rows[counts.argmax()])} twice", where=where))
    return found.astype(np.int64)
