"""Fetching for a reader: all shards of a batch at once, and in the background those that a learner will come to."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import numpy.typing as npt

from bookkd.book.remote.settings import Fetcher

__all__ = ["Ahead"]

Rows = npt.NDArray[np.int64]

_AT_ONCE = 6
"""Shards of a batch that are fetched at once."""
_BEHIND = 2
"""Shards that are fetched in the background at once."""
_FURTHEST = 256
_LAST_SECONDS = 1.0
"""How long a process that ends waits for its threads to come to a stop: what hangs in a request is left to itself."""


@dataclass
class _Task:
    """The fetching of one shard."""

    number: int
    rows: Rows | None
    parts: Sequence[str]
    done: Future[None] = field(default_factory=Future)
    read: int = 0
    """Bytes that had been read when it was begun ahead."""


class _Work:
    """What one process fetches for one book, and the threads that do: each lives while there is something to do.

    Args:
        fetch: Fetches a shard; held weakly, so that a book nobody has any more is not fetched on.
    """

    def __init__(self, fetch: weakref.WeakMethod[Callable[[int, Rows | None, Sequence[str]], None]]) -> None:
        self.process, self.lock, self._fetch = os.getpid(), Lock(), fetch
        self.urgent: deque[_Task] = deque()
        self.line: dict[int, _Task] = {}
        """What waits to be fetched in the background."""
        self.ahead: dict[int, _Task] = {}
        """What waits, is arriving or has arrived in the background, and was not read yet."""
        self._behind: set[int] = set()
        self._threads: set[Fetcher] = set()
        _all.add(self)

    def begin(self, task: _Task) -> None:
        """Add what is waited for."""
        with self.lock:
            self.urgent.append(task)
            self.start()

    def start(self) -> None:
        """See that a thread is there for what was added; the lock is held."""
        useful = len(self.urgent) + min(len(self.line), _BEHIND - len(self._behind))
        for _ in range(min(useful, _AT_ONCE + _BEHIND - len(self._threads))):
            thread = Fetcher(target=self._run, name="bookkd-fetch", daemon=True)
            self._threads.add(thread)
            thread.start()

    def give_up(self, *, all_of_it: bool) -> list[Fetcher]:
        """Stop what is fetched in the background, or all; return the threads that come to a stop."""
        with self.lock:
            self.line.clear()
            self.ahead.clear()
            if all_of_it:
                self.urgent.clear()
            ended = [thread for thread in self._threads if all_of_it or thread.task in self._behind]
            for thread in ended:
                thread.given_up = True
            return ended

    def _run(self) -> None:
        thread = Fetcher.current()
        while (task := self._next(thread)) is not None:
            fetch = self._fetch()
            if not task.done.set_running_or_notify_cancel():
                continue
            try:
                if fetch is not None:
                    fetch(task.number, task.rows, task.parts)
            except BaseException as error:
                task.done.set_exception(error)
            else:
                task.done.set_result(None)
            del fetch  # the book may be nobody's any more

    def _next(self, thread: Fetcher) -> _Task | None:
        """Return what is to be fetched next; None where the thread is of no use any more."""
        with self.lock:
            self._behind.discard(thread.task)
            if not thread.given_up and self.urgent:
                task = self.urgent.popleft()
            elif not thread.given_up and self.line and len(self._behind) < _BEHIND and self._fetch() is not None:
                task = self.line.pop(next(iter(self.line)))
                self._behind.add(id(task))
            else:
                self._threads.discard(thread)
                return None
            thread.task = id(task)
            return task


_all: weakref.WeakSet[_Work] = weakref.WeakSet()


class Ahead:
    """Fetches shards before they are read.

    Where nobody says what comes (`soon`), it is the shards that follow those of a batch that had to wait, twice as many with every
    such batch: a look at a few records fetches little, an epoch soon everything that fits.

    Args:
        fetch: Fetches a shard: its number, rows and tensors; None for rows to come. A method, which is held weakly.
        order: Numbers of all shards, in the order in which they are fetched ahead.
        sizes: Bytes of each, by number, int64 [shards].
        room: Most bytes that are fetched ahead and not read yet; 0 for none.
    """

    def __init__(
        self,
        fetch: Callable[[int, Rows | None, Sequence[str]], None],
        order: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        room: int,
    ) -> None:
        self._fetch, self._order, self._sizes, self._room = weakref.WeakMethod(fetch), order, sizes, room
        self._place = np.empty_like(order)
        self._place[order] = np.arange(len(order))
        self._further = 1
        self._told = False
        self._read = 0
        self._work: _Work | None = None

    def want(self, rows: Mapping[int, Rows], parts: Sequence[str], *, mapped: Container[int] | None) -> None:
        """Fetch what reading needs, and wait for it.

        Args:
            rows: Number of a shard -> its rows.
            parts: Their tensors.
            mapped: Numbers of shards that are not fetched ahead; None to fetch nothing ahead.

        Raises:
            BookKDError: what fetching raised.
        """
        work = self._working()
        waited = [_Task(number, each, parts) for number, each in rows.items()]
        arriving: list[tuple[Future[None], _Task]] = []
        with work.lock:
            late = not all(number in work.ahead and work.ahead[number].done.done() for number in rows)
            for task in waited:
                self._read += int(self._sizes[task.number])
                known, waits = work.ahead.pop(task.number, None), work.line.pop(task.number, None)
                if known is not None and waits is None and not known.done.done():
                    arriving.append((known.done, task))
                else:
                    work.urgent.append(task)
            work.start()
        for done, task in arriving:
            done.add_done_callback(lambda _, task=task: work.begin(task))  # type: ignore[misc]
        if late and mapped is not None and not self._told:
            self._further = min(2 * self._further, _FURTHEST)
            after = np.roll(self._order, -int(self._place[waited[-1].number]) - 1)[: self._further]
            self._begin_ahead(
                work, [number for number in after.tolist() if number not in rows and number not in mapped]
            )
        try:
            failed = [error for error in (task.done.exception() for task in waited) if error is not None]
        except BaseException:
            for task in waited:
                task.done.cancel()
            raise
        if failed:
            raise failed[0]

    def soon(self, numbers: Sequence[int]) -> None:
        """Fetch in the background what somebody knows to come, one after another, as far as there is room.

        What fails then is fetched when it is read.
        """
        self._told = True
        self._begin_ahead(self._working(), numbers)

    def close(self) -> None:
        """Give up what is being fetched ahead."""
        work, self._work = self._work, None
        if work is not None and work.process == os.getpid():
            work.give_up(all_of_it=False)

    def _begin_ahead(self, work: _Work, numbers: Sequence[int]) -> None:
        with work.lock:
            size = sum(int(self._sizes[each]) for each in work.ahead)
            for number in numbers:
                more = int(self._sizes[number])
                if number in work.ahead:
                    continue
                if size + more > self._room:
                    size -= self._forget_passed(work)
                if size + more > self._room:
                    break
                size += more
                work.line[number] = work.ahead[number] = _Task(number, None, (), read=self._read)
            work.start()

    def _forget_passed(self, work: _Work) -> int:
        """Count no more what was fetched and not read while twice the room was read since; return its bytes.

        Else what is never come to, as after a jump to another epoch, would be in the way of all that is.
        """
        passed = [
            number
            for number, task in work.ahead.items()
            if self._read - task.read > 2 * self._room and number not in work.line
        ]
        return sum(int(self._sizes[work.ahead.pop(number).number]) for number in passed)

    def _working(self) -> _Work:
        if self._work is None or self._work.process != os.getpid():  # threads do not outlive a fork
            self._work = _Work(self._fetch)
        return self._work


@atexit.register
def _end() -> None:
    """Let no thread come to this process while it is taken apart: the clients of servers do not stand that."""
    until = time.monotonic() + _LAST_SECONDS
    for work in list(_all):
        if work.process == os.getpid():
            for thread in work.give_up(all_of_it=True):
                thread.join(max(0.0, until - time.monotonic()))
