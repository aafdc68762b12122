"""Where each tensor lies in a shard, without making the shard: for files larger than memory, and for damaged ones."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from bookkd.book import _container
from bookkd.core import jsonio

__all__ = ["laid_out"]

_ALIGNED = 8


def laid_out(
    stored: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], rows: int
) -> tuple[bytes, dict[str, _container.Span]]:
    """Return the beginning of the file that `pack` makes of `rows` rows, and where its tensors lie, in their order.

    Args:
        stored: Tensor -> (dtype, shape of one row), as `Plan.stored`.
        rows: At least 1.

    >>> begin, spans = laid_out({"a/values": (np.dtype("<f2"), (3,))}, 2)
    >>> begin + bytes(12) == _container.pack({"a/values": np.zeros((2, 3), "<f2")}), spans["a/values"].row_bytes
    (True, 6)
    """
    # The library orders tensors by dtype and name; it is asked, since the order is its own business.
    sample = _container.pack({name: np.zeros(1, dtype) for name, (dtype, _) in stored.items()})
    length = struct.unpack("<Q", sample[:8])[0]
    header = jsonio.parse(sample[8 : 8 + length], "header", limit=_container.HEADER_LIMIT)
    first = 0
    for name, entry in header.items():
        if name != "__metadata__":
            dtype, row = stored[name]
            last = first + rows * dtype.itemsize * math.prod(row)
            entry.update(shape=[rows, *row], data_offsets=[first, last])
            first = last
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    begin = struct.pack("<Q", len(text)) + text
    spans = _container.parse_header(text, len(begin), len(begin) + first, "header")
    return begin, dict(sorted(spans.items(), key=lambda item: item[1].start))
