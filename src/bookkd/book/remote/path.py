"""A place in a book on a server: what the package asks of a `Path`, asked of a server, bounded in time and size."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import xxhash

from bookkd.book.remote.settings import Patience, retry_seconds
from bookkd.book.remote.store import Interrupted, Store, open_store
from bookkd.core.errors import BookCorruptError, BookFormatError, BookLockedError, BookMissingError, StorageError

__all__ = ["RemotePath", "Stat"]

_T = TypeVar("_T")
_stores: dict[tuple[int, str], Store] = {}
"""Open places by (process, address): threads of a client do not outlive a fork."""


class Stat(NamedTuple):
    """What `Path.stat` tells that is used here."""

    st_size: int


class RemotePath:
    """An address on a server; equal and pickled by its text, which has no credentials.

    Args:
        base: Address of the book, as `root_of` checked it.
        key: What is meant below it; empty for the book itself.
    """

    def __init__(self, base: str, key: str = "") -> None:
        self._base, self._key = base, key

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self._base, f"{self._key}/{name}" if self._key else name)

    def __str__(self) -> str:
        return f"{self._base}/{self._key}" if self._key else self._base

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is no path of this machine")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def base(self) -> str:
        """Address of the book."""
        return self._base

    @property
    def name(self) -> str:
        """Last part."""
        return str(self).rpartition("/")[2]

    def resolve(self) -> RemotePath:
        """Return the address itself."""
        return self

    def is_dir(self) -> bool:
        """Return true: a server has no folders that could be missing."""
        return True

    def exists(self) -> bool:
        """Say whether there is an object."""
        try:
            self.stat()
        except BookMissingError:
            return False
        return True

    is_file = exists

    def stat(self) -> Stat:
        """Return the size of the object.

        Raises:
            BookMissingError: if there is none.
        """
        return Stat(self._patiently(lambda store: store.size(self._key)))

    def names(self) -> dict[str, int]:
        """Return what is directly below: name -> bytes, -1 for a folder."""
        return self._patiently(lambda store: store.names(self._key))

    def read(self, limit: int) -> bytes:
        """Return a whole object.

        Raises:
            BookMissingError: if there is none.
            BookFormatError: if it is longer than `limit`, which is known before its bytes are taken.
        """
        found = bytearray()
        self.download(found.extend, most=limit, again=found.clear)
        return bytes(found)

    def download(
        self,
        sink: Callable[[bytes], Any],
        *,
        most: int | None = None,
        size: int | None = None,
        again: Callable[[], Any],
    ) -> int:
        """Hand an object piece by piece to `sink`; what is cut off is gone on with.

        Args:
            sink: Takes the pieces in their order.
            most: Most bytes accepted.
            size: Bytes that it must have.
            again: Called where a server cannot go on, before the first piece comes once more.

        Returns:
            The bytes handed over.

        Raises:
            BookMissingError: if there is no such object.
            BookFormatError: if it is longer than `most`; BookCorruptError if it has not `size` bytes or sends others than it says.
            StorageError: if it does not arrive in the time that is allowed.
        """
        patience, at, can_resume = Patience(str(self), retry_seconds()), 0, True
        while True:
            try:
                whole, pieces = self._store().stream(self._key, at)
                self._check_size(whole, most, size)
                for piece in pieces:
                    at += len(piece)
                    if at > whole:
                        raise BookCorruptError(
                            f"Expected {self} to have {whole} bytes, as its server says, got more. Check the server."
                        )
                    sink(piece)
                    patience.got_to(at)
                if at == whole:
                    return at
                raise Interrupted(f"{at} of {whole} bytes")
            except Interrupted as error:
                patience.wait(str(error))
            except FileNotFoundError as error:
                raise self._missing(error) from None
            except StorageError:
                if not at or not can_resume:
                    raise
                can_resume = False
            if at and not can_resume:
                again()
                at = 0

    def _check_size(self, whole: int, most: int | None, size: int | None) -> None:
        if most is not None and whole > most:
            raise BookFormatError(
                f"Expected {self} to be at most {most} bytes, got {whole}. It is not a file of a book."
            )
        if size is not None and whole != size:
            raise BookCorruptError(f"Expected {self} to have {size} bytes, got {whole}. Run `bookkd verify`.")

    def ranges(self, starts: Sequence[int], stops: Sequence[int]) -> Sequence[Any]:
        """Return pieces of an object, each a buffer of exactly the bytes asked for.

        Raises:
            BookMissingError: if there is no such object.
            StorageError: if they do not arrive, or in other lengths.
        """

        def asked(store: Store) -> Sequence[Any]:
            found = store.ranges(self._key, starts, stops)
            if [len(piece) for piece in found] != [stop - start for start, stop in zip(starts, stops, strict=True)]:
                raise Interrupted("pieces of another length than asked for")
            return found

        return self._patiently(asked)

    def create(self, data: bytes) -> bool:
        """Put an object where there is none, in one step; return whether it is there now with these bytes.

        A try whose answer was lost has put it: where an object is there already, its bytes decide.
        """
        if self._patiently(lambda store: store.create(self._key, data)):
            return True
        state, count = xxhash.xxh3_128(), 0

        def compare(piece: bytes) -> None:
            nonlocal count
            state.update(piece)
            count += len(piece)

        def again() -> None:
            nonlocal count
            state.reset()
            count = 0

        try:
            self.download(compare, size=len(data), again=again)
        except BookCorruptError:
            return False
        return count == len(data) and bool(state.digest() == xxhash.xxh3_128_digest(data))

    def write(self, data: bytes) -> None:
        """Put an object that nobody else may put otherwise.

        Raises:
            BookLockedError: if there is another one of this name.
        """
        if not self.create(data):
            raise BookLockedError(
                f"Expected {self} to be absent, got another object: another writer is at work, or was killed here and says "
                f"other bits. Wait for it; if it has ended, delete {self} and run again."
            )

    def check_creates(self, data: bytes) -> None:
        """Refuse a place that does not keep two writers apart: where this object is, it must not be created again.

        Args:
            data: The bytes of this object, which is there.

        Raises:
            StorageError: if the store cannot create if absent, or would have put a second one.
        """
        if self._patiently(lambda store: store.create(self._key, data)):
            raise StorageError(
                f"Expected the store of {self._base} to refuse an object that exists (If-None-Match), got a second one. Make the "
                f"book in a folder and upload it with the store's own tools."
            )

    def check_writable(self) -> None:
        """Refuse a place that only reads.

        Raises:
            StorageError: for plain http, and for what fsspec reaches.
        """
        if not self._store().writable:
            raise StorageError(
                f"Expected {self._base} to be a store that creates an object if it is absent (s3, gs, az), got one to read only. Make "
                f"the book in a folder and upload it with the store's own tools."
            )

    def _patiently(self, call: Callable[[Store], _T]) -> _T:
        patience = Patience(str(self), retry_seconds())
        while True:
            try:
                return call(self._store())
            except Interrupted as error:
                patience.wait(str(error))
            except FileNotFoundError as error:
                raise self._missing(error) from None

    def _missing(self, error: FileNotFoundError) -> BookMissingError:
        if isinstance(error, BookMissingError):
            return error
        return BookMissingError(
            f"Expected {self} to be a file of the book, got nothing there. Check the address, or restore it."
        )

    def _store(self) -> Store:
        place = (os.getpid(), self._base)
        store = _stores.get(place)
        if store is None:
            store = _stores[place] = open_store(self._base, retry_seconds())
        return store
