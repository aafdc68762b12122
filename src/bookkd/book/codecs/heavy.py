"""The part of encoding that passes over every class of every row: in numpy, or wherever its caller has the rows and more power."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bookkd.book.codecs.base import Array

__all__ = ["Heavy", "InNumpy", "Largest", "heavy", "log_tail", "parts_of", "worked_out_by"]

_CACHED = 2**17
"""Values that are worked on at a time: 1 MiB of float64 stays in a processor's cache."""
_TINY = 1e-280
"""A sum of exponentials below this may have lost some of them."""


class Largest(NamedTuple):
    """The largest values of each row.

    Args:
        classes: Where they are, int64 [rows, k], the largest value first; of equal values the lower class first, and kept. Those that
            are always kept are among them.
        values: The values, float64 [rows, k].
        log_tails: Log of the softmax mass of all other classes at each temperature, [rows, temperatures]; -inf where none is left.
    """

    classes: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    log_tails: Array


class Heavy(Protocol):
    """Who does the heavy part. Rows are numbers [rows, classes] of any dtype, computed on in float64."""

    def largest(self, rows: Array, k: int, temperatures: Sequence[float], always: Sequence[int] = ()) -> Largest:
        """Return the k largest values of each row; those of the classes `always`, fewer than k, before all others."""

    def draw(self, rows: Array, temperature: float, uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return classes [rows, draws] by the inverse of the cumulated softmax of rows / T; one of probability 0 never comes.

        Args:
            rows: Logits.
            temperature: T.
            uniforms: From 0 to below 1, rising in each row, [rows, draws].

        Returns:
            Rising in each row.
        """


class InNumpy:
    """The heavy part on the processor, as many rows at a time as stay in its cache."""

    def largest(self, rows: Array, k: int, temperatures: Sequence[float], always: Sequence[int] = ()) -> Largest:
        """See `Heavy`."""
        classes = np.empty((len(rows), k), dtype=np.int64)
        values, tails = np.empty((len(rows), k)), np.empty((len(rows), len(temperatures)))
        for part in parts_of(len(rows), rows.shape[1]):
            few = rows[part]
            classes[part] = _largest(few, k, always)
            values[part] = np.take_along_axis(few, classes[part], axis=1)
            for column, temperature in enumerate(temperatures):
                tails[part, column] = log_tail(few, values[part, :1], classes[part], temperature)
        return Largest(classes, values, tails)

    def draw(self, rows: Array, temperature: float, uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """See `Heavy`."""
        out = np.empty(uniforms.shape, dtype=np.int64)
        for part in parts_of(len(rows), rows.shape[1]):
            steps = rows[part].astype(np.float64)
            if temperature != 1:
                steps /= temperature
            steps -= steps.max(axis=1, keepdims=True)
            np.cumsum(np.exp(steps, out=steps), axis=1, out=steps)
            for row, (line, draws) in enumerate(zip(steps, uniforms[part] * steps[:, -1:], strict=True), part.start):
                # Rounding may bring the product up to the sum itself: the last class that adds to it is meant.
                last = np.searchsorted(line, line[-1])
                out[row] = np.minimum(np.searchsorted(line, draws, side="right"), last)
        return out


_IN_NUMPY = InNumpy()
_current: ContextVar[Heavy | None] = ContextVar("heavy", default=None)


def heavy() -> Heavy:
    """Return who does the heavy part here and now."""
    return _current.get() or _IN_NUMPY


@contextmanager
def worked_out_by(other: Heavy) -> Iterator[None]:
    """Let `other` do the heavy part of every codec inside of the context."""
    token = _current.set(other)
    try:
        yield
    finally:
        _current.reset(token)


def parts_of(rows: int, width: int, values: int = _CACHED) -> Iterator[slice]:
    """Yield rows of a width, as many at a time as make up so many values.

    >>> [(part.start, part.stop) for part in parts_of(5, 3, 6)]
    [(0, 2), (2, 4), (4, 6)]
    """
    step = max(1, values // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def _largest(values: Array, k: int, always: Sequence[int] = ()) -> npt.NDArray[np.int64]:
    """Return the classes of the k largest values of each row, descending; of equal values the lower class first.

    A partition alone leaves it to the numpy version which of several equal values are kept. Those of `always` are among them.
    """
    rows = values
    if always:
        rows = values.astype(np.float64)
        rows[:, list(always)] = np.inf
    threshold = np.partition(rows, rows.shape[1] - k, axis=1)[:, rows.shape[1] - k, None]
    kept = rows >= threshold
    more = kept.sum(axis=1) > k
    if more.any():
        tied, least = rows[more], threshold[more]
        above, equal = tied > least, tied == least
        room = k - above.sum(axis=1, keepdims=True)
        kept[more] = above | (equal & (np.cumsum(equal, axis=1) <= room))
    classes = np.flatnonzero(kept).reshape(len(rows), k) % rows.shape[1]
    order = np.argsort(-np.take_along_axis(values, classes, axis=1).astype(np.float64), axis=1, kind="stable")
    found: npt.NDArray[np.int64] = np.take_along_axis(classes, order, axis=1)
    return found


def log_tail(rows: Array, largest: Array, classes: Array, temperature: float) -> Array:
    """Return log(sum of softmax over the classes left out), shape [rows]; -inf where none is left.

    Args:
        rows: Logits [rows, classes].
        largest: The largest of each row, float64 [rows, 1].
        classes: Those that are kept, [rows, k].
        temperature: Divides the logits.
    """
    shares = np.subtract(rows, largest, dtype=np.float64)
    if temperature != 1:
        shares /= temperature
    np.exp(shares, out=shares)
    everything = np.log(shares.sum(axis=1))
    np.put_along_axis(shares, classes, 0.0, axis=1)
    left = shares.sum(axis=1)
    with np.errstate(divide="ignore"):
        found: Array = np.log(left)
    faint = left < _TINY
    if faint.any():
        found[faint] = _log_faint(rows[faint], largest[faint], classes[faint], temperature)
    found -= everything
    return found


def _log_faint(rows: Array, largest: Array, classes: Array, temperature: float) -> Array:
    """Return log(sum of exp((rows - largest) / T) over the classes left out) where the sum is next to 0, or is 0."""
    rest = np.subtract(rows, largest, dtype=np.float64) / temperature
    np.put_along_axis(rest, classes, -np.inf, axis=1)
    top = rest.max(axis=1)
    safe = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        found: Array = safe + np.log(np.exp(rest - safe[:, None]).sum(axis=1))
    return found
