"""Disks that are full, folders that may not be written, writers that meet, locks that are stale, clocks that jump."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.faults import kills, specimens

from bookkd.book import Book, BookWriter, verify
from bookkd.core.errors import BookLockedError, StorageError

FULL = 20
NOBODY = 65534
"""User that owns nothing, where the experiment runs as root."""


def run(folder: Path, share: float = 1.0) -> dict[str, Any]:
    """Do every experiment; `share` of the moments at which the disk is full."""
    return {
        "full disk": _full(folder, max(1, round(FULL * share))),
        "a limit on the size of a file": _limited(folder, max(1, round(FULL * share))),
        "no permission": _permission(folder),
        "read-only file system": _read_only(folder),
        "two writers": _two_writers(folder),
        "stale locks": _locks(folder),
        "clocks": _clocks(folder),
    }


def _outcome(runs: int, wrong: list[str], how: str) -> dict[str, Any]:
    return {"runs": runs, "how": how, "wrong": wrong}


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path | None]:
    """Mount a tmpfs; None where that is not allowed."""
    place = folder / "mount"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=False, capture_output=True)
    try:
        yield place if done.returncode == 0 else None
    finally:
        if done.returncode == 0:
            gc.collect()  # books that are gone may still hold a file mapped
            subprocess.run(["umount", "-l", place], check=True)


def _written_bytes(folder: Path) -> int:
    root = folder / "whole"
    shutil.rmtree(root, ignore_errors=True)
    specimens.make(root)
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in root.rglob("*") if path.is_file())


WORKS = ("making, any producer", "growing by samples", "compacting", "merging", "encoding anew")
"""What is done on the full disk, in turn."""


def _full(folder: Path, moments: int) -> dict[str, Any]:
    """Do works on a disk that a file fills to within some room; then make room and do them again."""
    wrong: list[str] = []
    stopped = 0
    with mounted(folder, "size=16m,nr_inodes=4096") as disk:
        if disk is None:
            return _outcome(0, [], "mounting a tmpfs was refused: see the limit on the size of a file")
        for moment in range(moments):
            work = kills.WORKS[WORKS[moment % len(WORKS)]]
            root = disk / "b"
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            work.start(root)
            used = shutil.disk_usage(disk).used
            reference = folder / "reference"
            shutil.rmtree(reference, ignore_errors=True)
            shutil.copytree(root, reference)
            whole = kills._files(work.run(reference))
            needed = sum(-(-path.stat().st_size // 4096) * 4096 for path in reference.rglob("*") if path.is_file())
            needed -= sum(-(-path.stat().st_size // 4096) * 4096 for path in root.rglob("*") if path.is_file())
            ballast = disk / "ballast"
            gc.collect()  # what an error of the moment before still holds mapped is no free room yet, and would be in the middle
            room = round(max(needed, 8192) * (moment // len(WORKS) + 0.5) / -(-moments // len(WORKS)))
            free = shutil.disk_usage(disk).free
            with suppress(OSError):
                ballast.write_bytes(bytes(free - room))
            label = f"{WORKS[moment % len(WORKS)]}, {room} bytes of {needed}, {used} used"
            try:
                work.run(root)
                wrong.append(f"{label}: came to its end")
            except StorageError as error:
                stopped += 1
                if os.strerror(errno.ENOSPC) not in str(error) or "run again to resume" not in str(error):
                    wrong.append(f"{label}: {error}")
            except Exception as error:  # whatever else it is, it is a finding
                wrong.append(f"{label}: {type(error).__name__}: {error}")
            if list(root.rglob("*.tmp")) or list(root.rglob(".lock")):
                wrong.append(f"{label}: temporary files are left")
            if work.finished and verify(root / "b"):
                wrong.append(f"{label}: the book that was there is not whole")
            ballast.unlink(missing_ok=True)
            wrong += [f"{label}: {line}" for line in _again(root, work, whole)]
    return _outcome(stopped, wrong, "a tmpfs of 16 MiB, filled up to what is left for each moment")


def _again(root: Path, work: kills.Work, whole: dict[str, str]) -> list[str]:
    """Do the work again, now that it may; say what is wrong with its result."""
    try:
        result = work.run(root)
    except Exception as error:
        return [f"again: {type(error).__name__}: {error}"]
    found = kills._files(result)
    lines = [f"again: other files {sorted(set(found) ^ set(whole))[:3]}"] if set(found) != set(whole) else []
    lines += [f"again: other bytes in {name}" for name in found if found[name] != whole.get(name)]
    return lines + [f"again: {fault}" for fault in verify(result)]


def _limited(folder: Path, moments: int) -> dict[str, Any]:
    """Write a book whose largest file is longer than the process may write."""
    wrong: list[str] = []
    whole = folder / "whole"
    _written_bytes(folder)
    sizes = sorted(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    files = kills._files(whole)
    for moment in range(moments):
        limit = 100 + (sizes[-1] - 200) * moment // moments
        root = folder / "limited"
        shutil.rmtree(root, ignore_errors=True)
        said = _in_child(lambda root=root, limit=limit: _write_limited(root, limit))
        if said != "StorageError":
            wrong.append(f"{limit} bytes: {said}")
        specimens.make(root)
        if kills._files(root) != files or verify(root):
            wrong.append(f"{limit} bytes: another book when it was gone on with")
    return _outcome(moments, wrong, "RLIMIT_FSIZE")


def _write_limited(root: Path, limit: int) -> str:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return _said(lambda: specimens.make(root))


def _said(work: Callable[[], Any]) -> str:
    """Return the name of the error that a work raises, "" for none."""
    try:
        work()
    except Exception as error:  # its name is what is asked for
        return type(error).__name__
    return ""


def _in_child(work: Callable[[], str]) -> str:
    """Return what a forked child says; it may change itself."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(there, work().encode())
        finally:
            os._exit(0)
    os.close(there)
    with os.fdopen(here) as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    return f"{said}{f' (signal {os.WTERMSIG(status)})' if os.WIFSIGNALED(status) else ''}"


def _as_nobody(work: Callable[[], Any]) -> str:
    """Do a work as a user whom permissions hold; root is held by none."""

    def child() -> str:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return _said(work)

    return _in_child(child)


def _permission(folder: Path) -> dict[str, Any]:
    """Take permissions away before and between writes, as another user than root."""
    wrong: list[str] = []
    runs = 0
    top = folder
    while top != top.parent:  # the child must reach the folder
        with suppress(OSError):
            top.chmod(top.stat().st_mode | 0o011)
        top = top.parent

    def judge(label: str, said: str, wanted: str) -> None:
        nonlocal runs
        runs += 1
        if said != wanted:
            wrong.append(f"{label}: {said or 'no error'}, not {wanted or 'none'}")

    for name in ("making, any producer", "growing by views", "compacting", "repairing", "merging"):
        work = kills.WORKS[name]
        root = folder / "permission"
        shutil.rmtree(root, ignore_errors=True)
        work.start(root)
        whole = folder / "permission-whole"
        shutil.rmtree(whole, ignore_errors=True)
        shutil.copytree(root, whole)
        wanted = kills._files(work.run(whole))
        for path in [root, *root.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        judge(f"{name}, read-only folder", _as_nobody(lambda root=root, work=work: work.run(root)), "StorageError")
        if work.finished:
            judge(
                f"{name}, reading it", _as_nobody(lambda root=root: Book(root / "b", verify="all").read([0], [0])), ""
            )
        for path in [root, *root.rglob("*")]:
            path.chmod(0o777 if path.is_dir() else 0o666)
        for write in (1, 2, 3):
            said = _as_nobody(lambda root=root, work=work, write=write: _losing(root, work, write))
            judge(f"{name}, lost at write {write}", said, "StorageError")
            for path in [root, *root.rglob("*")]:
                path.chmod(0o777 if path.is_dir() else 0o666)
            if list(root.rglob(".lock")):
                (next(root.rglob(".lock"))).unlink()  # its folder could not be written any more
        lines = _again(root, work, wanted)
        wrong += [f"{name}: {line}" for line in lines]
    return _outcome(runs, wrong, "as a user who is not root" if os.geteuid() == 0 else "as this user")


def _losing(root: Path, work: kills.Work, write: int) -> None:
    """Lose the permission to write every folder before the n-th file is renamed to its name."""
    left = [write]
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0:
            for each in [root, *root.rglob("*")]:
                if each.is_dir():
                    each.chmod(0o555)
        return real(path, target)

    with patch.object(Path, "replace", replace):
        work.run(root)


def _read_only(folder: Path) -> dict[str, Any]:
    """Mount the disk read-only under an unfinished book, and again for writing."""
    wrong: list[str] = []
    with mounted(folder, "size=16m") as disk:
        if disk is None:
            return _outcome(0, [], "mounting a tmpfs was refused")
        the_plan = specimens.plan()
        root, whole = disk / "b", folder / "whole"
        _written_bytes(folder)
        with BookWriter(root, the_plan, keys=specimens.keys(100)) as writer:
            unit = writer.pending()[0]
            writer.write(unit, specimens.said(writer.plan, *unit))
        # The system refuses this while a file is open for writing, the lock among them.
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        said = _said(lambda: specimens.make(root))
        if said != "StorageError":
            wrong.append(f"going on: {said}")
        if _said(lambda: Book(root)) != "BookUnfinishedError":
            wrong.append("reading what is there")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        specimens.make(root)
        if kills._files(root) != kills._files(whole):
            wrong.append("another book when it was gone on with")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        if verify(root) or _said(lambda: specimens.grow(root, 100, 3)) != "StorageError":
            wrong.append("a finished book on a read-only disk")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    return _outcome(3, wrong, "a tmpfs, mounted again read-only")


def _two_writers(folder: Path) -> dict[str, Any]:
    """Start works in a second process while one writes, and two at once on one folder, again and again."""
    wrong: list[str] = []
    runs = 0
    root = folder / "two"
    for name in ("growing by views", "compacting", "compacting and pruning", "repairing"):
        shutil.rmtree(root, ignore_errors=True)
        kills.start_book(root)
        before = kills._files(root / "b")
        from bookkd.core.lock import Lock

        lock = Lock(root / "b" / ".lock")
        said = _in_child(lambda name=name: _said(lambda: kills.WORKS[name].run(root)))
        lock.release()
        runs += 1
        if said != "BookLockedError" or kills._files(root / "b") != before:
            wrong.append(f"{name} beside a writer: {said}")
    for _ in range(20):  # who comes first is a matter of luck
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        children = [kills._forked(root, kills.WORKS["making, any producer"]) for _ in range(3)]
        statuses = [os.waitpid(child, 0)[1] for child in children]
        runs += 1
        if all(statuses):
            wrong.append("none of three writers came to its end")
        specimens.make(root / "b", specimens.plan(*kills.GROWN))
        if verify(root / "b") or list(root.rglob("*.tmp")) or list(root.rglob(".lock")):
            wrong.append("three writers at once: another book")
    return _outcome(runs, wrong, "record locks on one machine")


def _locks(folder: Path) -> dict[str, Any]:
    """Leave locks behind of a process that died, of one whose number another has, of another host, and of nonsense."""
    wrong: list[str] = []
    root = folder / "locks"
    mine, host = os.getpid(), socket.gethostname()
    cases = {
        "empty": (b"", ""),
        "cut": (b'{"pid": 12', ""),
        "no object": (b"[1]", ""),
        "deep": (b"[" * 4000, ""),
        "dead": (json.dumps({"pid": 2**22 + 1, "host": host, "started": 1}).encode(), ""),
        "pid reused": (json.dumps({"pid": mine, "host": host, "started": 1}).encode(), ""),
        "other host": (json.dumps({"pid": mine, "host": f"{host}-2", "started": 1}).encode(), "BookLockedError"),
        "folder": (None, "BookFormatError"),
    }
    for name, (text, wanted) in cases.items():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        if text is None:
            (root / ".lock").mkdir()
        else:
            (root / ".lock").write_bytes(text)
        said = _said(lambda: specimens.make(root))
        if said != wanted:
            wrong.append(f"{name}: {said or 'no error'}, not {wanted or 'none'}")
        if not wanted and (verify(root) or (root / ".lock").exists()):
            wrong.append(f"{name}: the lock stayed, or the book is not whole")
    # A writer that is killed leaves its lock, which the next one takes over.
    shutil.rmtree(root, ignore_errors=True)
    child = os.fork()
    if child == 0:
        with BookWriter(root, specimens.plan()) as writer:
            unit = writer.pending()[0]
            writer.write(unit, specimens.said(writer.plan, *unit))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    if not (root / ".lock").exists():
        wrong.append("killed: no lock was left to be taken over")
    try:
        specimens.make(root, specimens.plan(), keyed=False)
    except BookLockedError as error:
        wrong.append(f"killed: {error}")
    return _outcome(len(cases) + 1, wrong, "lock files written by hand, and of a killed writer")


def _clocks(folder: Path) -> dict[str, Any]:
    """Let the clocks stand, run back, or lie far ahead while books are made; give files times from the future."""
    wrong: list[str] = []
    runs = 0
    whole = folder / "whole"
    _written_bytes(folder)
    files = kills._files(whole)
    backwards = iter(range(10**9, 0, -1))
    clocks: dict[str, Callable[[], float]] = {
        "standing": lambda: 1e9,
        "running back": lambda: float(next(backwards)),
        "in 1970": lambda: 0.0,
        "in 2100": lambda: 4.1e9,
        "jumping": lambda: (time.monotonic_ns() * 2654435761) % 4_000_000_000 * 1.0,
    }
    for name, clock in clocks.items():
        root = folder / "clocks"
        shutil.rmtree(root, ignore_errors=True)
        with patch("time.time", clock), patch("time.perf_counter", clock), patch("time.monotonic", clock):
            with BookWriter(root, specimens.plan(), keys=specimens.keys(100)) as writer:
                for unit in writer.pending()[:3]:
                    writer.write(unit, specimens.said(writer.plan, *unit))
            for path in root.rglob("*"):
                os.utime(path, (4.1e9, 4.1e9))
            for work in (lambda root=root: specimens.make(root), lambda root=root: Book(root, verify="all")):
                runs += 1
                said = _said(work)
                if said:
                    wrong.append(f"{name}: {said}")
            said = _said(lambda root=root: kills.WORKS["encoding anew"].run(_dense(root)))
            runs += 1
            if said:
                wrong.append(f"encoding anew, {name}: {said}")
        if kills._files(root) != files or verify(root):
            wrong.append(f"{name}: another book")
    return _outcome(runs, wrong, "time functions of the process replaced, files dated in 2099")


def _dense(root: Path) -> Path:
    place = root.parent / "clocks-dense"
    shutil.rmtree(place, ignore_errors=True)
    kills.start_dense(place)
    return place
