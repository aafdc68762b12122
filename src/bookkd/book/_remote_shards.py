"""Shards that lie on a server: as whole files in the cache, or as the blocks that are touched, in memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bookkd.book import _container, _manifest
from bookkd.book._numbers import gone
from bookkd.book._shard import Mapped, Shard
from bookkd.book.codecs.base import Array
from bookkd.book.plan import Plan
from bookkd.book.ragged import RaggedArray
from bookkd.book.remote import RemotePath
from bookkd.book.remote.cache import ShardCache
from bookkd.core.errors import BookCorruptError, BookMissingError, StorageError

__all__ = ["CachedShard", "RemoteShard", "StreamedShard"]

_HEAD = 2**16
_AT_ONCE = 64 * 2**20
"""Bytes of one call: they are in memory twice for a moment."""


class RemoteShard(Shard):
    """A shard that is fetched before it is mapped; arguments as `Shard`."""

    held = 0
    """Bytes that keeping it mapped costs."""

    @property
    def ready(self) -> bool:
        """Whether it can be read without fetching, as far as is known without looking."""
        return self._mapped is not None

    def prepare(self, rows: npt.NDArray[np.int64], names: Sequence[str]) -> None:
        """Fetch what reading these rows needs; may run in another thread."""
        raise NotImplementedError


class CachedShard(RemoteShard):
    """A file of the cache.

    Args:
        root: Address of the book.
        file: The view file that names it.
        index: Its place there.
        plan: Of the book.
        sidecar: Its digest and hashes.
        cache: Where it is kept.
        check: If false, blocks are not hashed again when they are touched.
    """

    def __init__(
        self,
        root: RemotePath,
        file: _manifest.ViewFile,
        index: int,
        plan: Plan,
        sidecar: _manifest.Sidecar,
        *,
        cache: ShardCache,
        check: bool,
    ) -> None:
        super().__init__(root, file, index, plan, sidecar if check else None)
        self._place, self._cache, self._digest = root / self._relative, cache, sidecar.digest
        self._renewed = False
        self.held = self._size

    def prepare(self, rows: npt.NDArray[np.int64], names: Sequence[str]) -> None:
        os.close(self._descriptor()[0])

    def take(self, rows: npt.NDArray[np.int64], out: Mapping[str, Array], place: slice) -> None:
        try:
            super().take(rows, out, place)
        except BookCorruptError:
            self._renew()
            super().take(rows, out, place)

    def take_items(self, rows: npt.NDArray[np.int64], names: Sequence[str]) -> dict[str, RaggedArray]:
        try:
            return super().take_items(rows, names)
        except BookCorruptError:
            self._renew()
            return super().take_items(rows, names)

    def _descriptor(self) -> tuple[int, int]:
        try:
            return self._cache.open(self._place, self._size, self._digest), self._size
        except BookMissingError as error:
            raise gone(self._root, self._relative, error) from error

    def _renew(self) -> None:
        """Fetch it again, once, where the cached file was damaged after it had been checked."""
        if self._renewed:
            raise
        self._renewed = True
        self._cache.drop(self._place, self._digest)
        self.unmap()


@dataclass(frozen=True)
class _Streamed(Mapped):
    """What was fetched of a shard, in memory of its length, of which only what is written exists."""

    fetched: Mapping[str, npt.NDArray[np.bool_]]


class StreamedShard(RemoteShard):
    """Blocks in memory, each checked when it arrives; arguments as `Shard`, its sidecar always there."""

    def __init__(
        self, root: RemotePath, file: _manifest.ViewFile, index: int, plan: Plan, sidecar: _manifest.Sidecar
    ) -> None:
        super().__init__(root, file, index, plan, sidecar)
        self._place = root / self._relative

    @property
    def ready(self) -> bool:
        """False: which blocks are there is known when rows are named."""
        return False

    def prepare(self, rows: npt.NDArray[np.int64], names: Sequence[str]) -> None:
        mapped = self._current()
        fixed = [name for name in names if name not in self._flat]
        flat = [name for name in names if name in self._flat]
        self._check(mapped, rows, [*fixed, *{self._flat[name].ends for name in flat}])
        self._check(mapped, rows, flat)

    def unmap(self) -> None:
        super().unmap()
        self.held = 0

    def _map(self) -> Mapped:
        buffer = _memory(self._size, self._where)
        self._fetch_into(buffer, [(0, min(_HEAD, self._size))])
        begin = _container.header_end(bytes(buffer[:8]), self._size, self._where)
        if begin > _HEAD:
            self._fetch_into(buffer, [(_HEAD, begin)])
        spans = self._spans(buffer)
        for name in {flat.ends for flat in self._flat.values()}:
            # Where items lie is said by all ends of a shard together: 4 bytes a row.
            self._fetch_into(buffer, [(spans[name].start, spans[name].stop)])
        found = self._arrays(buffer, spans)
        blocks = {name: np.zeros(len(hashes), dtype=np.bool_) for name, hashes in self._hashes.items()}
        streamed = _Streamed(found.arrays, found.ends, buffer, spans, blocks)
        for name, ends in found.ends.items():
            for block in range(len(blocks[name])):
                self._check_block(streamed, name, block)
            blocks[name][:] = True
            fault = ends.fault()
            if fault:
                raise self._bad_ends(name, fault)
        return streamed

    def _check(self, mapped: Mapped, rows: npt.NDArray[np.int64], names: Iterable[str]) -> None:
        """Fetch the blocks of these rows that are not there, in few requests, and check each."""
        if not isinstance(mapped, _Streamed):
            return
        wanted = sorted(self._missing(mapped, rows, names))
        while wanted:
            count, size = 0, 0
            while count < len(wanted) and (not count or size + wanted[count][1] - wanted[count][0] <= _AT_ONCE):
                size += wanted[count][1] - wanted[count][0]
                count += 1
            self._fetch_blocks(mapped, wanted[:count])
            wanted = wanted[count:]

    def _fetch_blocks(self, mapped: _Streamed, blocks: Sequence[tuple[int, int, str, int]]) -> None:
        self._fetch_into(mapped.file, _joined((start, stop) for start, stop, _, _ in blocks))
        for start, stop, name, block in blocks:
            try:
                self._check_block(mapped, name, block)
            except BookCorruptError:
                self._fetch_into(mapped.file, [(start, stop)])
                self._check_block(mapped, name, block)
            mapped.fetched[name][block] = True

    def _missing(
        self, mapped: _Streamed, rows: npt.NDArray[np.int64], names: Iterable[str]
    ) -> Iterator[tuple[int, int, str, int]]:
        """Yield (first byte, end, tensor, block) of what is touched and not there."""
        touched = np.unique(rows >> self._shift)
        for name in names:
            span, rows_of_block = mapped.spans[name], 1 << self._shift
            for block in touched[~mapped.fetched[name][touched]].tolist():
                if name in self._flat:
                    first = mapped.ends[self._flat[name].ends].first
                    begin, end = int(first[block]), int(first[block + 1])
                else:
                    begin, end = block * rows_of_block, min((block + 1) * rows_of_block, span.shape[0])
                yield span.start + begin * span.row_bytes, span.start + end * span.row_bytes, name, block

    def _fetch_into(self, buffer: mmap.mmap, ranges: Sequence[tuple[int, int]]) -> None:
        ranges = [(start, stop) for start, stop in ranges if stop > start]
        if ranges:
            starts, stops = zip(*ranges, strict=True)
            for start, stop, piece in zip(starts, stops, self._place.ranges(starts, stops), strict=True):
                buffer[start:stop] = bytes(piece)
                self.held += stop - start


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ordered ranges with those that touch made one."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _memory(size: int, where: str) -> mmap.mmap:
    """Return memory of which only the pages that are written exist."""
    try:
        if os.name == "nt":
            return mmap.mmap(-1, size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        return mmap.mmap(-1, size, flags=flags)
    except (OSError, ValueError, OverflowError) as error:
        raise StorageError(f"Expected memory for a shard of {size} bytes ({where}), got: {error}.") from error
