"""The rows of one unit while they come in: checked, encoded, measured, hashed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from bookkd.book import _fidelity, _files, _manifest
from bookkd.book._ends import Ends
from bookkd.book.codecs.base import Array, Parts, RowIds, UnfitRowError, take_rows
from bookkd.book.field_plan import place_of
from bookkd.book.plan import Plan, Unit, is_logits
from bookkd.book.ragged import RaggedArray, Rows, as_rows, offsets_of
from bookkd.book.teacher_info import TeacherInfo
from bookkd.core.errors import ConfigError, TeacherOutputError, expected
from bookkd.core.features import is_feature
from bookkd.core.fields import LOGITS

__all__ = ["UnitBuffer"]


class UnitBuffer:
    """Encodes rows as they come, so that memory holds the unit once, encoded.

    Args:
        plan: Resolved plan.
        unit: The unit.
        said: Fields that `add` is given; the others are taken over. None for all.
    """

    def __init__(self, plan: Plan, unit: Unit, said: Collection[str] | None = None) -> None:
        self.plan = plan
        self.unit = unit
        self._said = set(plan.fields if said is None else said)
        self.next = unit.start
        rows = unit.stop - unit.start
        self._flat = plan.flat
        # By the row they begin at: rows that are given again, after an error, replace those before.
        self._items: dict[str, dict[int, Array]] = {name: {} for name in self._flat}
        self._rows = {
            name: np.empty((rows, *row), dtype) for name, (dtype, row) in plan.stored.items() if name not in self._flat
        }
        self._measured = {
            name: (_fidelity.Measured(), _fidelity.pick(rows, entry.shape))
            for name, entry in plan.fields.items()
            if is_logits(name) and entry.shape and plan.temperatures and name in self._said
        }

    @property
    def full(self) -> bool:
        """Say whether every row is there."""
        return self.next == self.unit.stop

    @property
    def _encoded(self) -> set[str]:
        """Names of what codecs encode, without the ends of ragged parts, which follow from them."""
        return {*self._rows, *self._items} - {flat.ends for flat in self._flat.values()}

    @cached_property
    def parts(self) -> dict[str, Array]:
        """The tensors of the full unit."""
        return self._rows | {
            name: np.concatenate([items[begin] for begin in sorted(items)]) for name, items in self._items.items()
        }

    def rows_of(self, name: str) -> Rows:
        """Return the rows of one tensor of the full unit; of a flat one the items of each."""
        if name not in self._flat:
            return self._rows[name]
        ends = self._rows[self._flat[name].ends].astype(np.int64)
        counts = np.diff(ends, prepend=0)
        counts[:: self._block] = ends[:: self._block]
        return RaggedArray(self.parts[name], offsets_of(counts))

    def add(self, start: int, arrays: Mapping[str, Rows]) -> None:
        """Add rows from sample `start` on; see `BookWriter.write_rows`."""
        if start != self.next:
            raise ConfigError(
                expected(
                    "start", f"{self.next}, the next row of {self.unit}", start, do="Write a unit's rows in order."
                )
            )
        if set(arrays) != self._said:
            wish = f"the fields {', '.join(sorted(self._said))}"
            raise ConfigError(expected("arrays", wish, f"the fields {', '.join(sorted(arrays))}"))
        rows = {name: len(as_rows(array)) for name, array in arrays.items()}
        count = next(iter(rows.values()))
        whole = self.unit.stop - self.unit.start
        if len(set(rows.values())) != 1 or count > self.unit.stop - start:
            raise TeacherOutputError(
                expected(
                    "arrays",
                    f"equally many rows, at most {self.unit.stop - start} of {whole}",
                    f"rows {rows}",
                    where=f"view {self.unit.view}",
                )
            )
        for name, array in arrays.items():
            self._encode(name, as_rows(array), start)
        self.next = start + count

    def copy(self, parts: Mapping[str, Any]) -> None:
        """Take the whole unit as encoded parts; see `BookWriter.copy`."""
        if set(parts) != self._encoded:
            wish = f"the parts {', '.join(sorted(self._encoded))}"
            raise ConfigError(expected("parts", wish, f"the parts {', '.join(sorted(parts))}"))
        for name, entry in self.plan.fields.items():
            self._store(name, {part: parts[f"{name}/{part}"] for part in entry.parts}, 0, copied=True)
        # What the codec lost was measured where the records come from.
        self._measured.clear()
        self.next = self.unit.stop

    def take_over(self, parts: Mapping[str, Any], rows: int) -> None:
        """Take encoded parts as `Book.gather` gives them: of all rows for the fields that are not said, else of the first ones.

        Args:
            parts: Of whole fields.
            rows: How many rows they have, from the unit's first.
        """
        taken = set()
        for name, entry in self.plan.fields.items():
            own = entry.parts
            if all(f"{name}/{part}" in parts for part in own):
                self._store(name, {part: parts[f"{name}/{part}"] for part in own}, 0)
                taken.add(name)
        if self._said <= taken:
            self.next = self.unit.start + rows
            rest = self.unit.stop - self.next
            self._measured = {
                name: (measured, rows + _fidelity.pick(rest, self.plan.fields[name].shape))
                for name, (measured, _) in self._measured.items()
                if rest
            }

    def sidecar(self, packed: bytes, identity: str) -> _manifest.Sidecar:
        """Return the sidecar of the full unit, stored as `packed`."""
        if not self.full:
            raise ConfigError(
                expected(
                    "arrays", f"all rows of {self.unit}", f"rows up to {self.next}", do="Give every row of the unit."
                )
            )
        block = self._block
        return _manifest.Sidecar(
            view=self.unit.view,
            start=self.unit.start,
            stop=self.unit.stop,
            size=len(packed),
            digest=_files.digest_of(packed),
            block_rows=block,
            blocks={name: self._hashes(name, array) for name, array in self.parts.items()},
            plan=identity,
            fidelity=self.fidelity(),
        )

    def fidelity(self) -> dict[str, Any]:
        """Return what was measured of the full unit, as its sidecar has it."""
        return {name: measured.to_json() for name, (measured, _) in self._measured.items()}

    def _encode(self, name: str, given: Rows, start: int) -> None:
        entry = self.plan.fields[name]
        array = given.values if isinstance(given, RaggedArray) else given
        if (entry.positions is not None) != isinstance(given, RaggedArray):
            wish = "rows of an array" if entry.positions is None else "a RaggedArray of positions"
            raise TeacherOutputError(expected(name, wish, type(given).__name__, where=self._where(name, start)))
        if array.shape[1:] != entry.shape or array.dtype.kind not in "fiub":
            each = "sample" if entry.positions is None else "position"
            got = f"{array.dtype} {list(array.shape[1:])} a {each}"
            raise TeacherOutputError(
                expected(
                    name,
                    f"numbers of shape {list(entry.shape)} a {each}",
                    got,
                    where=self._where(name, start),
                    do="Views of several sizes have maps of several shapes: end the transform with one size."
                    if is_feature(name)
                    else "",
                )
            )
        self._check_finite(name, array, start, given.offsets if isinstance(given, RaggedArray) else None)
        ids = RowIds(np.arange(start, start + len(given)), self.unit.view, self._stream(name))
        try:
            parts = entry.encode(given, ids)
        except UnfitRowError as error:
            where = self._where(name, start + error.row)
            raise TeacherOutputError(
                f"Expected `{name}` to fit codec {entry.codec.name} ({where}): {error.reason}."
            ) from error
        begin = start - self.unit.start
        self._store(name, parts, begin)
        if name in self._measured:
            self._measure(name, given, parts, begin)

    def _measure(self, name: str, given: Rows, parts: Parts, begin: int) -> None:
        """Add what the codec lost of the picked rows among those that were given; of positions, of some of each record."""
        entry = self.plan.fields[name]
        measured, picked = self._measured[name]
        chosen = picked[(picked >= begin) & (picked < begin + len(given))] - begin
        if not len(chosen):
            return
        taken = {part: encoded[chosen] for part, encoded in parts.items()}
        decoded: Any = entry.decode(taken)
        original: Array = np.asarray(given[chosen].values if isinstance(given, RaggedArray) else given[chosen])
        if entry.positions is not None:
            places = _fidelity.pick(len(original), entry.shape) if len(original) else np.empty(0, dtype=np.int64)
            original = original[places]
            decoded = take_rows(decoded.values, places)
            if not len(original):
                return
        if self.plan.task == "multi-label" and isinstance(decoded, np.ndarray):
            # Each class is a distribution of its own, over the logits (0, z) of absent and present.
            original, decoded = (np.stack([np.zeros_like(z), z], axis=1) for z in (original, decoded))
        promised = _fidelity.honoured(entry.codec, entry.promised, self.plan.temperatures)
        others = [each for each in self.plan.temperatures if each not in promised]
        _fidelity.measure(measured, original, decoded, promised, others)

    def _store(self, name: str, parts: Parts, begin: int, *, copied: bool = False) -> None:
        """Put encoded rows in their place; of ragged ones the items are appended, and the ends noted."""
        entry = self.plan.fields[name]
        layout, counts = entry.parts, None
        rows = self.unit.stop - self.unit.start
        for part, given in parts.items():
            tensor, (dtype, row) = f"{name}/{part}", layout[part]
            wish, ragged = f"{dtype} of shape {(rows, *row)}", part in entry.ragged
            if isinstance(given, RaggedArray) != ragged:
                got = f"a {type(given).__name__}"
                raise ConfigError(expected(tensor, "a RaggedArray" if ragged else wish, got, where="records"))
            values = given.values if ragged else given
            # Fixed rows that were encoded here fit, or numpy refuses them; items are joined as they are.
            other = values.dtype != dtype or values.shape[1:] != row
            if ((copied or ragged) and other) or (copied and len(given) != rows):
                got = f"{values.dtype} of shape {values.shape}"
                raise ConfigError(expected(tensor, wish, got, where="copied records" if copied else "records"))
            if not ragged:
                self._rows[tensor][begin : begin + len(given)] = given
                continue
            self._items[tensor][begin] = values
            if counts is None:
                counts = given.counts
                self._note_ends(tensor, counts, begin)
            elif not np.array_equal(counts, given.counts):
                raise ConfigError(
                    expected(tensor, "as many items a row as the parts before", "others", where="records")
                )

    def _note_ends(self, tensor: str, counts: npt.NDArray[np.int64], begin: int) -> None:
        """Write where the items of rows from `begin` on end, counted from the start of each row's block."""
        name, most = self._flat[tensor]
        if counts.max(initial=0) > most:
            row = self.unit.start + begin + int(counts.argmax())
            raise TeacherOutputError(
                expected(tensor, f"at most {most} items a record", int(counts.max()), where=self._where(tensor, row))
            )
        ends = self._rows[name]
        stop, block = begin + len(counts), self._block
        first = begin - begin % block
        known = np.diff(ends[first:begin].astype(np.int64), prepend=0)
        since = np.concatenate([known, counts])
        total = np.cumsum(since)
        # What was before each block's first row is taken off the running sum.
        starts = np.arange(len(since)) // block * block
        before = np.where(starts > 0, total[starts - 1], 0)
        ends[begin:stop] = (total - before)[begin - first :]

    @property
    def _block(self) -> int:
        return self.plan.block_rows or self.unit.stop - self.unit.start

    def _hashes(self, name: str, array: Array) -> npt.NDArray[np.uint64]:
        """Return the hash of each block of rows, or of the items of these rows."""
        rows = self.unit.stop - self.unit.start
        edges = np.append(np.arange(0, rows, self._block), rows)
        if name in self._flat:
            ends, most = self._flat[name]
            edges = Ends(self._rows[ends], self._block.bit_length() - 1, len(array), most).first
        hashes = [
            xxhash.xxh3_64_intdigest(np.ascontiguousarray(array[begin:end]).data)
            for begin, end in pairwise(edges.tolist())
        ]
        return np.array(hashes, dtype=np.uint64)

    def _check_finite(self, name: str, array: Array, start: int, offsets: npt.NDArray[np.int64] | None = None) -> None:
        if array.dtype.kind != "f" or np.isfinite(array).all():
            return
        bad = ~np.isfinite(array)
        if is_logits(name) and self.plan.masked_classes and array.ndim > 1:
            masked = list(self.plan.masked_classes)
            bad[:, masked] &= ~np.isneginf(array[:, masked])
            # A record of nothing but -inf has no softmax.
            bad |= np.isneginf(array).all(axis=1, keepdims=True)
        rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
        if len(rows):
            row, position = (int(rows[0]), None) if offsets is None else place_of(offsets, int(rows[0]))
            value = float(array[rows[0]][bad[rows[0]]].flat[0]) if array.ndim > 1 else float(array[rows[0]])
            advice = (
                "Declare masked classes: `masked_classes` of the plan, `CausalLM(masked=...)`."
                if value == -np.inf
                else "Check the teacher in eval mode."
            )
            raise TeacherOutputError(
                expected(
                    name,
                    "finite",
                    str(value),
                    where=self._where(name, start + row) + ("" if position is None else f", position {position}"),
                    do=f"Nothing of the unit was written. {advice}",
                )
            )

    def _stream(self, name: str) -> str:
        """Return the name that draws of a field come from: that of the teacher's own logits, whatever its place among others.

        Books are merged, grown, extracted and repaired under other names; and what two teachers draw is independent.
        """
        if not is_logits(name):
            return name
        teachers = self._teachers(name)
        return f"{LOGITS}/{teachers[0].digest}" if len(teachers) == 1 else LOGITS

    def _teachers(self, name: str) -> Sequence[TeacherInfo]:
        """Return whose word a field is: one member's, or that of all."""
        first, _, rest = name.partition("/")
        member = rest.partition("/")[0]
        if first == "members" and member.isdigit() and int(member) < len(self.plan.teachers):
            return self.plan.teachers[int(member) : int(member) + 1]
        return self.plan.teachers

    def _where(self, name: str, sample: int) -> str:
        teachers = [teacher.name for teacher in self._teachers(name)]
        said = f", teacher {', '.join(teachers)}" if teachers else ""
        return f"sample {sample}, view {self.unit.view}{said}"
