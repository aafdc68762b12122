"""One shard: mapped, its header checked, its blocks hashed when they are first touched."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from bookkd.book import _container, _files, _layout, _manifest
from bookkd.book._ends import Ends
from bookkd.book._numbers import gone
from bookkd.book.codecs.base import Array
from bookkd.book.plan import Plan
from bookkd.book.ragged import RaggedArray, item_places, offsets_of
from bookkd.book.remote import Root
from bookkd.core.errors import BookCorruptError, BookFormatError, BookMissingError, StorageError, expected

__all__ = ["Mapped", "Shard", "read_header"]


def read_header(data: memoryview | mmap.mmap, where: str, flat: Container[str] = ()) -> dict[str, _container.Span]:
    """Parse the header of a container that is in memory or mapped; `flat` as `_container.parse_header`."""
    size = len(data)
    begin = _container.header_end(bytes(data[:8]), size, where)
    return _container.parse_header(bytes(data[8:begin]), begin, size, where, flat)


@dataclass(frozen=True)
class Mapped:
    """What reading needs, in one piece: another thread may unmap the shard meanwhile."""

    arrays: Mapping[str, Array]
    ends: Mapping[str, Ends]
    file: mmap.mmap
    spans: Mapping[str, _container.Span]


class Shard:
    """Rows of one view; mapped when it is used and not mapped, so that another thread may unmap it at any time.

    Args:
        root: Place of the book.
        file: The view file that names it.
        index: Its place there.
        plan: Of the book.
        sidecar: Its hashes; None to trust the disk.
    """

    def __init__(
        self, root: Root, file: _manifest.ViewFile, index: int, plan: Plan, sidecar: _manifest.Sidecar | None
    ) -> None:
        self._root = root
        self._relative = f"{_layout.view_folder(file.view)}/{file.stems[index]}.safetensors"
        self._where = str(root / self._relative)
        self._view, self._start, self._stop = file.view, int(file.starts[index]), int(file.stops[index])
        self._size = int(file.sizes[index])
        self._stored, self._flat = plan.stored, plan.flat
        self._mapped: Mapped | None = None
        self._unchecked: dict[str, npt.NDArray[np.bool_]] = {}
        self._hashes: Mapping[str, npt.NDArray[np.uint64]] = {}
        self._shift = (plan.block_rows or 1).bit_length() - 1
        if sidecar is not None:
            if set(sidecar.blocks) != set(self._stored):
                raise BookFormatError(
                    expected("blocks", "hashes of the planned tensors", sorted(sidecar.blocks)[:4], where=self._where)
                )
            if self._flat and sidecar.block_rows != plan.block_rows:
                wish = f"{plan.block_rows}, as the plan has it"
                raise BookFormatError(expected("block_rows", wish, sidecar.block_rows, where=self._where))
            self._shift = sidecar.block_rows.bit_length() - 1
            self._hashes = sidecar.blocks
            self._unchecked = {name: np.ones(len(hashes), dtype=np.bool_) for name, hashes in sidecar.blocks.items()}
        blocks = (self._stop - self._start - 1 >> self._shift) + 1
        self._unordered = {flat.ends: np.ones(blocks, dtype=np.bool_) for flat in self._flat.values()}

    @property
    def held(self) -> int:
        """Bytes that keeping it takes, besides what the system may take back."""
        return 0

    def unmap(self) -> None:
        """Let the mapping go; which blocks were checked stays known."""
        self._mapped = None

    def take(self, rows: npt.NDArray[np.int64], out: Mapping[str, Array], place: slice) -> None:
        """Copy `rows` (counted from the shard's first) of each tensor in `out` to `out[name][place]`."""
        mapped = self._current()
        self._check(mapped, rows, out)
        for name, array in out.items():
            # The ids were checked: "clip" only spares numpy a buffered copy of the output.
            np.take(mapped.arrays[name], rows, axis=0, out=array[place], mode="clip")

    def take_items(self, rows: npt.NDArray[np.int64], names: Sequence[str]) -> dict[str, RaggedArray]:
        """Return the items of `rows` (counted from the shard's first) of each flat tensor in `names`."""
        mapped, found = self._current(), {}
        groups: dict[str, list[str]] = defaultdict(list)
        for name in names:
            groups[self._flat[name].ends].append(name)
        for ends, flat in groups.items():
            # The ends first: they say which bytes a block of items is, and how much memory is taken.
            self._check(mapped, rows, [ends])
            self._check_order(mapped, ends, rows)
            self._check(mapped, rows, flat)
            starts, counts = mapped.ends[ends].of(rows)
            places, offsets = item_places(starts, counts), offsets_of(counts)
            for name in flat:
                found[name] = RaggedArray(np.take(mapped.arrays[name], places, axis=0), offsets)
        return found

    def prefetch(self, start: int, stop: int, names: Iterable[str]) -> None:
        """Ask the system to read rows `start` to `stop` of each tensor in `names` meanwhile, where it can be asked."""
        advice = getattr(mmap, "MADV_WILLNEED", None)
        if advice is None:
            return
        mapped = self._current()
        for name in names:
            span, first, last = mapped.spans[name], start, stop
            if name in self._flat:
                items = mapped.ends[self._flat[name].ends].first
                first, last = int(items[start >> self._shift]), int(items[(stop - 1 >> self._shift) + 1])
            begin = span.start + first * span.row_bytes
            begin -= begin % mmap.PAGESIZE
            end = span.start + last * span.row_bytes
            if begin < end:
                # Advice is all it is: what the system refuses is read when it is touched.
                with contextlib.suppress(OSError):
                    mapped.file.madvise(advice, begin, end - begin)

    def _current(self) -> Mapped:
        mapped = self._mapped
        if mapped is None:
            mapped = self._mapped = self._map()
        return mapped

    def _descriptor(self) -> tuple[int, int]:
        """Open the file; return its descriptor and its size."""
        try:
            return _files.open_inside(self._root, self._relative)
        except BookMissingError as error:
            raise gone(self._root, self._relative, error) from error

    def _map(self) -> Mapped:
        """Map the file after checking its size and header, and that its items divide into blocks."""
        descriptor, size = self._descriptor()
        try:
            if size != self._size:
                raise BookCorruptError(
                    f"Expected {self._where} to have {self._size} bytes, got {size}. Run `bookkd verify`."
                )
            _container.header_end(os.read(descriptor, 8), size, self._where)  # an empty file cannot be mapped
            mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise StorageError(f"Expected {self._where} to be mappable, got: {error}. Lower `max_open`.") from error
        finally:
            os.close(descriptor)
        found = self._arrays(mapped, self._spans(mapped))
        for name, each in found.ends.items():
            fault = each.fault()
            if fault:
                # Where bits flipped, the hashes name the block.
                self._check(found, np.arange(self._stop - self._start), [name])
                raise self._bad_ends(name, fault)
        return found

    def _spans(self, mapped: mmap.mmap) -> dict[str, _container.Span]:
        """Return where the tensors lie, after checking that they are the planned ones."""
        spans = read_header(mapped, self._where, self._flat)
        _container.check_layout(spans, self._stored, self._stop - self._start, self._where, self._flat)
        return spans

    def _arrays(self, mapped: mmap.mmap, spans: Mapping[str, _container.Span]) -> Mapped:
        arrays = {name: np.ndarray(span.shape, span.dtype, mapped, span.start) for name, span in spans.items()}
        ends = {
            flat.ends: Ends(arrays[flat.ends], self._shift, len(arrays[name]), flat.most)
            for name, flat in self._flat.items()
        }
        return Mapped(arrays, ends, mapped, spans)

    def _bad_ends(self, name: str, fault: str) -> BookFormatError:
        return BookFormatError(
            f"Expected {name} in {self._where} to say where the items of each row end, got {fault}. Run `bookkd verify`."
        )

    def _check_order(self, mapped: Mapped, ends: str, rows: npt.NDArray[np.int64]) -> None:
        unordered = self._unordered.get(ends)
        if unordered is None:
            return
        blocks = rows >> self._shift
        fresh = unordered[blocks]
        if fresh.any():
            for block in np.unique(blocks[fresh]).tolist():
                fault = mapped.ends[ends].fault_of(block)
                if fault:
                    raise self._bad_ends(ends, f"{fault} in block {block}")
                unordered[block] = False
            if not unordered.any():
                self._unordered.pop(ends, None)

    def _check(self, mapped: Mapped, rows: npt.NDArray[np.int64], names: Iterable[str]) -> None:
        if not self._unchecked:
            return
        blocks = rows >> self._shift
        for name in names:
            unchecked = self._unchecked.get(name)
            if unchecked is None:
                continue
            fresh = unchecked[blocks]
            if fresh.any():
                for block in np.unique(blocks[fresh]).tolist():
                    self._check_block(mapped, name, block)
                    unchecked[block] = False
                if not unchecked.any():
                    self._unchecked.pop(name, None)

    def _check_block(self, mapped: Mapped, name: str, block: int) -> None:
        first = block << self._shift
        place = slice(first, first + (1 << self._shift))
        if name in self._flat:
            items = mapped.ends[self._flat[name].ends].first
            place = slice(int(items[block]), int(items[block + 1]))
        if xxhash.xxh3_64_intdigest(mapped.arrays[name][place].data) != int(self._hashes[name][block]):
            stop = min(self._start + first + (1 << self._shift), self._stop)
            raise BookCorruptError(
                f"Expected block {block} of {name} in {self._where} (view {self._view}, samples {self._start + first} "
                f"to {stop}) to have its recorded xxh3_64, got another. The bytes were changed; run `bookkd verify`, "
                f"then restore or repair the shard."
            )
