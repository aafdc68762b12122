"""Whole shards, kept on this machine for all of its processes: by the digest that names them, checked when they arrive.

A file is complete under its name or not there; the digest is in the name, so that a shard that was replaced is another file.
What is evicted while it is mapped stays readable until it is let go.
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
from bookkd.core.errors import BookCorruptError, StorageError
from bookkd.core.files import TEMPORARY, storage_errors

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: two processes may fetch one shard at once; the last rename wins, of equal bytes
    fcntl = None

__all__ = ["ShardCache"]

_SUFFIX = ".shard"
_ABANDONED_SECONDS = 3600


class ShardCache:
    """A folder of shards with a limit.

    Args:
        folder: Made, for this user alone, where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with storage_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def limit(self) -> int:
        """Return the most bytes that the cache may hold now."""
        with storage_errors(self.folder):
            return cache_limit(shutil.disk_usage(self.folder).free, sum(size for _, size, _ in self._files()))

    def open(self, place: RemotePath, size: int, digest: str) -> int:
        """Return a descriptor of a shard, fetched if it is not there; the caller closes it.

        Args:
            place: Where it lies.
            size: Its bytes.
            digest: Its xxh3_128.

        Raises:
            BookMissingError: if the server has it no more.
            BookCorruptError: if it has other bytes, also when fetched again.
            StorageError: if it does not arrive, or does not fit.
        """
        path = self._path(place, digest)
        with storage_errors(path):
            found = _opened(path, size)
            if found is not None:
                return found
            with self._locked(f"{digest[:2]}.lock"):
                found = _opened(path, size)
                return self._fetched(place, path, size, digest) if found is None else found

    def drop(self, place: RemotePath, digest: str) -> None:
        """Forget a shard, whose file is damaged."""
        with contextlib.suppress(OSError):
            self._path(place, digest).unlink()

    def _path(self, place: RemotePath, digest: str) -> Path:
        # xxh3 finds accidents, not forgery: what one server sends is never used for a book of another.
        origin = xxhash.xxh3_64_hexdigest("/".join(place.base.split("/")[:3]).encode())
        return self.folder / f"{origin}-{digest}{_SUFFIX}"

    def _fetched(self, place: RemotePath, path: Path, size: int, digest: str) -> int:
        for left in self.folder.glob(f".*-{digest}{_SUFFIX}.*{TEMPORARY}"):
            left.unlink(missing_ok=True)  # of a killed process, since the lock is ours
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{TEMPORARY}")
        patience = Patience(str(place), retry_seconds())
        while not self._reserved(temporary, size):
            patience.wait(f"a cache {self.folder} full of what is still arriving")
        try:
            # A second time, since a shard may be replaced, or a proxy be wrong, while it arrives.
            if not (_arrived(place, temporary, size, digest) or _arrived(place, temporary, size, digest)):
                raise BookCorruptError(
                    f"Expected {place} to have {size} bytes with xxh3_128 {digest}, got others, twice. The shard was replaced or "
                    f"changed; run `bookkd verify`."
                )
            descriptor = os.open(temporary, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            # Under the lock, or who counts the files meanwhile would find it under neither name.
            with self._locked("room.lock"), contextlib.suppress(PermissionError):  # Windows: the other one is equal
                temporary.replace(path)
            return descriptor
        finally:
            temporary.unlink(missing_ok=True)

    def _reserved(self, temporary: Path, size: int) -> bool:
        """Evict what was used longest ago, until there is room, and take it at once by the length of the new file.

        Return false where there is none yet: what other threads and processes are fetching is not theirs to lose.
        """
        with self._locked("room.lock"):
            files = sorted(self._files(), reverse=True)
            held = sum(each for _, each, _ in files)
            limit = cache_limit(shutil.disk_usage(self.folder).free, held)
            if size > limit:
                raise StorageError(
                    f"Expected the cache {self.folder} to take a shard of {size} bytes, got a limit of {limit}. Raise "
                    f"BOOKKD_CACHE_BYTES, name another folder by BOOKKD_CACHE, or stream: BOOKKD_CACHE=none."
                )
            while files and held + size > limit:
                _, each, path = files.pop()
                if path.suffix == _SUFFIX or _left_behind(path):
                    with contextlib.suppress(OSError):  # Windows deletes no file that is mapped
                        path.unlink(missing_ok=True)
                        held -= each
            if held + size > limit:
                return False
            with temporary.open("wb") as file:
                file.truncate(size)
            return True

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        for path in self.folder.iterdir():
            if path.suffix in (_SUFFIX, TEMPORARY):
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    yield found.st_mtime, found.st_size, path

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold one of the cache's locks; the system frees it when its process ends."""
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a forked child that inherited it
            os.close(descriptor)


def _left_behind(temporary: Path) -> bool:
    """Say whether the process that was fetching a file is gone; a process of Windows is not asked."""
    try:
        process = int(temporary.name.split(".")[-3])
        if os.name != "posix":
            return time.time() - temporary.stat().st_mtime > _ABANDONED_SECONDS
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, IndexError):
        return False
    return False


def _opened(path: Path, size: int) -> int | None:
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
