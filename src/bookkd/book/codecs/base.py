"""What a codec is: how one field becomes fixed-width rows of bytes, and what it lost on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bookkd.core.errors import FidelityError, TeacherOutputError

__all__ = ["Array", "Codec", "Parts", "SparseArray", "UnfitRowError", "to_float16"]

Array = npt.NDArray[Any]
Parts = dict[str, Array]


class UnfitRowError(TeacherOutputError):
    """A codec cannot hold one row; the writer adds which sample, view and teacher that is."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"Row {row} cannot be encoded: {reason}")
        self.row = row
        self.reason = reason


@dataclass(frozen=True, eq=False)
class SparseArray:
    """The kept classes of a batch and, per promised temperature, the mass of all the others.

    At a promised temperature T: kept p = (1 - tail) softmax(values / T), with tail = exp(log_tail_mass at T).

    Args:
        values: float16 [rows, k], the largest logits minus the row's maximum, descending.
        indices: uint16 or uint32 [rows, k], their classes.
        log_tail_mass: float32 [rows, n_temperatures]; -inf where nothing was left out.
        temperatures: The promised temperatures, one per column of `log_tail_mass`.
        n_classes: Classes before truncation.
    """

    values: Array
    indices: Array
    log_tail_mass: Array
    temperatures: tuple[float, ...]
    n_classes: int

    def __len__(self) -> int:
        return len(self.values)


class Codec(ABC):
    """Base of all codecs: frozen dataclasses of plain values that work row by row.

    `encode` of some rows and `decode` of some rows never depend on the other rows, so that a book can be written in
    pieces and read in any order.
    """

    name: ClassVar[str]
    """Its name in `CODECS` and in `plan.json`."""
    sparse: ClassVar[bool] = False
    """True where `decode` returns a `SparseArray`."""

    @property
    def promised(self) -> tuple[float, ...]:
        """Temperatures that the codec can honour; empty means every one."""
        return ()

    @abstractmethod
    def parts(self, shape: Sequence[int]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Return part name -> (dtype, shape of one row) for records of `shape`; ConfigError if they do not fit."""

    @abstractmethod
    def encode(self, array: Array) -> Parts:
        """Encode `array` [rows, *shape] into parts [rows, *part shape]; UnfitRowError for a row out of range."""

    @abstractmethod
    def decode(self, parts: Mapping[str, Array], shape: Sequence[int]) -> Array | SparseArray:
        """Decode parts [rows, *part shape] into the target of records of `shape`."""

    def bytes_per_record(self, shape: Sequence[int]) -> int:
        """Return the exact number of bytes that one record of `shape` takes."""
        return sum(dtype.itemsize * int(np.prod(row, dtype=object)) for dtype, row in self.parts(shape).values())

    def check_temperature(self, temperature: float) -> None:
        """Refuse a temperature that the codec did not promise.

        Raises:
            FidelityError: with the promised temperatures and what to do.
        """
        if self.promised and temperature not in self.promised:
            listed = ", ".join(f"{value:g}" for value in self.promised)
            raise FidelityError(
                f"Expected `temperature` to be one that the codec {self.name} promises ({listed}), got {temperature:g}: "
                f"the mass it left out is not stored for it. Use a promised one, or make the book with "
                f"this temperature promised or with codec dense or int8."
            )


def to_float16(values: Array) -> Array:
    """Round to float16; a finite value that leaves its range (+-65504) is an UnfitRowError, -inf stays."""
    with np.errstate(over="ignore"):
        out: Array = values.astype(np.float16)
    if np.isinf(out).any():
        lost = np.isinf(out) & np.isfinite(values)
        rows = np.flatnonzero(lost.reshape(len(lost), -1).any(axis=1))
        if len(rows):
            worst = float(np.abs(values[rows[0]]).max(where=lost[rows[0]], initial=0.0))
            raise UnfitRowError(
                int(rows[0]),
                f"a value of magnitude {worst:g} is outside float16 (65504); use codec dense, dtype float32",
            )
    return out
