"""Memory of the process: what was freed is kept where the C library would give it back, and the most of a while is measured."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

__all__ = ["forget_peak_memory", "keep_freed_memory", "peak_memory"]

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
