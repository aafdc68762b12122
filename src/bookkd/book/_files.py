"""Files of a book: read without trust; written by `core.files`, so that a name always stands for whole bytes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import xxhash

from bookkd.book._layout import JSON_LIMIT
from bookkd.core import jsonio
from bookkd.core.errors import BookCorruptError, BookFormatError, BookMissingError, StorageError
from bookkd.core.files import TEMPORARY, create, make_folder, storage_errors, write_atomic

__all__ = [
    "create", "digest_of", "entries", "make_folder", "open_inside", "read_inside", "read_json", "remove_leftovers", "storage_errors", "write_atomic",
]  # fmt: skip


def digest_of(data: bytes) -> str:
    """Return the xxh3_128 of `data` as 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def open_inside(root: Path, relative: str) -> tuple[int, int]:
    """Open a regular file below `root` for reading.

    Args:
        root: Folder of the book.
        relative: Path with `/`, made of names that the format allows.

    Returns:
        (file descriptor, size in bytes); the caller closes it.

    Raises:
        BookMissingError: if there is no such file.
        BookFormatError: if it is no regular file, or a link leads out of the book.
        StorageError: if it cannot be read.
    """
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
    except (OSError, RuntimeError, ValueError) as error:
        raise StorageError(
            f"Expected {path} to be readable, got: {error}. Check its permissions and the disk."
        ) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise BookFormatError(f"Expected {path} to be a regular file, got another kind of entry. Restore or repair it.")
    return descriptor, found.st_size


def read_inside(root: Path, relative: str, limit: int = JSON_LIMIT, expect: tuple[int, str] | None = None) -> bytes:
    """Read a whole file below `root`.

    Args:
        root: Folder of the book.
        relative: Path with `/`.
        limit: Most bytes accepted.
        expect: (size, xxh3_128) as recorded by the file that names this one.

    Raises:
        BookFormatError: if it is longer than `limit`.
        BookCorruptError: if size or digest differ from what is recorded.
    """
    descriptor, size = open_inside(root, relative)
    with os.fdopen(descriptor, "rb") as file:
        if size > limit:
            raise BookFormatError(
                f"Expected {root / relative} to be at most {limit} bytes, got {size}. It is not a file of a book."
            )
        try:
            data = file.read(size + 1)  # as much as is asked for is allocated at once
        except OSError as error:
            raise StorageError(f"Expected {root / relative} to be readable, got: {error}. Check the disk.") from error
    if expect is not None and (len(data), digest_of(data)) != expect:
        raise BookCorruptError(
            f"Expected {root / relative} to have {expect[0]} bytes with xxh3_128 {expect[1]}, got {len(data)} with "
            f"{digest_of(data)}. The file was changed after it was written; run `bookkd verify`."
        )
    return data


def read_json(root: Path, relative: str, expect: tuple[int, str] | None = None) -> tuple[dict[str, Any], bytes]:
    """Read and parse one JSON object below `root`; return it with its bytes."""
    data = read_inside(root, relative, expect=expect)
    return jsonio.parse(data, str(root / relative), limit=JSON_LIMIT), data


def entries(folder: Path) -> list[str]:
    """Return the names in a folder, ordered."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise StorageError(
            f"Expected {folder} to be a readable folder, got: {error}. Check its permissions."
        ) from error


def remove_leftovers(root: Path) -> None:
    """Remove temporary files of a killed writer, in `root` and its view folders."""
    with storage_errors(root):
        for folder in [root, *(folder for folder in root.glob("view-*/") if not folder.is_symlink())]:
            for leftover in folder.glob(f".*{TEMPORARY}"):
                leftover.unlink(missing_ok=True)
