"""One writer a folder: an operating-system lock is the guard, the text in the file is for the message."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from pathlib import Path
from types import ModuleType
from typing import Any

from bookkd.core.errors import BookFormatError, BookKDError, BookLockedError
from bookkd.core.files import storage_errors

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: the text of the file is the guard
    fcntl = None

__all__ = ["Lock"]

_TEXT_LIMIT = 4096
_OPEN = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Where the system has it, no link is followed; a pipe or device is not waited for."""
_held: set[tuple[int, Path]] = set()
"""(process, lock file): record locks do not keep two writers of one process apart."""


class Lock:
    """The lock of a folder, taken when made.

    A record lock (`fcntl.lockf`) ends with its process, also by SIGKILL, and is not inherited by forked workers; an
    inherited `flock` would outlive a killed writer in its orphans.

    Args:
        path: The lock file, in the folder that it guards.

    Raises:
        BookLockedError: if another writer holds it, or one on another host left it behind.
        BookFormatError: if anything but a regular file of one name lies there: writing into it would change another file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.parent.resolve() / path.name
        self._descriptor = -1
        me = (os.getpid(), self.path)
        if me in _held:
            raise _refusal(self.path, "a writer in this process", "Close that writer first.")
        with storage_errors(self.path):
            while self._descriptor < 0:
                self._descriptor = self._take()
        try:
            self._check_left_behind()
            self._write({"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())})
        except BookKDError:
            os.close(self._descriptor)
            raise
        _held.add(me)

    def release(self) -> None:
        """Give the lock back; a second call, or one from a forked child, changes nothing."""
        me = (os.getpid(), self.path)
        if me not in _held or self._descriptor < 0:
            return
        if fcntl is None:  # Windows deletes no open file
            os.close(self._descriptor)
        with contextlib.suppress(OSError):
            self.path.unlink()
        if fcntl is not None:  # unlinked while it is locked, so that nobody takes a file that is about to go
            os.close(self._descriptor)
        self._descriptor = -1
        _held.discard(me)

    def _take(self) -> int:
        """Open and lock the file; -1 if its owner removed it in between."""
        with contextlib.suppress(FileNotFoundError):
            _check_kind(self.path, self.path.lstat())
        descriptor = os.open(self.path, _OPEN, 0o644)
        try:
            _check_kind(self.path, os.fstat(descriptor))
        except BookFormatError:
            os.close(descriptor)
            raise
        if fcntl is None:
            return descriptor
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = _read(descriptor)
            os.close(descriptor)
            raise _refusal(self.path, _named(owner), "Wait for it, or end it.") from error
        try:
            if os.path.samestat(os.fstat(descriptor), self.path.lstat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
        return -1

    def _check_left_behind(self) -> None:
        """With the system's lock in hand: a text of this host is stale; of another host, nobody here can know."""
        owner = _read(self._descriptor)
        if not owner:
            return
        if owner.get("host") != socket.gethostname():
            raise _refusal(self.path, _named(owner), f"If that writer has ended, remove {self.path}.")
        pid = owner.get("pid")
        if fcntl is None and isinstance(pid, int) and _alive(pid, owner.get("started")):
            raise _refusal(self.path, _named(owner), f"Wait for it, or end it; if it has ended, remove {self.path}.")

    def _write(self, owner: dict[str, Any]) -> None:
        with storage_errors(self.path):
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, json.dumps(owner).encode())


def _check_kind(path: Path, found: os.stat_result) -> None:
    """Refuse what is no lock of ours: its text would be written into whatever it stands for."""
    got = ""
    if stat.S_ISLNK(found.st_mode):
        got = "a link"
    elif not stat.S_ISREG(found.st_mode):
        got = "another kind of entry"
    elif found.st_nlink > 1:  # 0 for one whose owner has just removed it
        got = f"one with {found.st_nlink} names"
    if got:
        raise BookFormatError(
            f"Expected {path} to be a regular file of one name, got {got}. Remove it: no writer put it there."
        )


def _read(descriptor: int) -> dict[str, Any]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        found = json.loads(os.read(descriptor, _TEXT_LIMIT) or b"{}")
    except (ValueError, RecursionError):  # killed while writing its name
        return {}
    return found if isinstance(found, dict) else {}


def _named(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', 'unknown')} on host {owner.get('host', 'unknown')}"


def _refusal(path: Path, owner: str, advice: str) -> BookLockedError:
    return BookLockedError(f"Expected {path.parent} to have no other writer, got {owner}. {advice}")


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot: tells a reused pid from the old one (Linux only)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _alive(pid: int, started: object) -> bool:
    if os.name == "nt":  # signal 0 is CTRL_C_EVENT there, and any other ends the process: nobody is asked
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return started is None or _started(pid) in (None, started)
