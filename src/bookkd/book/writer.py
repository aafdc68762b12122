"""Writing a book: whole units, each committed or absent, and an edition when all are there."""

from __future__ import annotations

import operator
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book import _fidelity, _files, _layout, _manifest
from bookkd.book._committing import Committed, Placed, commit, found_unit, measured_in, write_edition, write_view
from bookkd.book._comparison import difference, grows, mismatch
from bookkd.book._constants import Packed, packed_constants, put_constants
from bookkd.book._given import json_cost, packed_keys
from bookkd.book._opening import is_finished, newest_plan
from bookkd.book._session import WriterSession
from bookkd.book._unit import UnitBuffer
from bookkd.book.plan import Plan, Unit
from bookkd.book.ragged import Rows, as_rows
from bookkd.book.reader import Book
from bookkd.book.remote import RemotePath, root_of
from bookkd.core import jsonio
from bookkd.core.errors import (
    BookFormatError,
    BookLockedError,
    BookMismatchError,
    BookMissingError,
    BookUnfinishedError,
    ConfigError,
    StorageError,
    TeacherOutputError,
    expected,
)
from bookkd.core.lock import Lock

__all__ = ["BookWriter"]


class BookWriter(WriterSession):
    """Writes a book, or goes on with one that was interrupted; for any producer of arrays.

    Leaving the context releases the lock and commits nothing: only `finish` makes a book of the units.

    Args:
        path: Folder; created, or an unfinished book of an equal plan, or a finished one (then nothing is pending). Or an
            address: units go there from memory, shard first and sidecar second.
        plan: What the book is about.
        keys: Optional key of each sample, unique uint64 [n_samples], for data that is later reordered or filtered.
        constants: What the teachers have once: name -> array of finite numbers, such as {"classifier/weight": weight}, which
            `Book.constants` gives. Names are like those of fields. None for those of `plan`, which have to be there.

    Raises:
        BookMismatchError: if the folder holds a book of another plan; the differences are named.
        BookLockedError: if another process writes it; at an address, if another one put other bits.
        BookFormatError: if the folder holds something else.
        TeacherOutputError: for NaN or infinity in a constant. ConfigError: for what is no array of numbers.
        StorageError: if the store cannot create an object only if it is absent.

    >>> import tempfile
    >>> from bookkd.book import Dense, FieldPlan
    >>> plan = Plan(n_samples=4, n_views=1, fields={"logits": FieldPlan((3,), Dense())})
    >>> with tempfile.TemporaryDirectory() as folder, BookWriter(folder, plan) as writer:
    ...     for unit in writer.pending():
    ...         writer.write(unit, {"logits": np.eye(4, 3)[unit.start : unit.stop]})
    ...     writer.finish().read([2], [0])["logits"]
    array([[0., 0., 1.]], dtype=float16)
    """

    def __init__(
        self,
        path: str | Path | RemotePath,
        plan: Plan,
        *,
        keys: npt.NDArray[np.uint64] | None = None,
        constants: Mapping[str, npt.ArrayLike] | None = None,
    ) -> None:
        self.path = root_of(path)
        packed = None if keys is None else packed_keys(keys, plan.n_samples)
        if packed is not None:
            plan = replace(plan, keys_digest=_files.digest_of(packed))
        packed_of = packed_constants(constants or {})
        if constants is not None:
            plan = replace(plan, constants={name: each.entry for name, each in packed_of.items()})
        self.plan = plan
        super().__init__()
        self._done: dict[Unit, Committed] = {}
        self._finished = is_finished(self.path)
        if self._finished:
            self.plan = self._compared(plan)
            self._sweep()
            return
        _files.make_folder(self.path)
        if isinstance(self.path, Path):
            self._lock = Lock(self.path / _layout.LOCK_NAME)
        try:
            self._start(plan, packed, packed_of)
        except BaseException:
            self.close()
            raise

    def pending(self) -> list[Unit]:
        """Return the units that are not committed, in (view, start) order."""
        return [] if self._finished else [unit for unit in self.plan.units() if unit not in self._done]

    def write(
        self,
        unit: Unit,
        arrays: Mapping[str, Rows],
        *,
        copied: Mapping[str, npt.NDArray[Any]] | None = None,
        fidelity: Mapping[str, Any] | None = None,
    ) -> None:
        """Encode, check and commit one whole unit.

        Args:
            unit: One of `pending()`.
            arrays: Field name -> [unit.stop - unit.start, *shape of the field], every field of the plan that is not copied; a
                `RaggedArray` of as many records where the field has positions.
            copied: `<field>/<part>` of further fields that are encoded already, as for `copy`.
            fidelity: What was measured of the copied ones.

        Raises:
            TeacherOutputError: NaN, infinity, another shape or a value that the codec cannot hold; names field, sample,
                view and teacher. Nothing of the unit is committed.
            StorageError: full or failing disk; the book stays resumable.
        """
        buffer = self._begin(unit, said=arrays if copied else None)
        if copied:
            buffer.take_over(copied, buffer.unit.stop - buffer.unit.start)
        buffer.add(buffer.unit.start, arrays)
        self._commit(buffer, None if fidelity is None else {**fidelity, **buffer.fidelity()})
        self._buffers.pop(buffer.unit, None)

    def write_rows(self, view: int, start: int, arrays: Mapping[str, Rows]) -> None:
        """Add consecutive rows of a view; every unit that they complete is committed.

        A producer that always says everything can resume without asking for `pending()`: rows of committed units are
        passed over.

        Args:
            view: The view.
            start: Sample of the first row; the start of a unit, or where the rows before ended.
            arrays: Field name -> [rows, *shape of the field], every field of the plan; a `RaggedArray` where it has positions.

        Raises:
            ConfigError: if the rows do not follow those before.
            TeacherOutputError: as for `write`; the rows of the unit that were given so far are dropped.
        """
        view, start = operator.index(view), operator.index(start)
        rows = self._row_count(start, arrays)
        step = self.plan.unit_rows or self.plan.n_samples
        stop = start + rows
        begin = start
        while begin < stop:
            first = begin - begin % step
            unit = Unit(view, first, min(first + step, self.plan.n_samples))
            self._check_open(unit)
            end = min(stop, unit.stop)
            if unit not in self._done:
                self._add(unit, begin, {name: array[begin - start : end - start] for name, array in arrays.items()})
            begin = end

    def copy(self, unit: Unit, parts: Mapping[str, Any], *, fidelity: Mapping[str, Any] | None = None) -> None:
        """Commit one whole unit of records that are encoded already, as `Book.gather` gives them, to the bit.

        Args:
            unit: One of `pending()`.
            parts: `<field>/<part>` -> [unit.stop - unit.start, ...], in the dtypes and shapes of the plan; a `RaggedArray`
                where the codec's part is ragged.
            fidelity: What was measured of them where they were encoded, as a sidecar has it; None for nothing.

        Raises:
            ConfigError: if a part is missing or of another dtype or shape.
            StorageError: full or failing disk; the book stays resumable.
        """
        buffer = self._begin(unit)
        buffer.copy(parts)
        self._commit(buffer, fidelity)

    def finish(self, cost: Mapping[str, Any] | None = None, *, fidelity: Mapping[str, Any] | None = None) -> Book:
        """Write the view files and then the edition that names them; from here on the folder is a book.

        Args:
            cost: What making it cost, JSON values; outside the content digest.
            fidelity: Of fields whose records were copied: what their own books measured.

        Returns:
            The book, opened.

        Raises:
            BookUnfinishedError: while units are pending.
        """
        if not self._finished:
            waiting = self.pending()
            if waiting:
                total = sum(1 for _ in self.plan.units())
                raise BookUnfinishedError(
                    expected(
                        "units",
                        "all written",
                        f"{len(waiting)} of {total} pending, first {waiting[0]}",
                        where=str(self.path),
                    )
                )
            self._check_open(next(self.plan.units()))
            self._write_edition(json_cost(cost or {}), dict(fidelity or {}))
            self._finished = True
            self.close()
        return Book(self.path)

    def _compared(self, plan: Plan) -> Plan:
        stored = newest_plan(self.path)
        if stored is None:
            raise BookMissingError(
                f"Expected {self.path} to have a plan, got none. Restore it, or make the book again."
            )
        # A finished book takes no more records, so that the libraries of this run cannot mix with the book's.
        differences = difference(stored, plan, versions=not self._finished)
        if differences:
            grow = ""
            if self._finished and grows(stored, plan):
                grow = " To add what is missing to this book, run it with --grow (from Python: bookkd.making.grow)."
            raise mismatch(
                differences,
                f"{self.path} to be a book of this run, but it was made with",
                f"Give another path, or the options that the book was made with.{grow}",
            )
        # Records of two sources may differ where their plans do not, after a repair or on another processor.
        if (
            stored.sources != plan.sources
            and (plan.sources or not self._finished)
            and not (self._finished and plan.sources == (Book(self.path).content_digest,))  # the same records after all
        ):
            wish, got = (" and ".join(each) or "a teacher" for each in (stored.sources, plan.sources))
            do = "Give another path, or the books that it was begun with."
            raise BookMismatchError(f"Expected the records of {self.path} to come from {wish}, got {got}. {do}")
        return stored

    def _sweep(self) -> None:
        """Remove what a writer left behind that was killed after its last step."""
        if isinstance(self.path, Path) and os.path.lexists(self.path / _layout.LOCK_NAME):
            with suppress(BookLockedError, StorageError):  # somebody grows it, or nobody may write here
                lock = Lock(self.path / _layout.LOCK_NAME)
                try:
                    _files.remove_leftovers(self.path)
                finally:
                    lock.release()

    def _start(self, plan: Plan, packed: bytes | None, constants: Mapping[str, Packed]) -> None:
        _files.remove_leftovers(self.path)
        self._finished = is_finished(self.path)
        began = (self.path / _layout.PLAN_NAME).exists()
        foreign = [] if began else self._foreign()
        if _layout.PLAN_NAME in foreign:  # of another machine, which no lock keeps out: it has begun since we looked
            began, self._finished = True, is_finished(self.path)
        if began:
            self.plan = self._compared(plan)
            if packed is not None and not (self.path / _layout.KEYS_NAME).exists():
                _files.write_atomic(self.path, _layout.KEYS_NAME, [packed])
            if not self._finished:
                put_constants(self.path, self.plan.constants, constants)
                self._collect()
            return
        if foreign:
            raise BookFormatError(
                expected(
                    "path",
                    "a new folder, an empty one or a book",
                    f"a folder with {', '.join(foreign[:4])}",
                    where=str(self.path),
                )
            )
        self.plan = plan.resolved()
        self.plan.check_limits()
        if packed is not None:
            _files.write_atomic(self.path, _layout.KEYS_NAME, [packed])
        put_constants(self.path, self.plan.constants, constants)
        self._begin_plan(jsonio.pretty(self.plan.to_json()))

    def _foreign(self) -> list[str]:
        """Return what lies in the folder and is not of a writer that was killed before its plan was there."""
        found = {*_files.entries(self.path)} - {_layout.LOCK_NAME, _layout.KEYS_NAME}
        place = self.path / _layout.CONSTANTS_FOLDER
        if place.name in found and place.is_dir() and all(map(_layout.CONSTANT_FILE.fullmatch, _files.entries(place))):
            found.remove(place.name)
        return sorted(found)

    def _begin_plan(self, data: bytes) -> None:
        place = self.path / _layout.PLAN_NAME
        if isinstance(place, Path):
            _files.write_atomic(self.path, _layout.PLAN_NAME, [data])
            return
        # No lock reaches other machines: of two that begin at once, one finds the other's plan.
        if not place.create(data):
            self.plan = self._compared(self.plan)
            return
        place.check_creates(data)

    def _collect(self) -> None:
        units = list(self.plan.units())
        if isinstance(self.path, RemotePath):
            units = self._listed(self.path, units)

        def found(unit: Unit) -> Committed | None:
            stem = _layout.shard_stem(unit.start, unit.stop)
            return found_unit(self.path, self.plan, unit, stem, self._identity)

        for unit, done in zip(units, _files.each(self.path, found, units), strict=True):
            if done is not None:
                self._done[unit] = done

    def _listed(self, root: RemotePath, units: list[Unit]) -> list[Unit]:
        """Return the units that have a sidecar: one listing a view, and no request for what is not there."""
        names = _files.each(root, lambda view: (root / _layout.view_folder(view)).names(), range(self.plan.n_views))
        return [unit for unit in units if f"{_layout.shard_stem(unit.start, unit.stop)}.json" in names[unit.view]]

    @cached_property
    def _identity(self) -> str:
        return jsonio.digest(self.plan.identity())

    def _check_open(self, unit: Unit) -> None:
        if self._finished or not self._open:
            raise ConfigError(expected("writer", "open", "a finished or closed one", where=str(self.path)))
        rows = self.plan.unit_rows or self.plan.n_samples
        known = 0 <= unit.view < self.plan.n_views and 0 <= unit.start < self.plan.n_samples and unit.start % rows == 0
        if not known or unit.stop != min(unit.start + rows, self.plan.n_samples):
            raise ConfigError(
                expected(
                    "unit",
                    f"one of the plan ({self.plan.n_views} views, {self.plan.n_samples} samples, {rows} rows a unit)",
                    unit,
                )
            )

    def _begin(self, unit: Unit, said: Collection[str] | None = None) -> UnitBuffer:
        """Return an empty buffer of a unit that is pending."""
        unit = Unit(*map(operator.index, unit))
        self._check_open(unit)
        if unit in self._done:
            raise ConfigError(expected("unit", "a pending one", f"{unit}, which is committed", where=str(self.path)))
        return UnitBuffer(self.plan, unit, said)

    def _row_count(self, start: int, arrays: Mapping[str, Rows]) -> int:
        if set(arrays) != set(self.plan.fields):
            raise ConfigError(
                expected(
                    "arrays", f"the fields {', '.join(self.plan.fields)}", f"the fields {', '.join(sorted(arrays))}"
                )
            )
        counts = {name: len(as_rows(array)) for name, array in arrays.items()}
        count = max(counts.values())
        if min(counts.values()) != count or count < 1 or start + count > self.plan.n_samples:
            raise TeacherOutputError(
                expected(
                    "arrays", f"equally many rows of samples {start} to {self.plan.n_samples - 1}", f"rows {counts}"
                )
            )
        return count

    def _add(self, unit: Unit, start: int, piece: Mapping[str, Rows]) -> None:
        buffer = self._buffers.setdefault(unit, UnitBuffer(self.plan, unit))
        try:
            buffer.add(start, piece)
        except TeacherOutputError:
            del self._buffers[unit]
            raise
        if buffer.full:
            self._commit(buffer)
            del self._buffers[unit]

    def _commit(self, buffer: UnitBuffer, fidelity: Mapping[str, Any] | None = None) -> None:
        unit = buffer.unit
        stem = _layout.shard_stem(unit.start, unit.stop)
        self._done[unit] = commit(self.path, buffer, stem, self._identity, fidelity)

    def _write_edition(self, cost: dict[str, Any], fidelity: dict[str, Any]) -> None:
        entries = tuple(self._write_view(view) for view in range(self.plan.n_views))
        plan = _files.read_inside(self.path, _layout.PLAN_NAME)
        edition = _manifest.Edition(
            number=1,
            n_samples=self.plan.n_samples,
            views=entries,
            plan_size=len(plan),
            plan_digest=_files.digest_of(plan),
            identity=self._identity,
            fidelity=fidelity
            | _fidelity.with_choice(
                measured_in(done.sidecar.fidelity for done in self._done.values()), self.plan.choice
            ),
            cost=cost,
        )
        write_edition(self.path, edition)

    def _write_view(self, view: int) -> _manifest.ViewEntry:
        units = [unit for unit in self.plan.units() if unit.view == view]
        placed = [Placed.of(_layout.shard_stem(unit.start, unit.stop), self._done[unit]) for unit in units]
        content = _manifest.content_of_view([self._done[unit].sidecar for unit in units])
        return write_view(self.path, view, placed, content)
