"""What a sampler yields and a replay is indexed with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bookkd.core.errors import ConfigError, DataError, expected

__all__ = ["Pick", "Positions", "as_picks"]


class Pick(NamedTuple):
    """One view of one sample.

    Args:
        sample: Row of the book, 0 to n_samples - 1.
        view: 0 to n_views - 1.
        weight: 1, or 0 for a pick that only pads the last batch of an epoch.
    """

    sample: int
    view: int
    weight: float = 1.0


def as_picks(picks: Sequence[object], n_views: int) -> list[Pick]:
    """Return `picks` as `Pick`s: each a tuple (sample, view) or (sample, view, weight) with a view below `n_views`.

    Raises:
        ConfigError: if one is something else, such as the plain index of an ordinary sampler.

    >>> as_picks([(3, 1)], n_views=2)
    [Pick(sample=3, view=1, weight=1.0)]
    """
    out = []
    for pick in picks:
        if not isinstance(pick, tuple) or not 2 <= len(pick) <= 3:
            raise ConfigError(
                expected(
                    "index",
                    "a Pick(sample, view)",
                    pick,
                    where="Replay",
                    do="Use ViewSampler as the `batch_sampler` of the DataLoader.",
                )
            )
        found = Pick(int(pick[0]), int(pick[1]), float(pick[2]) if len(pick) == 3 else 1.0)
        if not 0 <= found.view < n_views:
            raise ConfigError(expected("view", f"between 0 and {n_views - 1}", found.view, where="Replay"))
        out.append(found)
    return out


class Positions:
    """Where each row of the book stands in a data set that may be reordered or filtered.

    Args:
        rows: Row of the book of each position, shape [n_data], each at least 0 and without repeats; None where
            position and row are the same.
        n_data: Length of the data set.

    >>> Positions(np.array([7, 3]), 2)([3, 7]).tolist()
    [1, 0]
    """

    def __init__(self, rows: npt.ArrayLike | None, n_data: int) -> None:
        self.rows = np.arange(n_data) if rows is None else np.asarray(rows)
        if self.rows.shape != (n_data,) or self.rows.dtype.kind not in "iu":
            raise ConfigError(
                expected(
                    "rows",
                    f"whole numbers of shape ({n_data},), one a data set position",
                    f"{self.rows.dtype} of shape {self.rows.shape}",
                )
            )
        self.rows = self.rows.astype(np.int64)
        self._order = np.argsort(self.rows, kind="stable")
        self._sorted = self.rows[self._order]
        if n_data and self._sorted[0] < 0:
            raise ConfigError(expected("rows", "at least 0", int(self._sorted[0])))
        repeats = self._sorted[1:][self._sorted[1:] == self._sorted[:-1]]
        if len(repeats):
            raise ConfigError(
                expected("rows", "without repeats", f"{int(repeats[0])} twice", do="Check the keys of the data set.")
            )

    def __call__(self, samples: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the data set position of each row of the book.

        Raises:
            DataError: if the data set does not hold one of them.
        """
        wanted = np.asarray(samples, dtype=np.int64)
        if not len(wanted):
            return wanted
        place = np.minimum(np.searchsorted(self._sorted, wanted), max(0, len(self._sorted) - 1))
        missing = wanted[self._sorted[place] != wanted] if len(self._sorted) else wanted
        if len(missing):
            raise DataError(
                expected(
                    "sample",
                    f"one of the {len(self.rows)} rows that the data set holds",
                    int(missing[0]),
                    where="Replay",
                    do="Give the sampler the rows of this data set (`samples=`).",
                )
            )
        return self._order[place]
