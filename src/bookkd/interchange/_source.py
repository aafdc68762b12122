"""What a reader of a foreign format gives: the records of any unit, and how they are told apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from bookkd.book import FieldPlan, Unit
from bookkd.core.check import at_least
from bookkd.core.errors import DataError, expected

__all__ = [
    "ABSENT",
    "MAX_FILE",
    "PIECE",
    "Options",
    "Records",
    "Sequences",
    "Source",
    "Tokens",
    "kept_places",
    "read_file",
    "sample_key",
    "sequence_key",
]

Array = npt.NDArray[Any]

ABSENT = int(np.iinfo(np.int64).min)
"""Class of a place that holds nothing."""

MAX_FILE = 2**30
"""Most bytes of one file, member or line that is read at once."""
MAX_CLASSES = 2**31
PIECE = 2**16
"""Places of records (rows x classes) that are handled at a time, so that memory does not depend on what a file claims."""
_LEAST_POSITIONS = 2**20
_BYTES_A_POSITION = 4
_HEAD = 4096
_HEADS = 1024


@dataclass(frozen=True)
class Options:
    """What a format does not say itself.

    Args:
        n_classes: Classes of the teacher, or its vocabulary.
        k: Classes kept of each record; what the format has where None.
        renormalise: Scale kept probabilities to 1, without a tail.
        compression: DistillKit's configuration of compression; the file beside the data where None.
    """

    n_classes: int | None = None
    k: int | None = None
    renormalise: bool = False
    compression: str | None = None

    def classes(self, source: str) -> int:
        """Return `n_classes`, or say that this format needs it."""
        if self.n_classes is None:
            do = "Pass --n_classes: these files keep some classes and do not say how many there are."
            raise DataError(expected("n_classes", "given", None, where=source, do=do))
        if at_least(self.n_classes, 2, "n_classes", where=source) > MAX_CLASSES:
            raise DataError(expected("n_classes", f"at most {MAX_CLASSES}", self.n_classes, where=source))
        return self.n_classes


class Records(NamedTuple):
    """Records of some consecutive samples of one view: kept classes [rows, n], and the raw fields beside them."""

    log_p: Array
    classes: Array
    raw: dict[str, Array]


class Source(ABC):
    """A foreign store, scanned: how many records, which keys, and the records of any unit.

    Attributes:
        n_samples, n_views, n_classes, k: Of the book.
        keys: Key of each sample, uint64.
        raw: Fields beside the logits.
        data, views: Of the plan: what is known of the data and of the views.
        notes: What the format loses or cannot say.
        allowed: How far rounding of the format may push kept probabilities above 1.
        size: Bytes of the files.
        places_a_byte: Most places of the book (records x `k`) for each of these bytes; more is refused.
    """

    name: ClassVar[str]
    n_samples: int
    n_views: int = 1
    n_classes: int
    k: int
    keys: npt.NDArray[np.uint64]
    raw: dict[str, FieldPlan]
    data: dict[str, Any]
    views: dict[str, Any]
    notes: list[str]
    allowed: float = 1e-3
    size: int
    places_a_byte: ClassVar[int] = 4
    record_bytes: int = 0
    """Bytes that a sample takes while a unit is read, beyond the unit; bounds the rows of a unit."""

    @abstractmethod
    def read(self, unit: Unit) -> Iterator[Records]:
        """Yield the records of a unit in order, some rows at a time, see `PIECE`; DataError for damaged ones."""

    @abstractmethod
    def place(self, unit: Unit, row: int) -> str:
        """Name a record, for errors."""

    def order(self, units: Sequence[Unit]) -> Iterable[Unit]:
        """Return units in the order in which they are best read."""
        return units


def kept_places(options: Options, most: int, n_classes: int, *, full: bool = False) -> int:
    """Return the classes kept of each record: what was asked for, and no more than a record of the source holds.

    Args:
        options: `k` is what was asked for.
        most: Most classes of a record.
        n_classes: Classes of the teacher.
        full: Whether no record has fewer than `most`. Otherwise one class at least stays in the tail, so that the mass which a
            record of fewer classes leaves has a place.

    >>> kept_places(Options(k=9), 5, 100), kept_places(Options(), 5, 5), kept_places(Options(), 5, 5, full=True)
    (5, 4, 5)
    """
    return max(1, min(options.k or most, most, n_classes if full else n_classes - 1))


def check_positions(count: int, size: int, source: str) -> None:
    """Refuse far more positions than files of `size` bytes can hold: each takes memory for its key.

    Raises:
        DataError: for more than one in `_BYTES_A_POSITION` bytes, and more than a million.
    """
    allowed = max(_LEAST_POSITIONS, size // _BYTES_A_POSITION)
    if count > allowed:
        wish = f"a source of at most {allowed} positions, having {size} bytes"
        raise DataError(expected("source", wish, count, where=source, do="It is damaged, or made to fill the memory."))


def sample_key(name: str) -> int:
    """Return the key of a sample that others address by name: its number if the name is one, else the xxh3_64 of the name.

    >>> sample_key("17")
    17
    >>> sample_key("n01440764/n01440764_10026") == sample_key("n01440764/n01440764_10027")
    False
    """
    if name.isascii() and name.isdigit() and len(name) < 19:
        return int(name)
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogateescape"))


def sequence_key(sequence: int, position: int) -> int:
    """Return the key of a token position: the sequence in the upper 32 bits, the position in the lower.

    The position is that of the last token that the teacher had read, from 0: the record says what comes after it.

    >>> sequence_key(2, 5) == 2 * 2**32 + 5
    True
    """
    if not (0 <= sequence < 2**32 and 0 <= position < 2**32):
        raise DataError(expected("sequence and position", "below 2**32", f"{sequence}, {position}"))
    return sequence << 32 | position


def read_file(path: Path, limit: int = MAX_FILE) -> bytes:
    """Return a regular file of at most `limit` bytes.

    Raises:
        DataError: for anything else.
    """
    try:
        if path.is_symlink() or not path.is_file():
            raise DataError(expected("file", "a regular file", "a link, folder or device", where=str(path)))
        size = path.stat().st_size
        if size > limit:
            raise DataError(expected("file", f"at most {limit} bytes", size, where=str(path)))
        return path.read_bytes()
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(expected("file", "readable", error.strerror or str(error), where=str(path))) from error


def listed(folder: Path, pattern: str, what: str) -> list[Path]:
    """Return the regular files of a folder by pattern, in the order of their paths.

    Raises:
        DataError: without any.
    """
    if not folder.is_dir():
        raise DataError(expected("source", f"a folder with {what}", "no folder", where=str(folder)))
    found = [path for path in folder.glob(pattern) if path.is_file() and not path.is_symlink()]
    if not found:
        raise DataError(expected("source", f"a folder with {what}", "none there", where=str(folder)))
    return sorted(found, key=lambda path: path.parts)


def total_size(files: Iterable[Path]) -> int:
    """Return the bytes of files."""
    return sum(path.stat().st_size for path in files)


def fingerprint(files: Sequence[Path], root: Path) -> str:
    """Return a digest of names, sizes and beginnings: of every file its name and size, of 1024 spread over them 4 KiB.

    It tells an interrupted import from one of other files; what is read is checked as it is read.
    """
    hasher = xxhash.xxh3_128()
    heads = {i * len(files) // _HEADS for i in range(_HEADS)}
    for number, path in enumerate(files):
        name = path.relative_to(root).as_posix() if path != root else path.name
        hasher.update(f"{name}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        if number in heads:
            with path.open("rb") as file:
                hasher.update(file.read(_HEAD))
    return hasher.hexdigest()


@dataclass
class Tokens:
    """Consecutive positions of one sequence: all of them, or a part.

    Args:
        log_p: [positions, n].
        classes: [positions, n].
        raw: Raw fields, [positions, ...].
    """

    log_p: Array
    classes: Array
    raw: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.log_p)


class Sequences(Source):
    """A store of sequences, each of its own length: one record a token position, as long as a record has one shape.

    A subclass says how long each sequence is (`lengths`, `first_position`, `numbers`) and yields parts of sequences from any one
    on (`stream`), so short that none takes much memory. Here they become one row of positions. What would change with ragged
    records is this class alone.
    """

    lengths: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def lay_out(
        self,
        lengths: Sequence[int] | Array,
        *,
        numbers: Sequence[int] | Array | None = None,
        firsts: Sequence[int] | Array | None = None,
    ) -> None:
        """Set samples and keys from the length of each sequence, its number, and the position of its first record."""
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.numbers = np.arange(len(lengths)) if numbers is None else np.asarray(numbers, dtype=np.int64)
        self.starts = np.zeros(len(lengths), dtype=np.int64) if firsts is None else np.asarray(firsts, dtype=np.int64)
        self.edges = np.concatenate([[0], np.cumsum(self.lengths)])
        self.n_samples = int(self.edges[-1])
        if not self.n_samples:
            raise DataError(
                expected("source", "at least one position", "none of them", where=str(self.data.get("source", "")))
            )
        check_positions(self.n_samples, self.size, str(self.data.get("source", "")))
        if int(self.numbers.max()) >= 2**32 or int((self.starts + self.lengths).max()) > 2**32:
            raise DataError(expected("sequences", "below 2**32 of at most 2**32 positions", int(self.numbers.max())))
        self.keys = np.arange(self.n_samples, dtype=np.uint64)
        for number, first, start, stop in zip(
            self.numbers.tolist(), self.starts.tolist(), self.edges[:-1].tolist(), self.edges[1:].tolist(), strict=True
        ):
            # In place, since the keys are what an import holds of all positions; modulo 2**64 where it is negative.
            self.keys[start:stop] += np.uint64(((number << 32) + first - start) % 2**64)
        self._at = -1
        self._rest: Tokens | None = None
        self._stream: Iterator[Tokens] = iter(())

    @abstractmethod
    def stream(self, sequence: int) -> Iterator[tuple[int, Tokens]]:
        """Yield (place of the sequence, some of its positions) in order, beginning with the sequence at place `sequence`."""

    @abstractmethod
    def where(self, sequence: int) -> str:
        """Name a sequence, for errors."""

    def place(self, unit: Unit, row: int) -> str:
        sequence = self._sequence_of(unit.start + row)
        position = int(unit.start + row - self.edges[sequence] + self.starts[sequence])
        return f"{self.where(sequence)}, position {position}"

    def read(self, unit: Unit) -> Iterator[Records]:
        if unit.start != self._at:
            sequence = self._sequence_of(unit.start)
            self._stream = self._counted(sequence)
            self._rest = None
            for _ in self._take(int(unit.start - self.edges[sequence])):
                pass
        self._at = -1  # nowhere, until all of the unit was taken
        pieces: list[Tokens] = []
        rows = width = 0
        for tokens in self._take(unit.stop - unit.start):
            wider = max(width, self.k, tokens.log_p.shape[1])
            if pieces and (rows + len(tokens)) * wider > PIECE:
                yield _joined(pieces, self.raw)
                pieces, rows, width = [], 0, 0
            pieces.append(tokens)
            rows, width = rows + len(tokens), max(width, self.k, tokens.log_p.shape[1])
        if pieces:
            yield _joined(pieces, self.raw)
        self._at = unit.stop

    def _sequence_of(self, sample: int) -> int:
        return int(np.searchsorted(self.edges, sample, side="right")) - 1

    def _counted(self, sequence: int) -> Iterator[Tokens]:
        """Yield what `stream` does, if each sequence is as long as it was when it was counted."""
        place, seen = sequence, 0
        for at, tokens in self.stream(sequence):
            while place < at and place < len(self.lengths) and seen == self.lengths[place]:
                place, seen = place + 1, 0
            seen += len(tokens)
            if place != at or place >= len(self.lengths) or seen > self.lengths[place]:
                raise DataError(
                    f"Expected {self.where(min(place, len(self.lengths) - 1))} to be what it was when it was counted."
                )
            yield tokens

    def _take(self, count: int) -> Iterator[Tokens]:
        """Yield the next `count` positions, no piece wider than memory allows."""
        while count > 0:
            tokens = self._rest if self._rest is not None else next(self._stream, None)
            if tokens is None:
                raise DataError(
                    f"Expected the source to have {self.n_samples} positions, got fewer: it changed meanwhile."
                )
            fitting = min(count, max(1, PIECE // max(1, self.k, tokens.log_p.shape[1])))
            self._rest = _part(tokens, slice(fitting, None)) if len(tokens) > fitting else None
            tokens = _part(tokens, slice(fitting))
            count -= len(tokens)
            if len(tokens):
                yield tokens


def _part(tokens: Tokens, rows: slice) -> Tokens:
    return Tokens(tokens.log_p[rows], tokens.classes[rows], {name: array[rows] for name, array in tokens.raw.items()})


def _joined(pieces: list[Tokens], raw: dict[str, FieldPlan]) -> Records:
    width = max(piece.log_p.shape[1] for piece in pieces)
    log_p = np.concatenate([_widened(piece.log_p, width, -np.inf) for piece in pieces])
    classes = np.concatenate([_widened(piece.classes, width, ABSENT) for piece in pieces])
    return Records(log_p, classes, {name: np.concatenate([piece.raw[name] for piece in pieces]) for name in raw})


def _widened(array: Array, width: int, value: float) -> Array:
    if array.shape[1] == width:
        return array
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=value)
