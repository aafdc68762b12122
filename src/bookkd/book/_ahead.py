"""Fetching for a reader: all shards of a batch at once, and in the background those that a learner will come to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import numpy.typing as npt

from bookkd.book._remote_shards import RemoteShard

__all__ = ["Ahead"]

_AT_ONCE = 6
_BEHIND = 2
_FURTHEST = 256
_NOTHING = np.empty(0, dtype=np.int64)


@dataclass
class _Work:
    """The threads of one process."""

    process: int
    now: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_AT_ONCE, "bookkd-fetch"))
    later: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_BEHIND, "bookkd-ahead"))
    coming: dict[int, Future[None]] = field(default_factory=dict)
    """What was begun in the background, and what has arrived so."""
    line: dict[int, None] = field(default_factory=dict)
    """What stands in line, in order: no queue of a pool, which a process that ends would first work off."""
    running: int = 0
    lock: Lock = field(default_factory=Lock)


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
        self._ready: set[int] = set()
        self._work: _Work | None = None

    def want(self, rows: Mapping[int, npt.NDArray[np.int64]], names: Sequence[str]) -> None:
        """Fetch what reading needs, and wait for it.

        Args:
            rows: Number of a shard -> its rows.
            names: Their tensors.

        Raises:
            BookKDError: what fetching raised.
        """
        missing = [number for number in rows if number not in self._ready or not self._shard(number).ready]
        if not missing:
            return
        work = self._working()
        waited = [self._begun(work, number, rows[number], names) for number in missing]
        if not self._ready.issuperset(missing):
            self._further = min(2 * self._further, _FURTHEST)
            self.soon(np.roll(self._order, -int(self._place[missing[-1]]) - 1)[: self._further].tolist())
        failed = [error for error in (each.exception() for each in waited) if error is not None]
        if failed:
            raise failed[0]
        self._ready.update(missing)

    def soon(self, numbers: Sequence[int]) -> None:
        """Fetch shards in the background, one after another, as far as there is room; what fails then is fetched when it is read."""
        if not self._room:
            return
        work = self._working()
        with work.lock:
            known = self._ready | set(work.coming) | set(work.line)
            ahead = sum(int(self._sizes[each]) for each in known)
            for each in numbers:
                if each not in known:
                    ahead += int(self._sizes[each])
                    if ahead > self._room:
                        break
                    work.line[each] = None
            for _ in range(_BEHIND):
                self._next(work)

    def close(self) -> None:
        """Give up what is being fetched ahead."""
        work, self._work = self._work, None
        if work is not None and work.process == os.getpid():
            with work.lock:
                work.line.clear()
            work.now.shutdown(wait=False, cancel_futures=True)
            work.later.shutdown(wait=False, cancel_futures=True)

    def _working(self) -> _Work:
        if self._work is None or self._work.process != os.getpid():  # threads do not outlive a fork
            self._work = _Work(os.getpid())
        return self._work

    def _begun(self, work: _Work, number: int, rows: npt.NDArray[np.int64], names: Sequence[str]) -> Future[None]:
        """Return the fetching of one shard: what the background is at, or begun now."""
        with work.lock:
            coming = work.coming.get(number)
            if coming is not None and not coming.done():
                return coming
            work.line.pop(number, None)
            return work.now.submit(self._fetch, number, rows, names)

    def _next(self, work: _Work) -> None:
        """Begin with what stands first in line, if a thread is free; the lock is held."""
        if work.line and work.running < _BEHIND:
            number = next(iter(work.line))
            del work.line[number]
            with suppress(RuntimeError):  # the process is about to end, or the book was closed
                work.coming[number] = work.later.submit(self._behind, work, number)
                work.running += 1

    def _behind(self, work: _Work, number: int) -> None:
        try:
            self._fetch(number, _NOTHING, ())
        finally:
            with work.lock:
                work.running -= 1
                self._next(work)

    def _fetch(self, number: int, rows: npt.NDArray[np.int64], names: Sequence[str]) -> None:
        self._shard(number).prepare(rows, names)
