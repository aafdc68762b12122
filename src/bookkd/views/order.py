"""The order of an epoch: one permutation of all rows, or of blocks of rows and then of the rows in a window of blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bookkd.core.check import at_least
from bookkd.core.rng import generator

__all__ = ["BlockOrder", "BlockWindow", "Order", "RowOrder"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BlockWindow:
    """Shuffle for books larger than memory: blocks of rows, then the rows inside a window of blocks.

    A window is read whole, block by block, and left again: rows of a batch come from `blocks` blocks, which must fit into
    memory together (twice, where the next window is read ahead). All rows of a data set in the order of its classes are
    mixed as well as the window is wide: neighbours are of one block with probability 1 / blocks.

    Args:
        blocks: Most blocks of a window; the blocks of an epoch are divided evenly into as many windows as that takes.
        rows: Rows of a block: those of the book's hashing blocks, so that each is read and checked once.

    >>> BlockWindow(16)
    BlockWindow(blocks=16, rows=4096)
    """

    blocks: int
    rows: int = 4096

    def __post_init__(self) -> None:
        at_least(self.blocks, 1, "blocks", where="BlockWindow")
        at_least(self.rows, 1, "rows", where="BlockWindow")


class RowOrder:
    """All samples in one permutation, or as they are.

    Args:
        samples: The rows to draw from.
        seed: Of the permutation.
        epoch: Whose permutation.
        shuffle: False keeps the order of `samples`.
    """

    def __init__(self, samples: Rows, seed: int, epoch: int, *, shuffle: bool) -> None:
        self._order = samples[generator(seed, "shuffle", epoch).permutation(len(samples))] if shuffle else samples

    def at(self, places: Rows) -> Rows:
        """Return the rows at `places` of the order."""
        return self._order[places]

    def coming(self, first: int, stop: int) -> list[int]:
        """Return no block: none is worth reading ahead."""
        return []


class BlockOrder:
    """Blocks in one permutation, divided into windows, and the rows of each window in a permutation of its own.

    Takes memory for the numbers of all blocks and the rows of two windows, not for a permutation of all rows.

    Args:
        samples: The rows to draw from.
        window: How wide.
        seed: Of the permutations.
        epoch: Whose permutations.
    """

    def __init__(self, samples: Rows, window: BlockWindow, seed: int, epoch: int) -> None:
        self._seed, self._epoch, self.window_rows = seed, epoch, window.rows
        ascending = bool((samples[1:] > samples[:-1]).all())
        self._samples = samples if ascending else np.sort(samples)
        first = self._samples // window.rows
        starts = np.flatnonzero(np.diff(first, prepend=-1))
        self._bounds = np.append(starts, len(samples))
        numbers = first[starts]
        turn = generator(seed, "shuffle blocks", epoch).permutation(len(numbers))
        self._turn, self._blocks = turn, numbers[turn]
        count = -(-len(turn) // window.blocks)
        self._edges = np.arange(count + 1) * len(turn) // count
        """First block of each window, counted in the turn."""
        self._begins = np.append(0, np.cumsum(np.diff(self._bounds)[turn]))[self._edges]
        """Place of the first row of each window, and the number of all."""
        self._told: int | None = None
        self._known: dict[int, Rows] = {}

    def at(self, places: Rows) -> Rows:
        """Return the rows at `places` of the order."""
        windows = np.searchsorted(self._begins, places, side="right") - 1
        found = np.empty(len(places), dtype=np.int64)
        for window in np.unique(windows).tolist():
            here = windows == window
            found[here] = self._window(window)[places[here] - self._begins[window]]
        return found

    def coming(self, first: int, stop: int) -> list[int]:
        """Return the blocks to read ahead before the order goes from place `first` to place `stop`, each once.

        Before anything else those of the window of `first`; from then on, evenly over a window, those of the next one.

        Args:
            first: Place in the order.
            stop: End of the places.
        """
        if self._told is None:
            self._told = int(self._edges[self._window_of(first)])
        window = self._window_of(stop - 1)
        told, after = int(self._edges[window + 1]), int(self._edges[min(window + 2, len(self._edges) - 1)])
        size = self._begins[window + 1] - self._begins[window]
        told += -(-(stop - int(self._begins[window])) * (after - told) // int(size))
        found: list[int] = self._blocks[self._told : told].tolist()
        self._told = max(told, self._told)
        return found

    def _window_of(self, place: int) -> int:
        return int(np.searchsorted(self._begins, place, side="right")) - 1

    def _window(self, window: int) -> Rows:
        """Return the rows of a window in their order; the last two asked for are kept."""
        found = self._known.pop(window, None)
        if found is None:
            chosen = self._turn[self._edges[window] : self._edges[window + 1]]
            rows = np.concatenate([self._samples[self._bounds[block] : self._bounds[block + 1]] for block in chosen])
            found = rows[generator(self._seed, "shuffle window", self._epoch, window).permutation(len(rows))]
            while len(self._known) > 1:
                self._known.pop(next(iter(self._known)))
        self._known[window] = found
        return found


Order = RowOrder | BlockOrder
