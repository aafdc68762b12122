"""Where each tensor lies in a shard, without making the shard: for files larger than memory, and for damaged ones."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from bookkd.book import _container
from bookkd.book.plan import Plan
from bookkd.core import jsonio
from bookkd.core.errors import BookKDError

__all__ = ["laid_out", "lengths_in"]

_ALIGNED = 8


def laid_out(
    stored: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], rows: Mapping[str, int]
) -> tuple[bytes, dict[str, _container.Span]]:
    """Return the beginning of the file that `pack` makes of such tensors, and where they lie, in the order of the file.

    Args:
        stored: Tensor -> (dtype, shape of one row), as `Plan.stored`.
        rows: Length of each tensor's first axis.

    >>> begin, spans = laid_out({"a/values": (np.dtype("<f2"), (3,))}, {"a/values": 2})
    >>> begin + bytes(12) == _container.pack({"a/values": np.zeros((2, 3), "<f2")}), spans["a/values"].row_bytes
    (True, 6)
    """
    # The library orders tensors by dtype and name; it is asked, since the order is its own business.
    sample = _container.pack({name: np.zeros(1, dtype) for name, (dtype, _) in stored.items()})
    length = struct.unpack("<Q", sample[:8])[0]
    header = jsonio.parse(sample[8 : 8 + length], "header", limit=_container.HEADER_LIMIT)
    header.pop("__metadata__", None)
    shapes = {
        name: (rows[name], *stored[name][1]) for name in sorted(header, key=lambda name: header[name]["data_offsets"])
    }
    edges = [0, *accumulate(stored[name][0].itemsize * math.prod(shape) for name, shape in shapes.items())]
    for (name, shape), offsets in zip(shapes.items(), pairwise(edges), strict=True):
        header[name].update(shape=list(shape), data_offsets=list(offsets))
    ordered = {"__metadata__": _container.METADATA, **{name: header[name] for name in shapes}}
    text = json.dumps(ordered, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    begin = struct.pack("<Q", len(text)) + text
    spans = {
        name: _container.Span(stored[name][0], shape, len(begin) + first, len(begin) + last)
        for (name, shape), (first, last) in zip(shapes.items(), pairwise(edges), strict=True)
    }
    return begin, spans


def lengths_in(data: memoryview, size: int, plan: Plan, rows: int) -> dict[str, int] | None:
    """Return the length of each tensor's first axis in a shard that may be damaged; None where nobody can tell.

    Only ragged parts have another one than `rows`. Their header says it, if it is whole. Where one field alone is ragged, the
    size of the file leaves one number of items.

    Args:
        data: The bytes that are there.
        size: How many there should be.
        plan: Of the book.
        rows: Rows of the shard.
    """
    lengths = dict.fromkeys(plan.stored, rows)
    if not plan.flat:
        return lengths
    try:
        begin = _container.header_end(bytes(data[:8]), size, "")
        spans = _container.parse_header(bytes(data[8:begin]), begin, size, "", plan.flat)
        _container.check_layout(spans, plan.stored, rows, "", plan.flat)
    except BookKDError:
        return _solved(size, plan, rows)
    found = {name: span.shape[0] for name, span in spans.items()}
    return found if _end(plan, found) == size else _solved(size, plan, rows)


def _solved(size: int, plan: Plan, rows: int) -> dict[str, int] | None:
    """Return the lengths with which a shard has its size, where one number of items is not known."""
    if len({flat.ends for flat in plan.flat.values()}) != 1:
        return None
    lengths = dict.fromkeys(plan.stored, rows)
    item = sum(plan.stored[name][0].itemsize * math.prod(plan.stored[name][1]) for name in plan.flat)
    most = (size - _end(plan, lengths | dict.fromkeys(plan.flat, 0))) // item
    # A longer number makes a longer header, by at most a few dozen bytes for each tensor.
    for items in range(max(0, most), max(-1, most - 1 - 64 * len(plan.stored) // item), -1):
        found = lengths | dict.fromkeys(plan.flat, items)
        if _end(plan, found) == size:
            return found
    return None


def _end(plan: Plan, lengths: Mapping[str, int]) -> int:
    begin, spans = laid_out(plan.stored, lengths)
    return max(len(begin), *(span.stop for span in spans.values()))
