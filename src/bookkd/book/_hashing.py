"""Hashing whole files, and telling how much of them was read."""

from __future__ import annotations

from collections.abc import Callable
from io import FileIO

import xxhash

__all__ = ["Meter", "Progress", "digest_of_file"]

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all."""
_CHUNK = 2**20
"""Of what was just read, the hash then finds most in the L2 cache: 4 MiB took 5 % longer on an EPYC of 1 MiB; a second thread that
reads ahead took twice as long on a busy machine."""


class Meter:
    """Counts bytes and tells them.

    Args:
        progress: Told; nobody where None.
        total: Bytes in all.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, count: int) -> None:
        """Count more."""
        self._done += count
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def digest_of_file(file: FileIO, meter: Meter | None = None) -> str:
    """Return the xxh3_128 of a file from where it stands, opened without a buffer."""
    state = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_CHUNK))
    while count := file.readinto(buffer):
        state.update(buffer[:count])
        if meter is not None:
            meter.add(count)
    return state.hexdigest()
