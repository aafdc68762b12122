"""Arrays as they are: fingerprints, counts, anything that is not a teacher's real-valued output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bookkd.book.codecs.base import Array, Codec, Parts, RowIds, UnfitRowError
from bookkd.core.names import choose

__all__ = ["RAW_DTYPES", "Raw"]

RAW_DTYPES = (
    "bool", "float16", "float32", "float64", "int16", "int32", "int64", "int8", "uint16", "uint32", "uint64", "uint8",
)  # fmt: skip


@dataclass(frozen=True)
class Raw(Codec):
    """Store values of `dtype` bit by bit; a value that does not survive the conversion to `dtype` is refused.

    Stated error: none (floating dtypes: rounding to `dtype`).

    Args:
        dtype: A numpy name, one of `RAW_DTYPES`.

    >>> Raw("uint64").encode(np.array([2**63], dtype=np.uint64))["values"][0] == 2**63
    np.True_
    """

    name: ClassVar[str] = "raw"
    of_logits: ClassVar[bool] = False
    dtype: str

    def __post_init__(self) -> None:
        choose(self.dtype, RAW_DTYPES, "dtype", where="codec raw")

    def parts(self, shape: Sequence[int]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        return {"values": (np.dtype(self.dtype), tuple(shape))}

    def encode(self, array: Array, ids: RowIds | None = None) -> Parts:
        values = np.asarray(array)
        target = np.dtype(self.dtype)
        if values.dtype == target:
            return {"values": values}
        with np.errstate(invalid="ignore", over="ignore"):
            out: Array = values.astype(target)
            # int64 -> uint64 wraps and float64 holds no 64-bit integer exactly: compare signs besides values.
            lost = (
                (out != values) | ((out < 0) != (values < 0))
                if target.kind in "biu"
                else np.isinf(out) & np.isfinite(values)
            )
        rows = np.flatnonzero(lost.any(axis=tuple(range(1, lost.ndim))) if lost.ndim > 1 else lost)
        if len(rows):
            raise UnfitRowError(
                int(rows[0]), f"a value of {values.dtype} does not fit {self.dtype}; give {self.dtype} arrays"
            )
        return {"values": out}

    def decode(self, parts: Mapping[str, Array], shape: Sequence[int]) -> Array:
        return parts["values"]
