"""The container: safetensors, written by its library and read by a parser that trusts nothing.

A header is `u64 little-endian length`, then that many bytes of JSON; the data follow without holes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Container, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors.numpy import save

from bookkd.book.codecs.base import Array
from bookkd.book.ragged import Flat
from bookkd.core import jsonio
from bookkd.core.errors import BookCorruptError, BookFormatError

__all__ = ["HEADER_LIMIT", "METADATA", "Span", "check_layout", "header_end", "pack", "parse_header"]

HEADER_LIMIT = 4 * 2**20
METADATA = {"format": "bookkd 1"}
_DTYPES = {
    "BOOL": "bool", "F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip


@dataclass(frozen=True)
class Span:
    """Where one tensor lies in a file.

    Args:
        dtype: Little-endian.
        shape: All axes; the first one is rows, or items of a ragged part.
        start: First byte, counted from the start of the file.
        stop: End.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row or item."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


def pack(tensors: Mapping[str, Array]) -> bytes:
    """Return the bytes of a container.

    One metadata entry at most: safetensors does not fix the order of several, and digests must be reproducible.
    """
    plain = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return bytes(save(plain, metadata=METADATA))


def header_end(head: bytes, size: int, where: str) -> int:
    """Return where the data begin, from the first 8 bytes and the size of the file.

    Raises:
        BookCorruptError: if the file is too short for its header.
        BookFormatError: if the header would be longer than the format allows.
    """
    if len(head) < 8 or size < 10:
        raise BookCorruptError(
            f"Expected {where} to start with a header, got {size} bytes. The file is cut; run `bookkd verify`."
        )
    length = int(struct.unpack("<Q", head[:8])[0])
    if not 2 <= length <= HEADER_LIMIT:
        raise BookFormatError(
            f"Expected {where} to have a header of at most {HEADER_LIMIT} bytes, got {length}. Run `bookkd verify`."
        )
    if 8 + length > size:
        raise BookCorruptError(
            f"Expected {where} to have at least {8 + length} bytes, got {size}. The file is cut; run `bookkd verify`."
        )
    return 8 + length


def parse_header(header: bytes, begin: int, size: int, where: str, flat: Container[str] = ()) -> dict[str, Span]:
    """Parse the JSON of a header and check that its tensors fill the file exactly.

    Args:
        header: The bytes between the length and the data.
        begin: Where the data begin in the file.
        size: Size of the file.
        where: File name for errors.
        flat: Tensors that may have no items; every other one has rows.

    Raises:
        BookFormatError: unknown dtype, wrong sizes, overlap, a hole, or bytes outside the file.
    """
    found = jsonio.parse(header, where, limit=HEADER_LIMIT)
    found.pop("__metadata__", None)
    spans = {name: _span(name, entry, begin, where, name in flat) for name, entry in found.items()}
    end = begin
    for name, span in sorted(spans.items(), key=lambda item: (item[1].start, item[1].stop)):
        if span.start != end:
            raise _bad(where, f"tensor {name} to start at byte {end}, got {span.start}: an overlap or a hole")
        end = span.stop
    if end != size:
        raise _bad(where, f"its tensors to end at byte {size}, got {end}")
    return spans


def check_layout(
    spans: Mapping[str, Span],
    stored: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    rows: int,
    where: str,
    flat: Mapping[str, Flat] = MappingProxyType({}),
) -> None:
    """Refuse a container whose tensors are not exactly the planned ones with `rows` rows.

    The flat ones of one field have equally many items, as many as `rows` records may have at most.
    """
    if set(spans) != set(stored):
        other = sorted(set(spans) ^ set(stored))[:4]
        raise _bad(where, f"exactly the planned tensors, got a difference in {', '.join(other)}")
    items: dict[str, int] = {}
    for name, (dtype, row) in stored.items():
        span = spans[name]
        first = rows
        if name in flat:
            ends, most = flat[name]
            first = items.setdefault(ends, span.shape[0])
            if first > rows * most:
                raise _bad(where, f"{name} to have at most {most} items in each of {rows} rows, got {first}")
        if span.shape != (first, *row) or span.dtype != dtype:
            raise _bad(where, f"{name} to be {dtype} {(first, *row)}, got {span.dtype} {span.shape}")


def _span(name: str, entry: Any, begin: int, where: str, flat: bool) -> Span:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(where, f"tensor {name} to have dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise _bad(where, f"tensor {name} to have a known dtype")
    if not (_sizes(shape) and _sizes(offsets) and len(shape) >= 1 and len(offsets) == 2 and len(shape) <= 16):
        raise _bad(where, f"tensor {name} to have whole-number shape and data_offsets")
    dtype = np.dtype(_DTYPES[code])
    count = 1
    for size in shape:
        count *= size  # Python integers do not overflow
    if min(shape[1:] if flat else shape, default=1) < 1 or offsets[1] - offsets[0] != count * dtype.itemsize:
        raise _bad(where, f"tensor {name} to have as many bytes as its shape, and no empty axis")
    return Span(dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)


def _bad(where: str, what: str) -> BookFormatError:
    line = " ".join(what.split())[:300]  # names of tensors come from the file
    return BookFormatError(f"Expected {where} to be a shard of this book: {line}. Run `bookkd verify`.")
