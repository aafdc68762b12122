"""The rows of one unit while they come in: checked, encoded, measured, hashed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from bookkd.book import _fidelity, _files, _manifest
from bookkd.book.codecs import SparseArray, UnfitRowError
from bookkd.book.codecs.base import Array
from bookkd.book.plan import Plan, Unit, is_logits
from bookkd.core.errors import ConfigError, TeacherOutputError, expected

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
        self.parts = {name: np.empty((rows, *row), dtype) for name, (dtype, row) in plan.stored.items()}
        self._measured = {
            name: (_fidelity.Measured(), _fidelity.pick(rows, entry.shape), _honoured(plan, name))
            for name, entry in plan.fields.items()
            if is_logits(name) and entry.shape and _honoured(plan, name) and name in self._said
        }

    @property
    def full(self) -> bool:
        """Say whether every row is there."""
        return self.next == self.unit.stop

    def add(self, start: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
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
        rows = {name: len(np.atleast_1d(array)) for name, array in arrays.items()}
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
            self._encode(name, np.asarray(array), start)
        self.next = start + count

    def copy(self, parts: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the whole unit as encoded parts; see `BookWriter.copy`."""
        if set(parts) != set(self.parts):
            wish = f"the parts {', '.join(self.parts)}"
            raise ConfigError(expected("parts", wish, f"the parts {', '.join(sorted(parts))}"))
        for name, given in parts.items():
            own = self.parts[name]
            if given.shape != own.shape or given.dtype != own.dtype:
                wish = f"{own.dtype} of shape {own.shape}"
                raise ConfigError(expected(name, wish, f"{given.dtype} of shape {given.shape}", where="copied records"))
            own[...] = given
        # What the codec lost was measured where the records come from.
        self._measured.clear()
        self.next = self.unit.stop

    def take_over(self, parts: Mapping[str, npt.NDArray[Any]], rows: int) -> None:
        """Take encoded parts as `Book.gather` gives them: of all rows for the fields that are not said, else of the first ones.

        Args:
            parts: Of whole fields.
            rows: How many rows they have, from the unit's first.
        """
        for name, given in parts.items():
            self.parts[name][:rows] = given
        if all(part in parts for name in self._said for part in self.plan.fields[name].stored(name)):
            self.next = self.unit.start + rows
            rest = self.unit.stop - self.next
            self._measured = {
                name: (measured, rows + _fidelity.pick(rest, self.plan.fields[name].shape), temperatures)
                for name, (measured, _, temperatures) in self._measured.items()
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
        block = self.plan.block_rows or len(next(iter(self.parts.values())))
        return _manifest.Sidecar(
            view=self.unit.view,
            start=self.unit.start,
            stop=self.unit.stop,
            size=len(packed),
            digest=_files.digest_of(packed),
            block_rows=block,
            blocks={name: _block_hashes(array, block) for name, array in self.parts.items()},
            plan=identity,
            fidelity=self.fidelity(),
        )

    def fidelity(self) -> dict[str, Any]:
        """Return what was measured of the full unit, as its sidecar has it."""
        return {name: measured.to_json() for name, (measured, _, _) in self._measured.items()}

    def _encode(self, name: str, array: Array, start: int) -> None:
        entry = self.plan.fields[name]
        if array.shape[1:] != entry.shape or array.dtype.kind not in "fiub":
            got = f"{array.dtype} {list(array.shape[1:])} a sample"
            raise TeacherOutputError(
                expected(name, f"numbers of shape {list(entry.shape)} a sample", got, where=self._where(name, start))
            )
        self._check_finite(name, array, start)
        try:
            parts = entry.codec.encode(array)
        except UnfitRowError as error:
            where = self._where(name, start + error.row)
            raise TeacherOutputError(
                f"Expected `{name}` to fit codec {entry.codec.name} ({where}): {error.reason}."
            ) from error
        begin = start - self.unit.start
        for part, encoded in parts.items():
            self.parts[f"{name}/{part}"][begin : begin + len(array)] = encoded
        if name in self._measured:
            measured, picked, temperatures = self._measured[name]
            chosen = picked[(picked >= begin) & (picked < begin + len(array))] - begin
            if len(chosen):
                decoded = entry.codec.decode({part: encoded[chosen] for part, encoded in parts.items()}, entry.shape)
                original = array[chosen]
                if self.plan.task == "multi-label" and not isinstance(decoded, SparseArray):
                    # Each class is a distribution of its own, over the logits (0, z) of absent and present.
                    original, decoded = (np.stack([np.zeros_like(z), z], axis=1) for z in (original, decoded))
                _fidelity.measure(measured, original, decoded, temperatures)

    def _check_finite(self, name: str, array: Array, start: int) -> None:
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
            value = float(array[rows[0]][bad[rows[0]]].flat[0]) if array.ndim > 1 else float(array[rows[0]])
            advice = (
                "Declare masked classes with `masked_classes`."
                if value == -np.inf
                else "Check the teacher in eval mode."
            )
            raise TeacherOutputError(
                expected(
                    name,
                    "finite",
                    str(value),
                    where=self._where(name, start + int(rows[0])),
                    do=f"Nothing of the unit was written. {advice}",
                )
            )

    def _where(self, name: str, sample: int) -> str:
        teachers = [teacher.name for teacher in self.plan.teachers]
        first, _, rest = name.partition("/")
        member = rest.partition("/")[0]
        if first == "members" and member.isdigit() and int(member) < len(teachers):
            teachers = [teachers[int(member)]]
        said = f", teacher {', '.join(teachers)}" if teachers else ""
        return f"sample {sample}, view {self.unit.view}{said}"


def _honoured(plan: Plan, name: str) -> list[float]:
    promised = plan.fields[name].promised
    return [temperature for temperature in plan.temperatures if not promised or temperature in promised]


def _block_hashes(array: Array, block_rows: int) -> npt.NDArray[np.uint64]:
    starts = range(0, len(array), block_rows)
    hashes = [
        xxhash.xxh3_64_intdigest(np.ascontiguousarray(array[start : start + block_rows]).data) for start in starts
    ]
    return np.array(hashes, dtype=np.uint64)
