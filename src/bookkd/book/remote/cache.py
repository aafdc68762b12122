"""Whole shards and their sidecars, kept on this machine for all processes of a user: by the digests that name them.

A file is complete under its name or not there; the digest is in the name, so that a shard that was replaced is another file.
What is evicted while it is mapped stays readable until it is let go. What is arriving lies under a name of its own, of the length
that it will have, and whoever fetches it holds a lock on that very file: the others wait for it, and one that nobody holds is of a
process that was killed. Such locks are the system's, so that containers that share a folder see each other's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import xxhash

from bookkd.book.remote.path import RemotePath
from bookkd.book.remote.settings import Patience, cache_limit, retry_seconds
from bookkd.core.errors import BookCorruptError, BookKDError, StorageError
from bookkd.core.files import TEMPORARY

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: two processes may fetch one shard at once; the last rename wins, of equal bytes
    fcntl = None

__all__ = ["ShardCache"]

_SUFFIX, _SIDECAR = ".shard", ".sidecar"
_SIDECAR_SHARE = 16
_ABANDONED_SECONDS = 3600
_LOOK_SECONDS = 0.2
"""How often it is looked for room, where others fill the cache."""


class ShardCache:
    """A folder of shards with a limit.

    Args:
        folder: Made, for this user alone, when something is first kept in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._known_limit = folder, 0

    def limit(self) -> int:
        """Return the most bytes that the cache may hold now.

        Raises:
            StorageError: if the disk does not say how much is free.
        """
        with self._errors():
            self._known_limit = self._limit(sum(size for _, size, _ in self._files()))
            return self._known_limit

    def open(self, place: RemotePath, size: int, digest: str) -> int:
        """Return a descriptor of a shard, fetched if it is not there; the caller closes it.

        Args:
            place: Where it lies.
            size: Its bytes.
            digest: Its xxh3_128.

        Raises:
            BookMissingError: if the server has it no more.
            BookCorruptError: if it has other bytes, also when fetched again.
            StorageError: if it does not arrive, or does not fit, or the folder does not take files.
        """
        with self._errors():
            return self._opened(place, self._path(place, digest), size, digest)

    def read(self, place: RemotePath, size: int, digest: str) -> bytes:
        """Return a sidecar, fetched if it is not there, and kept where that can be done at no trouble.

        It is written without counting the files, of which there may be tens of thousands; they are counted when a shard comes.

        Raises:
            BookMissingError: if the server has it no more.
            BookCorruptError: if it has other bytes, also when fetched again.
            StorageError: if it does not arrive.
        """
        path = self._path(place, digest).with_suffix(_SIDECAR)
        for known in (True, False, False):
            found = _content(path, size) if known else place.read(size)
            if found is not None and (len(found), xxhash.xxh3_128_hexdigest(found)) == (size, digest):
                if not known and size <= self._known_limit // _SIDECAR_SHARE:
                    self._keep(path, found)
                return found
        raise _changed(place, size, digest)

    def _keep(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{TEMPORARY}")
        with contextlib.suppress(OSError):  # what the folder refuses is said of the shard, which needs it
            self._make_folder()
            temporary.write_bytes(data)
            temporary.replace(path)

    def drop(self, place: RemotePath, digest: str) -> bool:
        """Forget a shard, whose file is damaged; return whether there was one."""
        path = self._path(place, digest)
        return path.exists() and _evicted(path)

    def _path(self, place: RemotePath, digest: str) -> Path:
        # xxh3 finds accidents, not forgery: what one server sends is never used for a book of another.
        origin = xxhash.xxh3_64_hexdigest("/".join(place.base.split("/")[:3]).encode())
        return self.folder / f"{origin}-{digest}{_SUFFIX}"

    def _opened(self, place: RemotePath, path: Path, size: int, digest: str) -> int:
        found = _there(path, size)
        if found is not None:
            return found
        self._make_folder()
        with _arriving(path) as temporary:
            # Whoever held the name before may have fetched it.
            found = _there(path, size)
            return self._fetched(place, path, temporary, size, digest) if found is None else found

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _fetched(self, place: RemotePath, path: Path, temporary: Path, size: int, digest: str) -> int:
        patience, before = Patience(str(place), retry_seconds()), None
        while (now := self._reserved(temporary, size)) is not None:
            if now != before:
                patience.renew()
            before = now
            patience.wait(f"a cache {self.folder} full of what is still arriving", longest=_LOOK_SECONDS)
        # A second time, since a shard may be replaced, or a proxy be wrong, while it arrives.
        if not (_arrived(place, temporary, size, digest) or _arrived(place, temporary, size, digest)):
            raise _changed(place, size, digest)
        descriptor = os.open(temporary, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        # Under the lock, or who counts the files meanwhile would find it under neither name.
        with self._room(), contextlib.suppress(PermissionError):  # Windows: the other one is equal
            temporary.replace(path)
        return descriptor

    def _reserved(self, temporary: Path, size: int) -> frozenset[tuple[float, int, Path]] | None:
        """Evict what was used longest ago, until there is room, and take it at once by the length of the new file.

        What other threads and processes are fetching is not theirs to lose: where it leaves no room yet, return what is arriving,
        of which something changes while they get on.
        """
        with self._room():
            files = sorted(self._files(), reverse=True)
            held = sum(each for _, each, _ in files)
            limit = self._limit(held)
            if size > limit:
                raise StorageError(
                    f"Expected the cache {self.folder} to take a shard of {size} bytes, got a limit of {limit}. Raise "
                    f"BOOKKD_CACHE_BYTES, name another folder by BOOKKD_CACHE, or stream: BOOKKD_CACHE=none."
                )
            arriving = frozenset(each for each in files if each[2].suffix == TEMPORARY)
            while files and held + size > limit:
                _, each, path = files.pop()
                if _left_behind(path) if path.suffix == TEMPORARY else _evicted(path):
                    held -= each
            if held + size > limit:
                return arriving
            with temporary.open("r+b") as file:
                file.truncate(size)
            return None

    def _limit(self, held: int) -> int:
        there = next(each for each in (self.folder, *self.folder.absolute().parents) if each.exists())
        return cache_limit(shutil.disk_usage(there).free, held)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        try:
            paths = list(self.folder.iterdir())
        except FileNotFoundError:
            return
        for path in paths:
            if path.suffix in (_SUFFIX, _SIDECAR, TEMPORARY):
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    yield found.st_mtime, found.st_size, path

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Hold the lock of the cache's room; the system frees it when its process ends."""
        descriptor = os.open(self.folder / "room.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor)
            yield
        finally:
            _release(descriptor)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Say of what the folder refuses that it is the cache, and what to do without it."""
        try:
            yield
        except BookKDError:
            raise
        except OSError as error:
            raise StorageError(
                f"Expected the cache {self.folder} to be a folder that takes files, got: {error.strerror or error}. Name another "
                f"one by BOOKKD_CACHE, or stream: BOOKKD_CACHE=none."
            ) from error


@contextlib.contextmanager
def _arriving(path: Path) -> Iterator[Path]:
    """Hold the name under which a file arrives, and give the name up in the end; who wants it meanwhile waits."""
    # Without locks, two that fetch one file at once must not write into one.
    mark = "" if fcntl is not None else f".{os.getpid()}.{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}{mark}{TEMPORARY}")
    descriptor = _held(temporary)
    try:
        yield temporary
    finally:
        if fcntl is None:
            os.close(descriptor)
        if _is(temporary, descriptor):  # else it has its final name, and this one may be another's by now
            temporary.unlink(missing_ok=True)
        if fcntl is not None:
            _release(descriptor)


def _held(temporary: Path) -> int:
    """Return a descriptor of an empty file, made where it is not there, that holds its lock."""
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor)
            if _is(temporary, descriptor):
                if not os.fstat(descriptor).st_size:
                    return descriptor
                # Left behind; or on a network folder, whose names are seen late, finished by now. It is never cut short.
                temporary.unlink(missing_ok=True)
        except BaseException:
            os.close(descriptor)
            raise
        _release(descriptor)  # who held it before has finished, or given up


def _evicted(path: Path) -> bool:
    """Remove a file; return whether it is gone."""
    with contextlib.suppress(OSError):  # Windows deletes no file that is mapped
        path.unlink(missing_ok=True)
        return True
    return False


def _left_behind(temporary: Path) -> bool:
    """Remove what arrives no more, since whoever fetched it is gone; return whether it was so."""
    if fcntl is None:
        with contextlib.suppress(OSError):
            return time.time() - temporary.stat().st_mtime > _ABANDONED_SECONDS and _evicted(temporary)
        return False
    try:
        descriptor = os.open(temporary, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # With the lock, since who waits for it looks afterwards whether the name still leads to this file.
        return _is(temporary, descriptor) and _evicted(temporary)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    """Say whether a name still leads to an open file."""
    if fcntl is None:
        return True
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _release(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a forked child that inherited it
    os.close(descriptor)


def _there(path: Path, size: int) -> int | None:
    """Open a file of the cache, if it is there and as long as it should be, and note that it was used."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        os.close(descriptor)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return descriptor


def _content(path: Path, size: int) -> bytes | None:
    """Return what a file of the cache holds, if it is there and as long as it should be."""
    with contextlib.suppress(OSError):
        descriptor = _there(path, size)
        if descriptor is not None:
            with os.fdopen(descriptor, "rb") as file:
                return file.read(size)
    return None


def _changed(place: RemotePath, size: int, digest: str) -> BookCorruptError:
    return BookCorruptError(
        f"Expected {place} to have {size} bytes with xxh3_128 {digest}, got others, twice. It was replaced or changed; run "
        f"`bookkd verify`."
    )


def _arrived(place: RemotePath, temporary: Path, size: int, digest: str) -> bool:
    """Fetch a shard into a file; return whether it is the one."""
    state = xxhash.xxh3_128()
    with temporary.open("r+b") as file:

        def keep(piece: bytes) -> None:
            file.write(piece)
            state.update(piece)

        def again() -> None:
            file.seek(0)
            state.reset()

        try:
            place.download(keep, size=size, again=again)
        except BookCorruptError:
            return False
    return state.hexdigest() == digest
