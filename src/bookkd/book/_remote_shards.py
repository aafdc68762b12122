"""Shards that lie on a server: as whole files in the cache, or as the blocks that are touched, in memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bookkd.book import _container, _layout, _manifest
from bookkd.book._numbers import gone
from bookkd.book._shard import Mapped, Shard
from bookkd.book.codecs.base import Array
from bookkd.book.plan import Plan
from bookkd.book.ragged import RaggedArray
from bookkd.book.remote import RemotePath
from bookkd.book.remote.cache import ShardCache
from bookkd.core.errors import BookCorruptError, BookFormatError, BookMissingError, StorageError

__all__ = ["CachedShard", "RemoteShard", "StreamedShard", "sidecar_in"]

_T = TypeVar("_T")
_HEAD = 2**16
"""Bytes that are fetched first: mostly the whole header is in them."""
_CALL_BYTES = 64 * 2**20
"""Bytes of one call: they are in memory twice for a moment."""


def sidecar_in(cache: ShardCache | None, root: RemotePath, file: _manifest.ViewFile, index: int) -> _manifest.Sidecar:
    """Return the sidecar of a shard, from the cache where there is one.

    Raises:
        BookMissingError: if the server has it no more.
        BookFormatError: if it is not what the view file says; BookCorruptError if it has other bytes.
    """
    size = int(file.sidecar_sizes[index])
    if cache is None or size > _layout.JSON_LIMIT:  # which is refused where it is read
        return _manifest.read_sidecar(root, file, index)
    place = root / f"{_layout.view_folder(file.view)}/{file.stems[index]}.json"
    return _manifest.read_sidecar(root, file, index, cache.read(place, size, file.sidecars[index]))


class RemoteShard(Shard):
    """A shard that is fetched before it is read; arguments as `Shard`."""

    def has(self, rows: npt.NDArray[np.int64], names: Sequence[str]) -> bool:
        """Say whether these rows can be read without fetching."""
        raise NotImplementedError

    def prepare(self, rows: npt.NDArray[np.int64] | None, names: Sequence[str]) -> None:
        """Fetch what reading these rows needs, and map it; of rows to come, None, fetch all. May run in another thread."""
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

    @property
    def held(self) -> int:
        """Bytes of the cache that it takes, whether it is mapped or not."""
        return self._size

    def has(self, rows: npt.NDArray[np.int64], names: Sequence[str]) -> bool:
        return self._mapped is not None

    def prepare(self, rows: npt.NDArray[np.int64] | None, names: Sequence[str]) -> None:
        if rows is None:
            os.close(self._descriptor()[0])
        else:
            self._mended(self._current)

    def take(self, rows: npt.NDArray[np.int64], out: Mapping[str, Array], place: slice) -> None:
        self._mended(lambda: super(CachedShard, self).take(rows, out, place))

    def take_items(self, rows: npt.NDArray[np.int64], names: Sequence[str]) -> dict[str, RaggedArray]:
        return self._mended(lambda: super(CachedShard, self).take_items(rows, names))

    def _descriptor(self) -> tuple[int, int]:
        try:
            return self._cache.open(self._place, self._size, self._digest), self._size
        except BookMissingError as error:
            raise gone(self._root, self._relative, error) from error

    def _mended(self, read: Callable[[], _T]) -> _T:
        """Read; where the cached file was damaged after it had been checked, in its header or elsewhere, fetch it once more."""
        try:
            found = read()
        except BookFormatError:
            mapped = self._mapped is not None
            self.unmap()  # Windows deletes no file that is mapped
            if self._renewed or not (self._cache.drop(self._place, self._digest) or mapped):
                raise  # it is the server that sends other bytes, and was asked twice
            self._renewed = True
            found = read()
        self._renewed = False
        return found


@dataclass(frozen=True)
class _Streamed(Mapped):
    """What was fetched of a shard, in memory of its length, of which only what is written exists.

    Args:
        fetched: Tensor -> of each block, whether it is there and was checked.
        begun: Bytes from the start that are there, checked or not.
        sizes: Bytes that were fetched, one entry for each call.
    """

    fetched: Mapping[str, npt.NDArray[np.bool_]]
    begun: int
    sizes: list[int]


class StreamedShard(RemoteShard):
    """Blocks in memory, each checked when it arrives; arguments as `Shard`, its sidecar always there."""

    def __init__(
        self, root: RemotePath, file: _manifest.ViewFile, index: int, plan: Plan, sidecar: _manifest.Sidecar
    ) -> None:
        super().__init__(root, file, index, plan, sidecar)
        self._place = root / self._relative

    @property
    def held(self) -> int:
        """Bytes of memory that it takes."""
        mapped = self._mapped
        return sum(mapped.sizes) if isinstance(mapped, _Streamed) else 0

    def has(self, rows: npt.NDArray[np.int64], names: Sequence[str]) -> bool:
        mapped = self._mapped
        if not isinstance(mapped, _Streamed):
            return False
        wanted = [*names, *{self._flat[name].ends for name in names if name in self._flat}]
        return next(self._missing(mapped, rows, wanted), None) is None

    def prepare(self, rows: npt.NDArray[np.int64] | None, names: Sequence[str]) -> None:
        mapped = self._current()
        if rows is not None:
            self._check(mapped, rows, names)

    def _map(self) -> Mapped:
        try:
            return self._begun()
        except BookFormatError:  # a second time, as blocks are fetched that are wrong
            return self._begun()

    def _begun(self) -> _Streamed:
        """Fetch the header, and the ends of all items: where one lies they say together, in 4 bytes a row."""
        buffer, sizes = _memory(self._size, self._where), list[int]()
        begun = min(_HEAD, self._size)
        self._fetch_into(buffer, [(0, begun)], sizes)
        begin = _container.header_end(bytes(buffer[:8]), self._size, self._where)
        if begin > begun:
            self._fetch_into(buffer, [(begun, begin)], sizes)
            begun = begin
        spans = self._spans(buffer)
        for name in {flat.ends for flat in self._flat.values()}:
            self._fetch_into(buffer, [(max(spans[name].start, begun), spans[name].stop)], sizes)
        found = self._arrays(buffer, spans)
        blocks = {name: np.zeros(len(hashes), dtype=np.bool_) for name, hashes in self._hashes.items()}
        streamed = _Streamed(found.arrays, found.ends, buffer, spans, blocks, begun, sizes)
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
            while count < len(wanted) and (not count or size + wanted[count][1] - wanted[count][0] <= _CALL_BYTES):
                size += wanted[count][1] - wanted[count][0]
                count += 1
            self._fetch_blocks(mapped, wanted[:count])
            wanted = wanted[count:]

    def _fetch_blocks(self, mapped: _Streamed, blocks: Sequence[tuple[int, int, str, int]]) -> None:
        ranges = _joined((max(start, mapped.begun), stop) for start, stop, _, _ in blocks)
        self._fetch_into(mapped.file, ranges, mapped.sizes)
        for start, stop, name, block in blocks:
            try:
                self._check_block(mapped, name, block)
            except BookCorruptError:
                self._fetch_into(mapped.file, [(start, stop)], [])
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

    def _fetch_into(self, buffer: mmap.mmap, ranges: Sequence[tuple[int, int]], sizes: list[int]) -> None:
        ranges = [(start, stop) for start, stop in ranges if stop > start]
        if ranges:
            starts, stops = zip(*ranges, strict=True)
            for start, stop, piece in zip(starts, stops, self._place.ranges(starts, stops), strict=True):
                buffer[start:stop] = bytes(piece)
                sizes.append(stop - start)


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ordered ranges with those that touch made one."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        elif start < stop:
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
