"""One field of every record: its shape, its codec, and whether a record is one array or a sequence of positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book import _layout
from bookkd.book._json_values import json_values
from bookkd.book.codecs import Codec, Decoded, Parts, RowIds, UnfitRowError, UnreadableRowError, codec_to_config
from bookkd.book.ragged import ENDS, Flat, RaggedArray, Rows
from bookkd.core.check import at_least, positive
from bookkd.core.errors import ConfigError, expected

__all__ = ["FieldPlan", "Positions", "Said", "place_of"]

Layout = tuple[np.dtype[Any], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Positions:
    """What is left of a distribution at every position of some records; record i has those from offsets[i] to offsets[i + 1].

    Args:
        values: Of all positions, one record after another.
        offsets: int64 [records + 1], from 0 to the number of positions, never falling.
    """

    values: Decoded
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Positions of each record, int64 [records]."""
        return np.diff(self.offsets)


Said = Decoded | RaggedArray | Positions
"""Records as they are read: rows of an array, or what is left of a distribution; and either by position."""


@dataclass(frozen=True)
class FieldPlan:
    """One field of every record.

    A record is one array of `shape`; with `positions` it is a sequence of them, one a position (a token, a frame), of a length of
    its own. The codec encodes each position as it would a record, so that whatever it states holds at every position.

    Args:
        shape: Shape of one record, or of one position, before encoding; `(n_classes,)` for logits, `()` for one number.
        codec: How it is stored.
        baked: Of logits that were worked out of several books or regularised: `temperature`, at which alone they say what
            they are to say, and how they were made; JSON values. None for what a teacher said.
        positions: Most positions of a record where their number varies; None where a record is one array.
        taken: Of what was taken inside of a teacher: `module`, the path of its module, and `loses`, what a reduction leaves out; JSON
            values. None for what it says.

    >>> from bookkd.book import Dense
    >>> FieldPlan((10,), Dense()).bytes_per_record, FieldPlan((10,), Dense(), positions=512).bytes_per_record
    (20, 10244)
    """

    shape: tuple[int, ...]
    codec: Codec
    baked: Mapping[str, Any] | None = None
    positions: int | None = None
    taken: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.codec, Codec):
            raise ConfigError(expected("codec", "a codec such as Dense()", self.codec, do="See bookkd.book.CODECS."))
        object.__setattr__(self, "shape", tuple(self.shape))
        if len(self.shape) > 8:
            raise ConfigError(expected("shape", "at most 8 axes", self.shape))
        for size in self.shape:
            at_least(size, 1, "shape")
        if int(np.prod(self.shape, dtype=object)) > 2**31:
            raise ConfigError(expected("shape", "at most 2**31 values a record", self.shape))
        if self.positions is not None:
            at_least(self.positions, 1, "positions")
            if self.codec.ragged and not self.codec.divides:
                wish = "one that knows where a position ends"
                raise ConfigError(expected("codec", wish, self.codec.name, where="a field of positions"))
        parts = self.parts
        if self.ragged:
            if ENDS in parts:
                raise ConfigError(expected("parts", f"without {ENDS}, which a ragged field has", sorted(parts)))
            most, where = at_least(self.most_items, 1, "most_items"), f"codec {self.codec.name}"
            if most > _layout.MAX_ITEMS:
                wish, do = f"at most {_layout.MAX_ITEMS} items a record", "Cut long records into several."
                raise ConfigError(expected("most_items", wish, most, where=where, do=do))
        if self.taken is not None:
            object.__setattr__(self, "taken", json_values(self.taken, "taken"))
        if self.baked is not None:
            object.__setattr__(self, "baked", json_values(self.baked, "baked"))
            positive(self.baked.get("temperature", 0), "temperature", where="a baked field")

    @property
    def promised(self) -> tuple[float, ...]:
        """Temperatures that the field can honour; empty means every one."""
        return self.codec.promised if self.baked is None else (float(self.baked["temperature"]),)

    @property
    def parts(self) -> dict[str, Layout]:
        """Part -> (dtype, shape of one row, or of one item where the part is ragged)."""
        return self.codec.parts(self.shape)

    @property
    def ragged(self) -> tuple[str, ...]:
        """Parts whose rows vary in number of items: of positions all, else those of the codec."""
        return self.codec.ragged if self.positions is None else tuple(self.parts)

    @property
    def most_items(self) -> int:
        """Most items that the ragged parts of one record may have."""
        return self.codec.most_items(self.shape) * (self.positions or 1)

    @property
    def bytes_per_record(self) -> int:
        """Bytes that one record takes: exact, or the most where parts are ragged."""
        return sum(self.part_bytes.values()) + (4 if self.ragged else 0)

    @property
    def part_bytes(self) -> dict[str, int]:
        """Part -> bytes of one record, at most."""
        return {part: size * (self.positions or 1) for part, size in self.codec.part_bytes(self.shape).items()}

    @property
    def input_bytes(self) -> int:
        """Bytes of one record before encoding, as float32; 0 of positions, which are given a few records at a time."""
        return 0 if self.positions else 4 * int(np.prod(self.shape, dtype=object))

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `baked`, `positions` and `taken` only where they are."""
        found: dict[str, Any] = {"shape": list(self.shape), "codec": codec_to_config(self.codec)}
        if self.positions is not None:
            found["positions"] = self.positions
        if self.taken is not None:
            found["taken"] = dict(self.taken)
        return found if self.baked is None else {**found, "baked": dict(self.baked)}

    def stored(self, name: str) -> dict[str, Layout]:
        """Return the tensors of field `name` in a shard: `<name>/<part>` -> (dtype, shape of one row).

        Of a ragged part the shape is that of one item, and `<name>/ends` says where the items of each row end.
        """
        found = {f"{name}/{part}": layout for part, layout in self.parts.items()}
        return {**found, f"{name}/{ENDS}": (np.dtype(np.uint32), ())} if self.ragged else found

    def flat(self, name: str) -> dict[str, Flat]:
        """Return the tensors of field `name` that hold items of rows that vary: `<name>/<part>` -> `Flat`."""
        return {f"{name}/{part}": Flat(f"{name}/{ENDS}", self.most_items) for part in self.ragged}

    def encode(self, array: Rows, ids: RowIds | None = None) -> Parts:
        """Encode records as the codec does, position by position where there are some.

        Args:
            array: Records [rows, *shape], or a `RaggedArray` of positions.
            ids: Which records they are; codecs that draw need it.

        Raises:
            UnfitRowError: for a record that the codec cannot hold, or one of too many positions.
            ConfigError: for an array where the field has positions, or the other way round.
        """
        if (self.positions is not None) != isinstance(array, RaggedArray):
            wish = "an array" if self.positions is None else "a RaggedArray of positions"
            raise ConfigError(expected("records", wish, type(array).__name__, where=f"codec {self.codec.name}"))
        if not isinstance(array, RaggedArray):
            return self.codec.encode(array, ids) if self.codec.draws_rows else self.codec.encode(array)
        counts = array.counts
        if counts.max(initial=0) > (self.positions or 0):
            row = int(counts.argmax())
            raise UnfitRowError(row, f"it has {counts[row]} positions, and the plan at most {self.positions}")
        try:
            if self.codec.draws_rows and ids is not None:
                parts = self.codec.encode(array.values, ids.at_positions(array.offsets))
            else:
                parts = self.codec.encode(array.values)
        except UnfitRowError as error:
            row, position = place_of(array.offsets, error.row)
            raise UnfitRowError(row, f"position {position}: {error.reason}") from error
        return {
            part: RaggedArray(values.values, values.offsets[array.offsets])
            if isinstance(values, RaggedArray)
            else RaggedArray(values, array.offsets)
            for part, values in parts.items()
        }

    def decode(self, parts: Mapping[str, Any]) -> Said:
        """Decode records as the codec does.

        Args:
            parts: Part -> rows, as `encode` gives them.

        Returns:
            What the codec gives; of positions a `RaggedArray` where that is an array, else `Positions`.

        Raises:
            UnreadableRowError: for a record that `encode` does not write.
        """
        if self.positions is None:
            return self.codec.decode(parts, self.shape)
        offsets = next(iter(parts.values())).offsets
        if self.codec.ragged:
            flat, offsets = self._divided(parts)
        else:
            flat = {part: array.values for part, array in parts.items()}
        try:
            values = self.codec.decode(flat, self.shape)
        except UnreadableRowError as error:
            row, position = place_of(offsets, error.row)
            raise UnreadableRowError(row, f"position {position}: {error.reason}") from error
        return RaggedArray(values, offsets) if isinstance(values, np.ndarray) else Positions(values, offsets)

    def _divided(self, parts: Mapping[str, RaggedArray]) -> tuple[Parts, npt.NDArray[np.int64]]:
        """Return the parts by position, and the positions of each record."""
        records = next(iter(parts.values())).offsets
        items = {part: array.values for part, array in parts.items()}
        ends = self.codec.divide(items, self.shape)
        offsets = np.searchsorted(ends, records)
        wrong = ends[np.minimum(offsets, len(ends) - 1)] != records
        if wrong.any():
            row = max(int(wrong.argmax()) - 1, 0)
            raise UnreadableRowError(row, "it ends inside of a position")
        return {part: RaggedArray(values, ends) for part, values in items.items()}, offsets.astype(np.int64)


def place_of(offsets: npt.NDArray[np.int64], place: int) -> tuple[int, int]:
    """Return the record that a flat place belongs to, and the position inside of it."""
    row = int(np.searchsorted(offsets, place, side="right")) - 1
    return row, place - int(offsets[row])
