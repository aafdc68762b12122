"""Growth: the next edition of a finished book, with more views, more samples or further teachers.

Records that are there are taken over, as files where these can stay, else copied to the bit. The newest edition stays
readable and is the default until the next one is whole.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bookkd.book import _files, _layout, _manifest
from bookkd.book._carried import Carried, merged_fidelity
from bookkd.book._committing import (
    Committed,
    Placed,
    commit,
    found_unit,
    measured_in,
    placed_of,
    write_edition,
    write_view,
)
from bookkd.book._comparison import difference, mismatch
from bookkd.book._constants import Packed, packed_constants, put_constants
from bookkd.book._given import json_cost, packed_keys
from bookkd.book._growth import check_growth, grown_plan
from bookkd.book._numbers import unfinished_growth
from bookkd.book._session import WriterSession
from bookkd.book._unit import UnitBuffer
from bookkd.book.codecs.base import Array
from bookkd.book.plan import Plan, Unit
from bookkd.book.ragged import Rows, as_rows
from bookkd.book.reader import Book
from bookkd.book.remote import local_folder
from bookkd.core import jsonio
from bookkd.core.errors import BookUnfinishedError, ConfigError, TeacherOutputError, expected
from bookkd.core.lock import Lock

__all__ = ["GrowthWriter"]


class _Piece(NamedTuple):
    """A shard to be written: its rows, and the first of them that is not copied."""

    unit: Unit
    said: int


class GrowthWriter(WriterSession):
    """Writes the next edition of a finished book, or goes on with one that was begun; for any producer of arrays.

    A growth adds views and samples, fields of further teachers, or constants alone. Leaving the context releases the lock and
    commits nothing: only `finish` makes an edition.

    Args:
        path: Folder of a finished book.
        plan: The plan of the larger book. Rows of units and blocks are the book's, whatever it says; all else that is not added
            has to be equal. For further teachers it has the book's samples and views.
        keys: Key of each sample of the larger book, where the book has keys; the first ones are the book's.
        names: Field of the book -> its name in `plan`, where it is another, such as {"logits": "members/0/logits"}.
        constants: Further ones, name -> array, beside those of `plan`, which are the book's.

    Raises:
        BookMismatchError: if `plan` is about another book or a smaller one, or another growth was begun; what differs is named.
        BookLockedError: if another process writes the book.
        BookMissingError: if there is no finished book.

    >>> import tempfile
    >>> from bookkd.book import BookWriter, Dense, FieldPlan
    >>> plan = Plan(n_samples=4, n_views=1, fields={"logits": FieldPlan((3,), Dense())})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with BookWriter(folder, plan) as writer:
    ...         writer.write_rows(0, 0, {"logits": np.eye(4, 3)})
    ...         _ = writer.finish()
    ...     with GrowthWriter(folder, replace(plan, n_views=2)) as writer:
    ...         print(writer.pending())
    ...         writer.write_rows(1, 0, {"logits": -np.eye(4, 3)})
    ...         book = writer.finish()
    ...     book.edition, book.n_views, book.read([2, 2], [0, 1])["logits"].tolist()
    [Unit(view=1, start=0, stop=4)]
    (2, 2, [[0.0, 0.0, 1.0], [-0.0, -0.0, -1.0]])
    """

    def __init__(
        self,
        path: str | Path,
        plan: Plan,
        *,
        keys: npt.NDArray[np.uint64] | None = None,
        names: Mapping[str, str] | None = None,
        constants: Mapping[str, npt.ArrayLike] | None = None,
    ) -> None:
        self.path = local_folder(path, "grow")
        super().__init__()
        self._done: dict[Unit, Committed] = {}
        Book(self.path)  # what is no book is refused before a lock lies in it
        self._lock = Lock(self.path / _layout.LOCK_NAME)
        try:
            _files.remove_leftovers(self.path)
            self.base = Book(self.path)
            self._start(plan, keys, names or {}, packed_constants(constants or {}))
        except BaseException:
            self.close()
            raise

    def _start(
        self,
        plan: Plan,
        keys: npt.NDArray[np.uint64] | None,
        names: Mapping[str, str],
        constants: Mapping[str, Packed],
    ) -> None:
        book = self.base
        self.number = book.edition + 1
        packed = None if keys is None else packed_keys(keys, plan.n_samples)
        plan = replace(
            plan,
            keys_digest=None if packed is None else _files.digest_of(packed),
            constants={**plan.constants, **{name: each.entry for name, each in constants.items()}},
        )
        self._names = {name: names.get(name, name) for name in book.fields}
        check_growth(book, plan, self._names, keys)
        self._fresh = [name for name in plan.fields if name not in self._names.values()]
        grown = grown_plan(book.plan, plan)
        self._begun = self._go_on(grown)
        self.plan = self._begun or grown
        larger = (self.plan.n_samples, self.plan.n_views) != (book.n_samples, book.n_views)
        self._nothing = not larger and not self._fresh and self.plan.constants == book.plan.constants
        self._keys_file = (
            book._edition.keys_file if plan.n_samples == book.n_samples else _layout.keys_name(self.number)
        )
        if self._begun is None and not self._nothing:
            self.plan.check_limits()
            put_constants(self.path, self.plan.constants, constants)
            if packed is not None and plan.n_samples != book.n_samples:
                _files.write_atomic(self.path, self._keys_file, [packed])
            _files.write_atomic(self.path, _layout.plan_name(self.number), [jsonio.pretty(self.plan.to_json())])
        elif self._begun is not None:
            put_constants(self.path, self.plan.constants, constants)
        self._kept, self._pieces = self._divided()
        self._stops = [[piece.unit.stop for piece in pieces] for pieces in self._pieces]
        self._carried = Carried(book, self._names)
        self._said = replace(
            self.plan, fields={name: self.plan.fields[name] for name in self._fresh or self.plan.fields}
        )
        for piece in self._all_pieces():
            found = found_unit(self.path, self.plan, piece.unit, self._stem(piece.unit), self._identity)
            if found is not None:
                self._done[piece.unit] = found

    def _go_on(self, plan: Plan) -> Plan | None:
        """Return the plan of the growth that was begun, if one was; it must be that of this run."""
        if unfinished_growth(self.path) is None:
            return None
        name = _layout.plan_name(self.number)
        found, _ = _files.read_json(self.path, name)
        begun = Plan.from_json(found, str(self.path / name))
        differences = difference(begun, plan)
        if differences:
            raise mismatch(
                differences,
                f"{self.path} to be grown as edition {self.number} was begun, with",
                f"Finish it with the options that it was begun with, or drop it: bookkd compact {self.path} --prune.",
            )
        return begun

    @property
    def fields(self) -> list[str]:
        """Names of the fields that have to be said; for further teachers, theirs alone."""
        return self._fresh or list(self.plan.fields)

    @property
    def rows(self) -> int:
        """Records that have to be said in all, those committed already among them."""
        return sum(piece.unit.stop - piece.said for piece in self._all_pieces())

    def pending(self) -> list[Unit]:
        """Return the rows that have to be said and are not committed, in (view, start) order, cut at the ends of shards."""
        return [
            Unit(piece.unit.view, piece.said, piece.unit.stop)
            for piece in self._all_pieces()
            if piece.said < piece.unit.stop and piece.unit not in self._done
        ]

    def write_rows(self, view: int, start: int, arrays: Mapping[str, Rows]) -> None:
        """Add consecutive rows of a view; every shard that they complete is committed.

        Rows that the book has already, and rows of committed shards, are passed over.

        Args:
            view: The view.
            start: Sample of the first row.
            arrays: Field name -> [rows, *shape of the field], every one of `fields`.

        Raises:
            ConfigError: if the rows do not follow those before.
            TeacherOutputError: as for `BookWriter.write`; the rows of the shard that were given so far are dropped.
        """
        self._check_open()
        view, start = operator.index(view), operator.index(start)
        stop = start + self._row_count(view, start, arrays)
        for piece in self._pieces[view][bisect_right(self._stops[view], start) :]:
            first, last = max(start, piece.said), min(stop, piece.unit.stop)
            if piece.unit.start >= stop:
                break
            if first < last and piece.unit not in self._done:
                self._add(piece, first, {name: array[first - start : last - start] for name, array in arrays.items()})

    def finish(self, cost: Mapping[str, Any] | None = None) -> Book:
        """Copy what only has to be copied, and write the edition; from here on it is the newest.

        Args:
            cost: What making the book cost in all, JSON values; outside the content digest.

        Returns:
            The grown book, opened; the book as it is where nothing was to be added.

        Raises:
            BookUnfinishedError: while rows are pending.
        """
        if self._nothing or Book(self.path).edition >= self.number:
            return Book(self.path)
        self._check_open()
        waiting = self.pending()
        if waiting:
            total = sum(1 for _ in self._all_pieces())
            got = f"{len(waiting)} of {total} pending, first {waiting[0]}"
            raise BookUnfinishedError(expected("units", "all written", got, where=str(self.path)))
        for piece in self._all_pieces():
            if piece.unit not in self._done:
                self._commit(piece, self._begun_buffer(piece))
        self._write_edition(json_cost(cost or {}))
        self.close()
        return Book(self.path)

    @cached_property
    def _identity(self) -> str:
        return jsonio.digest(self.plan.identity())

    def _stem(self, unit: Unit) -> str:
        return _layout.shard_stem(unit.start, unit.stop, self.number)

    def _all_pieces(self) -> Iterator[_Piece]:
        for pieces in self._pieces:
            yield from pieces

    def _divided(self) -> tuple[list[list[Placed]], list[list[_Piece]]]:
        """Return, by view, the shards that stay and those that are written."""
        have, want = self.base.n_samples, self.plan.n_samples
        rows, block = self.plan.unit_rows or want, self.plan.block_rows or 1
        kept: list[list[Placed]] = []
        pieces: list[list[_Piece]] = []
        for view in range(self.plan.n_views):
            old = view < self.base.n_views
            stay = placed_of(self.base._files[view]) if old and not self._fresh else []
            if stay and want > have and have % block:
                stay.pop()  # a block that was shorter is filled up, so that hashes are those of a book made in one go
            edges = [stay[-1].stop if stay else 0]
            while edges[-1] < want:
                edges.append(min(want, edges[-1] - edges[-1] % rows + rows))
            units = [Unit(view, start, stop) for start, stop in pairwise(edges)]
            first_said = have if old and not self._fresh else 0
            kept.append(stay)
            pieces.append([_Piece(unit, min(max(unit.start, first_said), unit.stop)) for unit in units])
        return kept, pieces

    def _check_open(self) -> None:
        if self._lock is None:
            raise ConfigError(expected("writer", "open", "a finished or closed one", where=str(self.path)))

    def _row_count(self, view: int, start: int, arrays: Mapping[str, Rows]) -> int:
        if set(arrays) != set(self.fields):
            got = f"the fields {', '.join(sorted(arrays))}"
            raise ConfigError(expected("arrays", f"the fields {', '.join(self.fields)}", got))
        counts = {name: len(as_rows(array)) for name, array in arrays.items()}
        count = max(counts.values())
        if not 0 <= view < self.plan.n_views:
            raise ConfigError(expected("view", f"from 0 to {self.plan.n_views - 1}", view, where=str(self.path)))
        if start < 0 or min(counts.values()) != count or count < 1 or start + count > self.plan.n_samples:
            wish = f"equally many rows of samples {start} to {self.plan.n_samples - 1}"
            raise TeacherOutputError(expected("arrays", wish, f"rows {counts}"))
        return count

    def _add(self, piece: _Piece, start: int, rows: Mapping[str, Rows]) -> None:
        buffer = self._buffers.get(piece.unit)
        if buffer is None:
            buffer = self._buffers[piece.unit] = self._begun_buffer(piece)
        try:
            buffer.add(start, rows)
        except TeacherOutputError:
            del self._buffers[piece.unit]
            raise
        if buffer.full:
            self._commit(piece, buffer)
            del self._buffers[piece.unit]

    def _begun_buffer(self, piece: _Piece) -> UnitBuffer:
        """Return the buffer of a shard, with what is copied in it."""
        buffer = UnitBuffer(self.plan, piece.unit, self.fields)
        stop = self._copied_to(piece.unit)
        if stop > piece.unit.start:
            buffer.take_over(self._copied(piece.unit.view, piece.unit.start, stop), stop - piece.unit.start)
        return buffer

    def _copied_to(self, unit: Unit) -> int:
        """Return the end of the rows of a shard that the book has, its first row where it has none."""
        if unit.view >= self.base.n_views:
            return unit.start
        return max(unit.start, min(unit.stop, self.base.n_samples))

    def _commit(self, piece: _Piece, buffer: UnitBuffer) -> None:
        view, start, _ = piece.unit
        stop = self._copied_to(piece.unit)
        measured = [] if piece.said == piece.unit.stop else [buffer.fidelity()]
        if stop > start:
            carried = self._carried.of(view, start, stop)
            measured = [carried | measured[0]] if self._fresh else [carried, *measured]
        fidelity = merged_fidelity(measured)
        self._done[piece.unit] = commit(self.path, buffer, self._stem(piece.unit), self._identity, fidelity)

    def _copied(self, view: int, start: int, stop: int) -> dict[str, Array]:
        """Return the book's records as they are stored, under the names that they have from now on."""
        found = {}
        for name, new in self._names.items():
            for part, array in self.base.gather(np.arange(start, stop), view, [name]).items():
                found[new + part.removeprefix(name)] = array
        return found

    def _write_edition(self, cost: dict[str, Any]) -> None:
        entries, measured = [], []
        for view, (kept, pieces) in enumerate(zip(self._kept, self._pieces, strict=True)):
            sidecars = self._sidecars(view, len(kept)) + [self._done[piece.unit].sidecar for piece in pieces]
            measured += [sidecar.fidelity for sidecar in sidecars]
            if not pieces:
                entries.append(self.base._edition.views[view])
                continue
            placed = kept + [Placed.of(self._stem(piece.unit), self._done[piece.unit]) for piece in pieces]
            entries.append(write_view(self.path, view, placed, _manifest.content_of_view(sidecars)))
        plan_file = _layout.plan_name(self.number)
        plan = _files.read_inside(self.path, plan_file)
        before = {self._names[name]: figures for name, figures in self.base.fidelity.items() if name in self._names}
        now = measured_in(measured, alike=False)
        for name in before.keys() & now.keys():
            if "choice" in before[name]:
                now[name]["choice"] = before[name]["choice"]
        edition = _manifest.Edition(
            number=self.number,
            n_samples=self.plan.n_samples,
            views=tuple(entries),
            plan_size=len(plan),
            plan_digest=_files.digest_of(plan),
            identity=self._identity,
            fidelity=before | now,
            cost=cost,
            plan_file=plan_file,
            keys_file=self._keys_file,
        )
        write_edition(self.path, edition)

    def _sidecars(self, view: int, count: int) -> list[_manifest.Sidecar]:
        if view >= self.base.n_views:
            return []
        return [_manifest.read_sidecar(self.path, self.base._files[view], index) for index in range(count)]
