"""The time in which somebody writes a book: from taking the lock to letting it go."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from bookkd.book._unit import UnitBuffer
from bookkd.book.plan import Unit
from bookkd.core.lock import Lock

__all__ = ["WriterSession"]


class WriterSession:
    """A context that holds the lock of a book and the rows of units that are not whole; leaving it commits nothing."""

    def __init__(self) -> None:
        self._buffers: dict[Unit, UnitBuffer] = {}
        self._open = True
        self._lock: Lock | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; rows of incomplete units are dropped."""
        self._buffers.clear()
        self._open = False
        if self._lock is not None:
            self._lock.release()
            self._lock = None
