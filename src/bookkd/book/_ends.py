"""Where the items of each row of a shard lie: read from its ends, which are trusted no more than anything else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bookkd.book.codecs.base import Array

__all__ = ["Ends"]


class Ends:
    """The ends of one ragged field in one shard.

    Ends count from the start of their hashing block, so that they stay as they are when shards are merged, and so that
    finding the first item of every block takes one number a block and not one a row.

    Args:
        ends: uint32 [rows], as stored.
        shift: Rows of a block are 2**shift.
        items: Items of the field in the shard.
        most: Most items of one row.
    """

    def __init__(self, ends: Array, shift: int, items: int, most: int) -> None:
        self._ends, self._shift, self._items, self._most = ends, shift, items, most
        lasts = np.append(np.arange((1 << shift) - 1, len(ends) - 1, 1 << shift), len(ends) - 1)
        self.first: npt.NDArray[np.int64] = np.zeros(len(lasts) + 1, dtype=np.int64)
        """Place of the first item of each block, and the number of all, int64 [blocks + 1]."""
        np.cumsum(ends[lasts], dtype=np.int64, out=self.first[1:])

    def fault(self) -> str:
        """Return why the items do not divide into blocks, or nothing."""
        rows = np.full(len(self.first) - 1, 1 << self._shift)
        rows[-1] = len(self._ends) - (len(rows) - 1 << self._shift)
        if (np.diff(self.first) > rows * self._most).any():
            return f"more than {self._most} items a row"
        if self.first[-1] != self._items:
            return f"{self.first[-1]} items, the parts have {self._items}"
        return ""

    def fault_of(self, block: int) -> str:
        """Return why the ends of one block are none, or nothing."""
        ends = self._ends[block << self._shift : (block + 1) << self._shift].astype(np.int64)
        counts = np.diff(ends, prepend=0)
        if (counts < 0).any():
            return "ends that fall"
        return f"a row of {counts.max()} items, at most {self._most}" if counts.max() > self._most else ""

    def of(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the place of the first item of each row and its number of items; the blocks were checked."""
        stops = self._ends[rows].astype(np.int64)
        # Row -1 is the last one: what it says is masked, as is every end before the first row of a block.
        starts = self._ends[rows - 1].astype(np.int64)
        starts[rows & ((1 << self._shift) - 1) == 0] = 0
        return self.first[rows >> self._shift] + starts, stops - starts
