"""Writing files so that a crash leaves the old file or the new one, never a half."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

from bookkd.core.errors import StorageError

__all__ = ["is_temporary", "sync_folder", "write_atomic"]

_TEMPORARY = re.compile(r"\.tmp-\d+-.+")

_ADVICE = {
    errno.ENOSPC: "The disk is full. Free some space and run the same command again; what was committed before is whole.",
    errno.EDQUOT: "The disk quota is used up. Free some space and run the same command again; what was committed before is whole.",
    errno.EROFS: "The file system is read-only. Choose another folder.",
    errno.EACCES: "The folder may not be written. Change its permissions or choose another folder.",
    errno.EPERM: "The folder may not be written. Change its permissions or choose another folder.",
}


def is_temporary(name: str) -> bool:
    """Say whether a file name is one that `write_atomic` leaves behind when the process is killed.

    >>> is_temporary(".tmp-1234-plan.json"), is_temporary("plan.json")
    (True, False)
    """
    return bool(_TEMPORARY.fullmatch(name))


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable; a no-op where folders cannot be opened (Windows)."""
    with contextlib.suppress(PermissionError, IsADirectoryError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomic(path: Path, data: bytes | Iterable[bytes], *, replace: bool = True) -> None:
    """Write to a temporary name in the same folder, fsync, rename, fsync the folder.

    Args:
        path: Final name; its folder is created.
        data: The bytes, or pieces of them.
        replace: False refuses a file that is already there (create-if-absent).

    Raises:
        StorageError: full disk, read-only folder and the like; nothing half-written stays.
        FileExistsError: with `replace=False`, if `path` exists.
    """
    temporary = path.parent / f".tmp-{os.getpid()}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for piece in (data,) if isinstance(data, bytes | bytearray | memoryview) else data:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            # A hard link fails if the name is taken, which a rename would not.
            os.link(temporary, path)
            temporary.unlink()
        sync_folder(path.parent)
    except FileExistsError:
        temporary.unlink(missing_ok=True)
        raise
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        advice = _ADVICE.get(error.errno or 0, "Run the same command again when the cause is mended.")
        raise StorageError(error.errno, f"Expected to write {path}, got: {error.strerror}. {advice}") from error
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
