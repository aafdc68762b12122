"""Fetching for a reader: all shards of a batch at once, and in the background those that a learner will come to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bookkd.book._remote_shards import RemoteShard

__all__ = ["Ahead"]

_AT_ONCE = 6
_BEHIND = 2
_FURTHEST = 256


@dataclass
class _Work:
    """The threads of one process."""

    process: int
    now: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_AT_ONCE, "bookkd-fetch"))
    later: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_BEHIND, "bookkd-ahead"))
    coming: dict[int, Future[None]] = field(default_factory=dict)
    """What was asked for; a shard stays here once it has arrived."""


class Ahead:
    """Fetches shards before they are mapped.

    How many are fetched ahead doubles with every batch that had to wait: a look at a few records fetches little, an epoch soon
    everything that fits.

    Args:
        shard: Gives the shard of a number.
        order: Numbers of all shards, in the order in which they are fetched ahead.
        sizes: Bytes of each, by number, int64 [shards].
        room: Most bytes that are fetched ahead; 0 for none.
    """

    def __init__(
        self,
        shard: Callable[[int], RemoteShard],
        order: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        room: int,
    ) -> None:
        self._shard, self._order, self._sizes, self._room = shard, order, sizes, room
        self._place = np.empty_like(order)
        self._place[order] = np.arange(len(order))
        self._further = 1
        self._work: _Work | None = None

    def want(self, rows: Mapping[int, npt.NDArray[np.int64]], names: Sequence[str]) -> None:
        """Fetch what reading needs, and wait for it.

        Args:
            rows: Number of a shard -> its rows.
            names: Their tensors.

        Raises:
            BookKDError: what fetching raised.
        """
        work = self._working()
        missing = [number for number in rows if not self._has(work, number)]
        if not missing:
            return
        waited = [self._begun(work, number, rows[number], names) for number in missing]
        if self._room:
            self._go_on(work, missing[-1])
        failed = None
        for number, each in zip(missing, waited, strict=True):
            error = each.exception()
            if error is not None:
                work.coming.pop(number, None)  # asked for again, it is tried again
                failed = failed or error
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Give up what is being fetched ahead."""
        work, self._work = self._work, None
        if work is not None and work.process == os.getpid():
            work.now.shutdown(wait=False, cancel_futures=True)
            work.later.shutdown(wait=False, cancel_futures=True)

    def _working(self) -> _Work:
        if self._work is None or self._work.process != os.getpid():  # threads do not outlive a fork
            self._work = _Work(os.getpid())
        return self._work

    def _has(self, work: _Work, number: int) -> bool:
        if not self._room:
            return False  # blocks: the shard knows which it has
        coming = work.coming.get(number)
        return coming is not None and coming.done() and not coming.cancelled() and coming.exception() is None

    def _begun(self, work: _Work, number: int, rows: npt.NDArray[np.int64], names: Sequence[str]) -> Future[None]:
        """Return the fetching of one shard, begun now if it was not, or only stood in line."""
        coming = work.coming.get(number)
        if self._room and coming is not None and not coming.cancel():
            return coming
        found = work.now.submit(self._fetch, number, rows, names)
        if self._room:
            work.coming[number] = found
        return found

    def _go_on(self, work: _Work, number: int) -> None:
        self._further = min(2 * self._further, _FURTHEST)
        following = np.roll(self._order, -int(self._place[number]) - 1)[: self._further]
        ahead = sum(int(self._sizes[each]) for each, coming in list(work.coming.items()) if not coming.cancelled())
        nothing = np.empty(0, dtype=np.int64)
        for each in following.tolist():
            ahead += int(self._sizes[each])
            if ahead > self._room:
                break
            if each not in work.coming:
                with suppress(RuntimeError):  # the interpreter is about to end
                    work.coming[each] = work.later.submit(self._fetch, each, nothing, ())

    def _fetch(self, number: int, rows: npt.NDArray[np.int64], names: Sequence[str]) -> None:
        self._shard(number).prepare(rows, names)
