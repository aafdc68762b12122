"""One byte a value with a scale and a minimum per record: half of float16, KL of 1e-5 to 6e-5 at T = 1 and 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bookkd.book.codecs.base import Array, Codec, Parts, RowIds, UnfitRowError

__all__ = ["Int8"]

_STEPS = 254


@dataclass(frozen=True)
class Int8(Codec):
    """Store value = minimum + scale (code - 1), code 1 to 255; code 0 is -inf (a masked class).

    The float16 minimum is rounded down and the float16 scale up, so that every value lies inside the range that the
    codes span. Stated error: half of the record's scale, that is (maximum - minimum) / 508 and the rounding of both.

    >>> codec = Int8()
    >>> codec.decode(codec.encode(np.array([[0.0, 1.0, 254.0]])), (3,))
    array([[  0.,   1., 254.]], dtype=float32)
    """

    name: ClassVar[str] = "int8"

    def parts(self, shape: Sequence[int]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        half = np.dtype(np.float16)
        return {"codes": (np.dtype(np.uint8), tuple(shape)), "scale": (half, ()), "minimum": (half, ())}

    def encode(self, array: Array, ids: RowIds | None = None) -> Parts:
        values = np.asarray(array)
        flat = values.reshape(len(values), int(np.prod(values.shape[1:]))).astype(np.float64)
        masked = np.isneginf(flat)
        low = np.min(flat, axis=1, where=~masked, initial=np.inf)
        high = np.max(flat, axis=1, where=~masked, initial=-np.inf)
        empty = low > high
        low[empty], high[empty] = 0.0, 0.0
        minimum = _rounded(low, -np.inf)
        scale = _rounded((high - minimum.astype(np.float64)) / _STEPS, np.inf)
        unfit = np.flatnonzero(~(np.isfinite(minimum) & np.isfinite(scale)))
        if len(unfit):
            raise UnfitRowError(int(unfit[0]), "its range is outside float16 (65504); use codec dense, dtype float32")
        step = np.where(scale > 0, scale, 1).astype(np.float64)[:, None]
        shifted = np.where(masked, 0.0, flat) - minimum.astype(np.float64)[:, None]
        codes = np.clip(np.rint(shifted / step), 0, _STEPS).astype(np.uint8) + np.uint8(1)
        codes[masked] = 0
        return {"codes": codes.reshape(values.shape), "scale": scale, "minimum": minimum}

    def decode(self, parts: Mapping[str, Array], shape: Sequence[int]) -> Array:
        codes = parts["codes"]
        row = (-1,) + (1,) * (codes.ndim - 1)
        out = codes.astype(np.float32)
        out -= 1
        out *= parts["scale"].astype(np.float32).reshape(row)
        out += parts["minimum"].astype(np.float32).reshape(row)
        if not codes.all():
            out[codes == 0] = -np.inf
        return out


def _rounded(values: Array, towards: float) -> Array:
    """Round to float16 in the direction of `towards`."""
    with np.errstate(over="ignore"):
        near: Array = values.astype(np.float16)
    wrong = near > values if towards < 0 else near < values
    near[wrong] = np.nextafter(near[wrong], np.float16(towards))
    return near
