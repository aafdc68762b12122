"""Writing files so that a crash leaves the old file or the new one, never a half."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import xxhash

from bookkd.core.errors import BookFormatError, BookKDError, ConfigError, StorageError, expected

__all__ = [
    "TEMPORARY",
    "check_here",
    "check_no_link",
    "create",
    "file_digest",
    "make_folder",
    "storage_errors",
    "sync_folder",
    "write_atomic",
]

TEMPORARY = ".tmp"
"""Suffix of a file that is being written; such a file belongs to nobody after its writer died."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into a StorageError that says what remains."""
    try:
        yield
    except BookKDError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"Expected {path} to be writable, got: {reason}. What was committed before is whole: "
            f"make room or repair the disk, then run again to resume."
        ) from error


def file_digest(path: Path) -> str:
    """Return the XXH3-128 of a file's bytes, as 32 hex digits, without holding the file in memory.

    Raises:
        OSError: if the file cannot be read.
    """
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(2**22):
            hasher.update(piece)
    return hasher.hexdigest()


def check_no_link(path: Path) -> None:
    """Refuse a link in the place of a folder; nothing at all may be there.

    Raises:
        BookFormatError: if it is a link, or what Windows calls a junction.
        StorageError: if nobody can tell.
    """
    with storage_errors(path), suppress(FileNotFoundError):
        found = path.lstat()
        junction = getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", None)
        if stat.S_ISLNK(found.st_mode) or (junction is not None and getattr(found, "st_reparse_tag", 0) == junction):
            raise BookFormatError(
                f"Expected {path} to be a folder of its own, got a link to {path.readlink()}. Nothing is written through a link: put "
                f"the folder itself there."
            )


def check_here(path: Path) -> Path:
    """Return a path, unless it is the address of a server: that would become a folder named by it, a password included.

    Raises:
        ConfigError: for an address.

    >>> check_here(Path("s3://bucket/run"))
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected `folder` to be one of this machine, got an address (s3). Give a path: ...
    """
    # Two letters at least, so that a drive of Windows is none.
    scheme = re.fullmatch("([A-Za-z][A-Za-z0-9+.-]+):", path.parts[0]) if path.parts else None
    if scheme is not None:
        do = "Give a path: of all that is written, only books can lie at an address."
        raise ConfigError(expected("folder", "one of this machine", f"an address ({scheme[1]})", do=do))
    return path


def make_folder(path: Path) -> None:
    """Create a folder and its parents, and make the entry durable.

    Raises:
        ConfigError: the path is the address of a server.
        StorageError: the path or one of its parents is a file; or a full, read-only or failing disk.
    """
    check_here(path)
    with storage_errors(path):
        found = next((place for place in (path, *path.parents) if place.exists()), path)
        if found.exists() and not found.is_dir():
            raise StorageError(f"Expected {found} to be a folder, got a file. Choose another folder.")
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            sync_folder(path.parent)


def write_atomic(path: Path, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file so that `path` is either what it was or the whole new content, also after a power cut.

    Args:
        path: Final name; its folder is created.
        data: The bytes, or pieces of them, which may be made while they are written.

    Raises:
        StorageError: full, read-only or failing disk; the temporary file is removed.
    """
    make_folder(path.parent)
    with storage_errors(path):
        temporary = _write_temporary(path, [data] if isinstance(data, bytes) else data)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def create(path: Path, data: bytes) -> bool:
    """Write a file atomically if there is none at `path`; return whether it was created.

    A hard link fails where the name is taken, in one step. Where the file system has no links, the lock of the book is
    what keeps a second writer away.
    """
    with storage_errors(path):
        if path.exists():
            return False
        temporary = _write_temporary(path, [data])
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
        return True


def _write_temporary(path: Path, pieces: Iterable[bytes | memoryview]) -> Path:
    # With the process in the name, two that write one path at once never write into one file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with _opened(temporary) as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(pieces, Generator):
            pieces.close()  # it may hold pieces of a mapped file, which its owner closes next
        raise
    return temporary


def _opened(temporary: Path) -> BinaryIO:
    """Open a file that is not there yet: a link of this name, that somebody laid, is not followed."""
    try:
        return temporary.open("xb")
    except FileExistsError:
        temporary.unlink()
        return temporary.open("xb")


def sync_folder(path: Path) -> None:
    """Make what was created, renamed or deleted in a folder durable, where the system can.

    Raises:
        OSError: a failing disk.
    """
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
