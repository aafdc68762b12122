"""What a codec is: how one field becomes rows of bytes, and what it lost on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bookkd.book.ragged import RaggedArray
from bookkd.core.errors import BookFormatError, FidelityError, TeacherOutputError

__all__ = [
    "Array", "ClassArray", "Codec", "Decoded", "Parts", "RowIds", "SampledArray", "SparseArray", "UnfitRowError", "UnreadableRowError", "index_dtype", "take_rows",
    "to_float16",
]  # fmt: skip

Array = npt.NDArray[Any]
Parts = dict[str, Any]
"""Part name -> array [rows, *part shape]; a `RaggedArray` of as many rows where the codec calls the part ragged."""


class UnfitRowError(TeacherOutputError):
    """A codec cannot hold one row; the writer adds which sample, view and teacher that is."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"Row {row} cannot be encoded: {reason}")
        self.row = row
        self.reason = reason


class UnreadableRowError(BookFormatError):
    """The bytes of one row are none that the codec writes; the reader adds which sample and view that is."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"Row {row} cannot be decoded: {reason}")
        self.row = row
        self.reason = reason


@dataclass(frozen=True, eq=False)
class RowIds:
    """Which records some rows are: what a codec that draws takes its draws from.

    Args:
        samples: Sample of each row, whole numbers [rows].
        view: View of all of them.
        field: Name of the field.
        positions: Position of each row inside its record, [rows]; None where a record is one row.

    >>> RowIds(np.arange(4), view=1, field="logits").part(slice(2, 4)).samples
    array([2, 3])
    """

    samples: Array
    view: int
    field: str
    positions: Array | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, rows: slice) -> RowIds:
        """Return the ids of some of the rows."""
        positions = None if self.positions is None else self.positions[rows]
        return RowIds(self.samples[rows], self.view, self.field, positions)

    def at_positions(self, offsets: npt.NDArray[np.int64]) -> RowIds:
        """Return the ids of all positions of the records, which begin at `offsets`.

        >>> RowIds(np.array([7, 8]), 0, "logits").at_positions(np.array([0, 2, 3])).positions
        array([0, 1, 0])
        """
        counts = np.diff(offsets)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return RowIds(np.repeat(np.asarray(self.samples), counts), self.view, self.field, within)


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


@dataclass(frozen=True, eq=False)
class SampledArray:
    """Classes drawn from a teacher's distribution at one temperature, and how often each came.

    counts / draws is an unbiased estimate of the distribution: its mean over the draws is the softmax of the logits / T.
    Whatever is linear in the distribution keeps that, and nothing else does.

    Args:
        classes: Classes that were drawn, ascending and without repeats in a record, int64.
        counts: How often each was drawn, from 1, int64; the same offsets.
        draws: Draws of a record: what the counts of each add up to.
        temperature: T of the distribution.
        n_classes: Classes that there are.
    """

    classes: RaggedArray
    counts: RaggedArray
    draws: int
    temperature: float
    n_classes: int

    def __len__(self) -> int:
        return len(self.classes)

    def probabilities(self) -> Array:
        """Return counts / draws of every class, float64 [rows, n_classes]."""
        out = np.zeros((len(self), self.n_classes))
        rows = np.repeat(np.arange(len(self)), self.classes.counts)
        out[rows, self.classes.values] = self.counts.values / self.draws
        return out


@dataclass(frozen=True, eq=False)
class ClassArray:
    """The teacher's likeliest class of each record, and nothing about the others.

    Args:
        classes: uint8, uint16 or uint32 [rows].
        n_classes: Classes that there are.
    """

    classes: Array
    n_classes: int

    def __len__(self) -> int:
        return len(self.classes)


Decoded = Array | SparseArray | SampledArray | ClassArray
"""What `decode` gives: every value, or what is left of a distribution."""


class Codec(ABC):
    """Base of all codecs: frozen dataclasses of plain values that work row by row.

    `encode` of some rows and `decode` of some rows never depend on the other rows, so that a book can be written in
    pieces and read in any order.
    """

    name: ClassVar[str]
    """Its name in `CODECS` and in `plan.json`."""
    sparse: ClassVar[bool] = False
    """True where some classes are left out: `decode` returns no array of every value."""
    linear: ClassVar[bool] = False
    """True where what it keeps serves only losses that are linear in the teacher's distribution."""
    hard: ClassVar[bool] = False
    """True where it keeps a class and no distribution."""
    of_logits: ClassVar[bool] = True
    """False where what it keeps is no use as logits: of arrays as they are, and of features."""
    draws_rows: ClassVar[bool] = False
    """True where `encode` draws, and so needs the ids of the rows."""
    divides: ClassVar[bool] = False
    """True where the items of many rows, one after another, tell where each row ends: `divide`."""

    @property
    def promised(self) -> tuple[float, ...]:
        """Temperatures that the codec can honour; empty means every one."""
        return ()

    @property
    def ragged(self) -> tuple[str, ...]:
        """Parts whose rows vary in number of items; `parts` gives the shape of one item, and all have the same counts."""
        return ()

    def most_items(self, shape: Sequence[int]) -> int:
        """Return the most items that the ragged parts of one record of `shape` may have."""
        return 1

    def divide(self, items: Mapping[str, Array], shape: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return where rows end among the items of ragged parts, int64 [rows + 1] from 0; of codecs that say `divides`."""
        raise NotImplementedError(self.name)

    @abstractmethod
    def parts(self, shape: Sequence[int]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Return part name -> (dtype, shape of one row) for records of `shape`; ConfigError if they do not fit."""

    @abstractmethod
    def encode(self, array: Array, ids: RowIds | None = None) -> Parts:
        """Encode `array` [rows, *shape] into parts [rows, *part shape]; UnfitRowError for a row out of range.

        Args:
            array: The records.
            ids: Which ones they are; only codecs that draw look at it, and they need it.
        """

    @abstractmethod
    def decode(self, parts: Mapping[str, Any], shape: Sequence[int]) -> Decoded:
        """Decode parts [rows, *part shape] into the target of records of `shape`."""

    def decoded_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of one record behind `decode`, where it is an array."""
        return tuple(shape)

    def bytes_per_record(self, shape: Sequence[int]) -> int:
        """Return the number of bytes that one record of `shape` takes: exact, or the most where parts are ragged."""
        return sum(self.part_bytes(shape).values()) + (4 if self.ragged else 0)

    def part_bytes(self, shape: Sequence[int]) -> dict[str, int]:
        """Return part name -> bytes of one record of `shape`, at most."""
        ragged, most = self.ragged, self.most_items(shape)
        return {
            part: dtype.itemsize * int(np.prod(row, dtype=object)) * (most if part in ragged else 1)
            for part, (dtype, row) in self.parts(shape).items()
        }

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


def take_rows(decoded: Decoded, rows: npt.NDArray[np.int64]) -> Decoded:
    """Return some rows of what a codec decoded."""
    if isinstance(decoded, np.ndarray):
        chosen: Array = decoded[rows]
        return chosen
    kept: dict[str, Any] = {entry.name: getattr(decoded, entry.name) for entry in fields(decoded)}
    arrays = {name: value[rows] for name, value in kept.items() if isinstance(value, np.ndarray | RaggedArray)}
    return type(decoded)(**kept | arrays)


def index_dtype(n_classes: int) -> np.dtype[Any]:
    """Return uint16, or uint32 where a class may be above 65535."""
    return np.dtype(np.uint16 if n_classes <= 2**16 else np.uint32)


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
