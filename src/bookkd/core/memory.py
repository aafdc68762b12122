"""Memory of the process: freed memory that is kept, the most that was held, and what may still be taken."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_memory", "forget_peak_memory", "keep_freed_memory", "peak_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in glibc's malloc.h."""
_LARGE = 2**30
_ALLOWED = 32 * 2**20
"""DEFAULT_MMAP_THRESHOLD_MAX on 64-bit systems."""


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next allocation, instead of handing it back to the system.

    The activations of a network come and go at every layer. glibc returns blocks of more than 32 MiB, and the free end of
    the heap, to the system, which clears every page again at the next use: 0.8 million page faults and 15 % of the time
    of a ResNet-56 over 2,560 images of 32 x 32 on a CPU, and more or less of it from process to process. The price is
    that a process keeps what lies free in its heap, at the end of it up to 1 GiB.

    Blocks of less than M_MMAP_THRESHOLD come from the heap and stay there; M_TRIM_THRESHOLD is how much may lie free at
    its end. Both are asked to be 1 GiB. glibc 2.36 takes that; mallopt(3) names 32 MiB as the most of the first, and a
    glibc that holds to it refuses more: there it is set to 32 MiB, and blocks from that size on still go back. In threads
    other than the main one the heap is one of several of 64 MiB each, and blocks that do not fit into one go back.

    For the whole process and its forks; the program calls it before every verb.

    Returns:
        Whether both were set; False, and nothing changed, where the library is another one (macOS, Windows, musl) or
        refuses 32 MiB too (32-bit).

    Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD; sizes of threads and of glibc 2.36 measured by page faults.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # In this order: either setting ends glibc's own adjustment, and the end of the heap alone would leave every block from
    # 128 KiB on to the system.
    kept = mallopt(_MMAP_THRESHOLD, _LARGE) or mallopt(_MMAP_THRESHOLD, _ALLOWED)
    return bool(kept and mallopt(_TRIM_THRESHOLD, _LARGE))


def peak_memory() -> int | None:
    """Return the most memory that the process held in RAM, in bytes: since `forget_peak_memory`, or since it started.

    Returns:
        None where the system does not say it (Windows).

    >>> (peak_memory() or 2**20) >= 2**20
    True

    Source: proc_pid_status(5), VmHWM; else getrusage(2), ru_maxrss, which on Linux counts a parent's memory at the fork too.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_memory() -> bool:
    """Let `peak_memory` begin anew, so that it is of what comes; elsewhere than on Linux it goes on from the start.

    Returns:
        Whether it could be done.

    Source: proc_pid_clear_refs(5), 5.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def available_memory(root: str | Path = "/") -> int | None:
    """Return the bytes that may still be taken without swapping, cached files counted as free.

    The least of what the machine has (MemAvailable) and of what the limits of the process's control groups leave, those of all
    groups above it included, in version 1 and 2; so that it is right in a container too.

    Args:
        root: Where `proc` and `sys` are mounted.

    Returns:
        None where the system does not say it (macOS, Windows).

    >>> available_memory() != 0
    True

    Source: proc_meminfo(5), MemAvailable; the kernel's cgroup-v2.rst (memory.max, memory.current, memory.stat) and
    cgroup-v1/memory.rst.
    """
    known = [_available_here(Path(root)), *_left_by_groups(Path(root))]
    return min((each for each in known if each is not None), default=None)


def _available_here(root: Path) -> int | None:
    found = _numbers(root / "proc" / "meminfo").get("MemAvailable:")
    return None if found is None else found * 1024


def _left_by_groups(root: Path) -> Iterator[int]:
    """Return what each limit leaves: its bytes less those that are taken, but for cached files."""
    for version, names in _GROUPS.items():
        base = root / "sys" / "fs" / "cgroup" / ("memory" if version == 1 else "")
        for folder in _groups(root, base, version):
            limit, taken = (_number(folder / name) for name in names[:2])
            if limit is not None and taken is not None:
                stat = _numbers(folder / "memory.stat")
                yield max(0, limit - max(0, taken - sum(stat.get(name, 0) for name in names[2:])))


_GROUPS = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file", "total_inactive_file"),
    2: ("memory.max", "memory.current", "active_file", "inactive_file"),
}
"""Version of control groups -> files of the limit and of what is taken; the rows of memory.stat that are cached files."""


def _groups(root: Path, base: Path, version: int) -> list[Path]:
    """Return the folders of the process's memory group and of all above it; in a container only the last may be there."""
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if (version == 1 and "memory" in controllers.split(",")) or (version == 2 and number == "0"):
            inside = Path(path.lstrip("/"))
            return [base / each for each in (inside, *inside.parents) if ".." not in each.parts]
    return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _numbers(path: Path) -> dict[str, int]:
    """Return the rows `name number ...` of a file."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
