"""Files of a book: read without trust, and written so that a name always stands for whole bytes.

On this machine by `core.files`, on a server by `remote`: nothing above this file tells the two apart.
"""

from __future__ import annotations

import mmap
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from bookkd.book._layout import CONSTANTS_FOLDER, JSON_LIMIT
from bookkd.book.remote import RemotePath, Root
from bookkd.core import files, jsonio
from bookkd.core.errors import BookCorruptError, BookFormatError, BookKDError, BookMissingError, StorageError
from bookkd.core.files import TEMPORARY, storage_errors

__all__ = [
    "create", "digest_of", "each", "entries", "make_folder", "mapped_inside", "open_inside", "read_inside", "read_json", "remove_leftovers",
    "storage_errors", "write_atomic",
]  # fmt: skip


_T = TypeVar("_T")
_U = TypeVar("_U")
_AT_ONCE = 16


def each(root: Root, read: Callable[[_T], _U], items: Iterable[_T]) -> list[_U]:
    """Return what `read` gives for each item; several at once where each is a request to a server."""
    if isinstance(root, Path):
        return [read(item) for item in items]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(read, items))


def make_folder(root: Root) -> None:
    """Create a folder and its parents; of a server, see that it can be written."""
    if isinstance(root, RemotePath):
        root.check_writable()
    else:
        files.make_folder(root)


def write_atomic(root: Root, relative: str, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file below `root` as `core.files.write_atomic`; on a server, where there is none, or the same one.

    Raises:
        BookFormatError: if its folder is a link, which may lead out of the book. `root` itself may be one.
        BookLockedError: if the server has another one of this name.
        StorageError: if it cannot be written.
    """
    if isinstance(root, RemotePath):
        (root / relative).write(data if isinstance(data, bytes) else b"".join(data))
    else:
        files.write_atomic(_place(root, relative), data)


def create(root: Root, relative: str, data: bytes) -> bool:
    """Write a file below `root` if there is none; return whether it was created, or on a server is the same.

    Raises:
        BookFormatError: as `write_atomic`.
    """
    if isinstance(root, RemotePath):
        return (root / relative).create(data)
    return files.create(_place(root, relative), data)


def _place(root: Path, relative: str) -> Path:
    place = root
    for name in relative.split("/")[:-1]:
        place /= name
        files.check_no_link(place)
    return root / relative


def digest_of(data: bytes | memoryview) -> str:
    """Return the xxh3_128 of `data` as 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def open_inside(root: Root, relative: str, size: int | None = None) -> tuple[int, int]:
    """Open a regular file below `root` for reading; from a server it is fetched first, as a file without a name.

    Args:
        root: Place of the book.
        relative: Path with `/`, made of names that the format allows.
        size: Bytes that it should have: nothing else is fetched.

    Returns:
        (file descriptor, size in bytes); the caller closes it.

    Raises:
        BookMissingError: if there is no such file.
        BookFormatError: if it is no regular file, or a link leads out of the book.
        StorageError: if it cannot be read.
    """
    if isinstance(root, RemotePath):
        return _fetched(root / relative, size)
    path = root / relative
    try:
        if path.is_symlink() or path.parent.is_symlink():
            inside = path.resolve(strict=True)
            if not inside.is_relative_to(root.resolve()):
                raise BookFormatError(
                    f"Expected {path} to lie inside the book, got a link to {inside}. Copy the file into the book."
                )
        # Opening a pipe would wait for its writer: O_NONBLOCK returns, and the check below refuses it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BookMissingError(
            f"Expected {path} to be a file of the book, got nothing there. Restore or repair it."
        ) from error
    except BookKDError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise StorageError(
            f"Expected {path} to be readable, got: {error}. Check its permissions and the disk."
        ) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise BookFormatError(f"Expected {path} to be a regular file, got another kind of entry. Restore or repair it.")
    return descriptor, found.st_size


def _fetched(place: RemotePath, size: int | None) -> tuple[int, int]:
    with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
        length = place.download(file.write, size=size, again=lambda: file.seek(0))
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        return os.dup(file.fileno()), length


@contextmanager
def mapped_inside(root: Path, relative: str) -> Iterator[memoryview]:
    """Give the bytes of a regular file below `root` without holding them; none for an empty file. Whoever takes slices lets them go.

    Raises:
        BookMissingError: if there is no such file.
        BookFormatError: if it is no regular file, or a link leads out of the book.
    """
    descriptor, size = open_inside(root, relative)
    try:
        mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else None
    finally:
        os.close(descriptor)
    data = memoryview(b"" if mapped is None else mapped)
    try:
        yield data
    finally:
        data.release()
        if mapped is not None:
            mapped.close()


def read_inside(root: Root, relative: str, limit: int = JSON_LIMIT, expect: tuple[int, str] | None = None) -> bytes:
    """Read a whole file below `root`.

    Args:
        root: Place of the book.
        relative: Path with `/`.
        limit: Most bytes accepted.
        expect: (size, xxh3_128) as recorded by the file that names this one.

    Raises:
        BookFormatError: if it is longer than `limit`.
        BookCorruptError: if size or digest differ from what is recorded.
    """
    data = (root / relative).read(limit) if isinstance(root, RemotePath) else _read(root, relative, limit)
    if expect is not None and (len(data), digest_of(data)) != expect:
        raise BookCorruptError(
            f"Expected {root / relative} to have {expect[0]} bytes with xxh3_128 {expect[1]}, got {len(data)} with "
            f"{digest_of(data)}. The file was changed after it was written; run `bookkd verify`."
        )
    return data


def _read(root: Path, relative: str, limit: int) -> bytes:
    descriptor, size = open_inside(root, relative)
    with os.fdopen(descriptor, "rb") as file:
        if size > limit:
            raise BookFormatError(
                f"Expected {root / relative} to be at most {limit} bytes, got {size}. It is not a file of a book."
            )
        try:
            return file.read(size + 1)  # as much as is asked for is allocated at once
        except OSError as error:
            raise StorageError(f"Expected {root / relative} to be readable, got: {error}. Check the disk.") from error


def read_json(root: Root, relative: str, expect: tuple[int, str] | None = None) -> tuple[dict[str, Any], bytes]:
    """Read and parse one JSON object below `root`; return it with its bytes."""
    data = read_inside(root, relative, expect=expect)
    return jsonio.parse(data, str(root / relative), limit=JSON_LIMIT), data


def entries(folder: Root) -> list[str]:
    """Return the names in a folder, ordered; of a server that lists nothing, those of a book's own files."""
    if isinstance(folder, RemotePath):
        return sorted(folder.names())
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise StorageError(
            f"Expected {folder} to be a readable folder, got: {error}. Check its permissions."
        ) from error


def remove_leftovers(root: Root) -> None:
    """Remove temporary files of a killed writer, in `root` and the folders of views and constants; a server has none.

    Raises:
        BookFormatError: if such a folder is a link: said here, before the first file of a session is written.
    """
    if isinstance(root, RemotePath):
        return
    with storage_errors(root):
        folders = [*sorted(root.glob("view-*")), root / CONSTANTS_FOLDER]
        for folder in folders:
            files.check_no_link(folder)
        for folder in [root, *(folder for folder in folders if folder.is_dir())]:
            for leftover in folder.glob(f".*{TEMPORARY}"):
                leftover.unlink(missing_ok=True)
