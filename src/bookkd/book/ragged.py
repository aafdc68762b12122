"""Rows that differ in their number of items: all items in one array, and where each row ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from bookkd.core.errors import ConfigError, expected

__all__ = ["ENDS", "Flat", "RaggedArray", "Rows", "as_rows", "item_places", "offsets_of"]

ENDS = "ends"
"""Part of a ragged field: the end of each row's items, counted from the start of its hashing block."""


class Flat(NamedTuple):
    """What a reader must know of a flat tensor: the tensor of its ends, and the most items that one row may have."""

    ends: str
    most: int


@dataclass(frozen=True, eq=False)
class RaggedArray:
    """Rows of items; row i is `values[offsets[i]:offsets[i + 1]]`.

    Args:
        values: The items of all rows, one row after another, [items, *item shape].
        offsets: int64 [rows + 1], from 0 to the number of items, never falling.

    Raises:
        ConfigError: if the offsets do not divide the values into rows.

    >>> rows = RaggedArray(np.array([5, 6, 7]), np.array([0, 2, 2, 3]))
    >>> len(rows), rows.counts.tolist(), rows[0].tolist(), rows[[2, 0]].values.tolist()
    (3, [2, 0, 1], [5, 6], [7, 5, 6])
    >>> rows.to_padded(fill=-1)
    array([[ 5,  6],
           [-1, -1],
           [ 7, -1]])
    """

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        offsets = np.asarray(self.offsets)
        whole = offsets.ndim == 1 and len(offsets) > 0 and offsets.dtype.kind in "ui"
        if not whole or offsets[0] != 0 or offsets[-1] != len(self.values) or (offsets[1:] < offsets[:-1]).any():
            got = f"{offsets.dtype} of shape {offsets.shape} for {len(self.values)} items"
            wish = "whole numbers that rise from 0 to the number of items"
            raise ConfigError(expected("offsets", wish, got, where="ragged array"))
        object.__setattr__(self, "offsets", offsets.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Items of each row, int64 [rows]."""
        return np.diff(self.offsets)

    @overload
    def __getitem__(self, rows: int) -> npt.NDArray[Any]: ...

    @overload
    def __getitem__(self, rows: slice | Sequence[int] | npt.NDArray[Any]) -> RaggedArray: ...

    def __getitem__(self, rows: int | slice | Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[Any] | RaggedArray:
        """Return the items of one row, or some rows, as an array gives its rows."""
        if isinstance(rows, int | np.integer):
            row = range(len(self))[rows]
            items: npt.NDArray[Any] = self.values[self.offsets[row] : self.offsets[row + 1]]
            return items
        return self.take(np.arange(len(self))[rows])

    def take(self, rows: npt.ArrayLike) -> RaggedArray:
        """Return some rows, in any order and as often as asked.

        Args:
            rows: Whole numbers [n], each from 0 to the number of rows.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        counts = self.counts[chosen]
        places = item_places(self.offsets[:-1][chosen], counts)
        return RaggedArray(np.take(self.values, places, axis=0), offsets_of(counts))

    def to_padded(self, *, fill: Any, length: int | None = None) -> npt.NDArray[Any]:
        """Return the rows side by side, filled up at their ends, [rows, length, *item shape].

        Args:
            fill: What stands behind the items of a row.
            length: Items of a row; None for those of the longest.

        Raises:
            ConfigError: if a row is longer.
        """
        counts = self.counts
        longest = int(counts.max(initial=0))
        width = longest if length is None else length
        if width < longest:
            raise ConfigError(expected("length", f"at least the {longest} items of the longest row", width))
        out = np.full((len(self), width, *self.values.shape[1:]), fill, dtype=self.values.dtype)
        out[np.arange(width) < counts[:, None]] = self.values
        return out

    @classmethod
    def from_rows(cls, rows: Sequence[npt.ArrayLike]) -> RaggedArray:
        """Return one row for each array [items, *item shape]; at least one, since an item's shape is read from them.

        >>> RaggedArray.from_rows([[1, 2], [3]]).offsets
        array([0, 2, 3])
        """
        arrays = [np.asarray(row) for row in rows]
        if not arrays:
            raise ConfigError(expected("rows", "at least one", 0, where="ragged array"))
        return cls(np.concatenate(arrays), offsets_of(np.array([len(array) for array in arrays])))

    @classmethod
    def concatenate(cls, pieces: Sequence[RaggedArray]) -> RaggedArray:
        """Return the rows of all pieces, in order; at least one piece."""
        if len(pieces) == 1:
            return pieces[0]
        counts = np.concatenate([piece.counts for piece in pieces])
        return cls(np.concatenate([piece.values for piece in pieces]), offsets_of(counts))


Rows = npt.NDArray[Any] | RaggedArray
"""Records: rows of an array, or rows of positions."""


def as_rows(given: Any) -> Rows:
    """Return records as they are given to a writer, a single number as one row."""
    return given if isinstance(given, RaggedArray) else np.atleast_1d(np.asarray(given))


def offsets_of(counts: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return 0 and the running sum, int64 [rows + 1]."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def item_places(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the place of every item of rows that begin at `starts` and have `counts` items, one row after another."""
    ends = np.cumsum(counts)
    places: npt.NDArray[np.int64] = np.repeat(starts - (ends - counts), counts)
    places += np.arange(len(places))
    return places
