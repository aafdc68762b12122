"""One shard: mapped, its header checked, its blocks hashed when they are first touched."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from bookkd.book import _container, _files, _layout, _manifest
from bookkd.book._numbers import gone
from bookkd.book.codecs.base import Array
from bookkd.core.errors import BookCorruptError, BookFormatError, BookMissingError, StorageError, expected

__all__ = ["Shard", "read_header"]


def read_header(data: memoryview | mmap.mmap, where: str) -> dict[str, _container.Span]:
    """Parse the header of a container that is in memory or mapped."""
    size = len(data)
    begin = _container.header_end(bytes(data[:8]), size, where)
    return _container.parse_header(bytes(data[8:begin]), begin, size, where)


class Shard:
    """Rows of one view; mapped when it is used and not mapped, so that another thread may unmap it at any time.

    Args:
        root: Folder of the book.
        file: The view file that names it.
        index: Its place there.
        stored: The planned tensors.
        sidecar: Its hashes; None to trust the disk.
    """

    def __init__(
        self,
        root: Path,
        file: _manifest.ViewFile,
        index: int,
        stored: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
        sidecar: _manifest.Sidecar | None,
    ) -> None:
        self._root = root
        self._relative = f"{_layout.view_folder(file.view)}/{file.stems[index]}.safetensors"
        self._where = str(root / self._relative)
        self._view, self._start, self._stop = file.view, int(file.starts[index]), int(file.stops[index])
        self._size = int(file.sizes[index])
        self._stored = stored
        self._arrays: dict[str, Array] = {}
        self._unchecked: dict[str, npt.NDArray[np.bool_]] = {}
        self._hashes: Mapping[str, npt.NDArray[np.uint64]] = {}
        self._shift = 0
        if sidecar is not None:
            if set(sidecar.blocks) != set(stored):
                raise BookFormatError(
                    expected("blocks", "hashes of the planned tensors", sorted(sidecar.blocks)[:4], where=self._where)
                )
            self._shift = sidecar.block_rows.bit_length() - 1
            self._hashes = sidecar.blocks
            self._unchecked = {name: np.ones(len(hashes), dtype=np.bool_) for name, hashes in sidecar.blocks.items()}

    def unmap(self) -> None:
        """Let the mapping go; which blocks were checked stays known."""
        self._arrays = {}

    def take(self, rows: npt.NDArray[np.int64], out: Mapping[str, Array], place: slice) -> None:
        """Copy `rows` (counted from the shard's first) of each tensor in `out` to `out[name][place]`."""
        arrays = self._arrays
        if not arrays:
            arrays = self._arrays = self._map()
        if self._unchecked:
            self._check(arrays, rows, out)
        for name, array in out.items():
            # The ids were checked: "clip" only spares numpy a buffered copy of the output.
            np.take(arrays[name], rows, axis=0, out=array[place], mode="clip")

    def _map(self) -> dict[str, Array]:
        """Map the file after checking its size and header."""
        try:
            descriptor, size = _files.open_inside(self._root, self._relative)
        except BookMissingError as error:
            raise gone(self._root, self._relative, error) from error
        try:
            if size != self._size:
                raise BookCorruptError(
                    f"Expected {self._where} to have {self._size} bytes, got {size}. Run `bookkd verify`."
                )
            mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise StorageError(f"Expected {self._where} to be mappable, got: {error}. Lower `max_open`.") from error
        finally:
            os.close(descriptor)
        spans = read_header(mapped, self._where)
        _container.check_layout(spans, self._stored, self._stop - self._start, self._where)
        return {name: np.ndarray(span.shape, span.dtype, mapped, span.start) for name, span in spans.items()}

    def _check(self, arrays: Mapping[str, Array], rows: npt.NDArray[np.int64], names: Mapping[str, Array]) -> None:
        blocks = rows >> self._shift
        for name in names:
            unchecked = self._unchecked.get(name)
            if unchecked is None:
                continue
            fresh = unchecked[blocks]
            if fresh.any():
                for block in np.unique(blocks[fresh]).tolist():
                    self._check_block(arrays[name], name, block)
                    unchecked[block] = False
                if not unchecked.any():
                    self._unchecked.pop(name, None)

    def _check_block(self, array: Array, name: str, block: int) -> None:
        first = block << self._shift
        rows = array[first : first + (1 << self._shift)]
        if xxhash.xxh3_64_intdigest(rows.data) != int(self._hashes[name][block]):
            stop = min(self._start + first + (1 << self._shift), self._stop)
            raise BookCorruptError(
                f"Expected block {block} of {name} in {self._where} (view {self._view}, samples {self._start + first} "
                f"to {stop}) to have its recorded xxh3_64, got another. The bytes were changed; run `bookkd verify`, "
                f"then restore or repair the shard."
            )
