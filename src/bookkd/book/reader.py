"""Reading a book: opened from its manifests alone, gathered from memory maps, checked where it is first touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bookkd.book import _files, _manifest
from bookkd.book._constants import Constants
from bookkd.book._far import FarShards
from bookkd.book._mapped import Shards
from bookkd.book._numbers import edition_numbers
from bookkd.book._opening import find_edition, read_keys, read_plan
from bookkd.book.codecs.base import Array, Parts, UnreadableRowError
from bookkd.book.field_plan import FieldPlan, Said
from bookkd.book.ragged import RaggedArray
from bookkd.book.remote import RemotePath, Root, root_of
from bookkd.book.verification import verify as find_faults
from bookkd.core.check import at_least
from bookkd.core.errors import (
    BookCorruptError,
    BookFormatError,
    BookMismatchError,
    BookMissingError,
    DataError,
    expected,
)
from bookkd.core.names import choose

__all__ = ["Book"]

VERIFY = ("touched", "never", "all")


class Book:
    """A finished book; reads whole batches, in any process, from any mixture of views.

    Pickles by path and reopens; may be used before and after a fork.

    Args:
        path: Folder of the book, or its address: `s3://`, `gs://`, `az://`, `http://`, `https://`, or a scheme of fsspec (extra
            `remote`).
        edition: Number of the edition; None for the newest.
        verify: "touched" hashes each block when it is first read, "never" trusts the disk, "all" reads and checks
            everything on opening.
        max_open: Most shards mapped at once.
        cache: Of a book at an address: the folder where whole shards are kept for all processes of this user, or "none" to
            keep only the blocks that are touched, in memory. None for what `BOOKKD_CACHE` says, else the platform's folder.

    Raises:
        BookMissingError: no book or edition at the path.
        BookUnfinishedError: a plan, but no edition yet.
        BookVersionError: written by a newer version.
        BookFormatError: a file that is not what the format says; BookCorruptError if its bytes were changed.
        StorageError: an address that does not answer, or not to these credentials.
        ConfigError: an address with credentials in it. MissingExtraError: without the client of an address.
    """

    def __init__(
        self,
        path: str | Path | RemotePath,
        edition: int | None = None,
        *,
        verify: Literal["touched", "never", "all"] = "touched",
        max_open: int = 256,
        cache: str | Path | None = None,
    ) -> None:
        self.path = root_of(path)
        self.cache = cache
        self.verify = choose(verify, VERIFY, "verify", where="Book")
        self.max_open = at_least(max_open, 1, "max_open", where="Book")
        number = find_edition(self.path, edition)
        try:
            self._read_manifests(number)
        except BookMissingError:
            newest = edition_numbers(self.path)[-1:]
            if edition is not None or newest in ([], [number]):
                raise
            # Between finding and reading it, the edition was pruned for a newer one.
            self._read_manifests(newest[0])
        self._stored, self._flat = self.plan.stored, self.plan.flat
        self._starts = np.concatenate([view * self.n_samples + file.starts for view, file in enumerate(self._files)])
        check = verify != "never"
        if isinstance(self.path, Path):
            self._shards = Shards(self.path, self.plan, self._files, check=check, most=max_open)
        else:
            self._shards = FarShards(self.path, self.plan, self._files, check=check, most=max_open, cache=cache)
        if verify == "all":
            self._check_all()

    def _read_manifests(self, number: int) -> None:
        self._edition = _manifest.read_edition(self.path, number)
        self.plan = read_plan(self.path, self._edition)
        self._files = _files.each(
            self.path,
            lambda view: _manifest.read_view_file(self.path, view, self._edition.views[view], self._edition.n_samples),
            range(len(self._edition.views)),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self.edition, self.verify, self.max_open, self.content_digest, self.cache)

    def __repr__(self) -> str:
        return f"Book({str(self.path)!r}, edition={self.edition}, n_samples={self.n_samples}, n_views={self.n_views})"

    def close(self) -> None:
        """Let go of every mapped shard; reading maps them again. Windows deletes no file that is mapped."""
        self._shards.close()

    @property
    def edition(self) -> int:
        """Number of the edition."""
        return self._edition.number

    @property
    def n_samples(self) -> int:
        """Samples."""
        return self._edition.n_samples

    @property
    def n_views(self) -> int:
        """Views of each sample."""
        return len(self._edition.views)

    @property
    def fields(self) -> dict[str, FieldPlan]:
        """Field name -> shape and codec."""
        return dict(self.plan.fields)

    @property
    def content_digest(self) -> str:
        """Digest of plan identity and records; equal for equal books, however and wherever they were written."""
        return self._edition.content_digest

    @property
    def fidelity(self) -> dict[str, Any]:
        """What the codecs lost of each field of logits, as measured while writing."""
        return dict(self._edition.fidelity)

    @property
    def cost(self) -> dict[str, Any]:
        """What making the book cost, as its maker told."""
        return dict(self._edition.cost)

    @property
    def room(self) -> int | None:
        """Most bytes that are kept here of a book at an address, when it was opened; None for one in a folder."""
        return self._shards.room if isinstance(self._shards, FarShards) else None

    @property
    def streamed(self) -> bool:
        """Whether blocks are fetched and kept in memory, and not whole shards in a cache."""
        return isinstance(self._shards, FarShards) and not self._shards.whole

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return int(sum(int(file.sizes.sum()) for file in self._files))

    @property
    def bytes_per_record(self) -> float:
        """Bytes of all shards over the number of records."""
        return self.nbytes / (self.n_samples * self.n_views)

    @cached_property
    def keys(self) -> npt.NDArray[np.uint64] | None:
        """Key of each sample, uint64 [n_samples], or None."""
        return None if self.plan.keys_digest is None else read_keys(self.path, self.plan, self._edition.keys_file)

    @cached_property
    def constants(self) -> Mapping[str, Array]:
        """What the teachers have once, by name: arrays that cannot be written to, each read and checked when it is asked for."""
        return Constants(self.path, self.plan.constants)

    def rows_of(self, keys: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the sample of each key, int64 of the shape of `keys`.

        Raises:
            DataError: if the book has no keys, or not this one.
        """
        known = self.keys
        if known is None:
            raise DataError(
                f"Expected {self.path} to have sample keys, got none. Make it with `keys=`, or address samples by number."
            )
        wanted = np.asarray(keys)
        if wanted.dtype.kind not in "ui" or (wanted.dtype.kind == "i" and wanted.size and wanted.min() < 0):
            raise DataError(expected("keys", "whole numbers from 0", f"{wanted.dtype} keys", where=str(self.path)))
        wanted = wanted.astype(np.uint64)
        order = self._key_order
        place = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
        found: npt.NDArray[np.int64] = order[place]
        unknown = known[found] != wanted
        if unknown.any():
            raise DataError(
                expected(
                    "keys",
                    f"keys of the {len(known)} samples",
                    f"unknown key {int(wanted[unknown].flat[0])}",
                    where=str(self.path),
                )
            )
        return found

    def read(
        self, samples: npt.ArrayLike, views: npt.ArrayLike, fields: Sequence[str] | None = None
    ) -> dict[str, Said]:
        """Read and decode the records of a batch.

        Args:
            samples: Sample ids, whole numbers [batch].
            views: View of each, [batch], or one number for all.
            fields: Names of fields; None for all.

        Returns:
            Field name -> array [batch, ...] as its codec decodes it, or what is left of a distribution: a `SparseArray`,
            `SampledArray` or `ClassArray`. Of a field of positions a `RaggedArray`, or `Positions` of what is left.

        Raises:
            DataError: for an id or view that the book does not have.
            UnknownNameError: for an unknown field.
            BookCorruptError: if a touched block is not what was written.
            BookFormatError: if a record is none that its codec writes.
        """
        names = self._names(fields)
        stored = self.gather(samples, views, names)
        found: dict[str, Said] = {}
        for name in names:
            entry = self.plan.fields[name]
            parts = {part: stored[f"{name}/{part}"] for part in entry.parts}
            try:
                found[name] = entry.decode(parts)
            except UnreadableRowError as error:
                sample, view = int(np.atleast_1d(samples)[error.row]), int(np.resize(views, error.row + 1)[error.row])
                wish = f"a record of codec {entry.codec.name} (sample {sample}, view {view}, {self.path})"
                raise BookFormatError(
                    f"Expected `{name}` to be {wish}: {error.reason}. Run `bookkd verify`."
                ) from error
        return found

    def gather(self, samples: npt.ArrayLike, views: npt.ArrayLike, fields: Sequence[str] | None = None) -> Parts:
        """Return the stored parts of a batch without decoding; arguments as `read`.

        Returns:
            `<field>/<part>` -> array [batch, ...], or a `RaggedArray` of as many rows where the codec's part is ragged.
        """
        fixed: list[str] = []
        flat: list[str] = []
        for name in self._names(fields):
            entry = self.plan.fields[name]
            for part in entry.parts:
                (flat if part in entry.ragged else fixed).append(f"{name}/{part}")
        rows, shards = self._locate(samples, views)
        out: Parts = {part: np.empty((len(rows), *self._stored[part][1]), self._stored[part][0]) for part in fixed}
        if not len(rows):
            none = np.zeros(1, dtype=np.int64)
            return out | {part: RaggedArray(np.empty((0, *row), dtype), none) for part, (dtype, row) in self._of(flat)}
        if (shards == shards[0]).all():
            for group in self._shards.groups({int(shards[0]): rows}, [*fixed, *flat]):
                shard = self._shards.use(group[0])
                shard.take(rows, out, slice(None))
                out |= shard.take_items(rows, flat) if flat else {}
            return out
        order = np.argsort(shards, kind="stable")
        rows, shards = rows[order], shards[order]
        edges = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist(), len(shards)]
        wanted = {int(shards[begin]): slice(begin, end) for begin, end in pairwise(edges)}
        pieces = []
        for group in self._shards.groups({number: rows[place] for number, place in wanted.items()}, [*fixed, *flat]):
            for number in group:
                shard, place = self._shards.use(number), wanted[number]
                shard.take(rows[place], out, place)
                pieces.append(shard.take_items(rows[place], flat) if flat else {})
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        found: Parts = {part: np.take(array, back, axis=0) for part, array in out.items()}
        for part in flat:
            found[part] = RaggedArray.concatenate([piece[part] for piece in pieces]).take(back)
        return found

    def prefetch(self, start: int, stop: int, view: int, fields: Sequence[str] | None = None) -> None:
        """Ask the system to read records that will be wanted soon; returns while it does, and reads nothing twice.

        Of use where a book is larger than memory and is read by blocks of samples (`BlockWindow`); elsewhere the system's own
        reading ahead is enough. Of a book at an address whole shards are fetched into its cache, as far as half of
        it holds them. Nothing happens where there is no cache, nor where the system takes no such advice (Windows).

        Args:
            start: First sample.
            stop: End of the samples.
            view: Their view.
            fields: Names of fields; None for all.

        Raises:
            DataError: for samples or a view that the book does not have.
            UnknownNameError: for an unknown field.
        """
        names = self._names(fields)
        if start >= stop:
            raise DataError(expected("stop", f"above start = {start}", stop, where=str(self.path)))
        _, shards = self._locate([start, stop - 1], view)
        if isinstance(self._shards, FarShards):
            self._shards.prefetch(range(int(shards[0]), int(shards[1]) + 1))
            return
        parts = [part for name in names for part in self.plan.fields[name].stored(name)]
        edges = np.append(self._starts, self.n_views * self.n_samples) - view * self.n_samples
        for number in range(int(shards[0]), int(shards[1]) + 1):
            begin, end = int(edges[number]), int(edges[number + 1])
            self._shards.use(number).prefetch(max(start, begin) - begin, min(stop, end) - begin, parts)

    def _of(self, parts: Sequence[str]) -> list[tuple[str, tuple[np.dtype[Any], tuple[int, ...]]]]:
        return [(part, self._stored[part]) for part in parts]

    def _names(self, fields: Sequence[str] | None) -> list[str]:
        if fields is None:
            return list(self.plan.fields)
        wanted = [fields] if isinstance(fields, str) else list(fields)
        return [choose(name, self.plan.fields, "field", where=str(self.path)) for name in wanted]

    def _locate(
        self, samples: npt.ArrayLike, views: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return row inside its shard and number of the shard for each pair."""
        sample = _ids(samples, "samples", self.n_samples, self.path)
        view = _ids(views, "views", self.n_views, self.path)
        if view.shape != sample.shape:
            if view.size != 1:
                raise DataError(expected("views", f"one for each of the {len(sample)} samples", f"{len(view)} views"))
            view = np.broadcast_to(view, sample.shape)
        place = view * self.n_samples + sample
        shards = np.searchsorted(self._starts, place, side="right") - 1
        return place - self._starts[shards], shards

    def _check_all(self) -> None:
        faults = find_faults(self.path, self.edition)
        if faults:
            raise BookCorruptError(f"Expected {self.path} to be whole, got {len(faults)} faults, first: {faults[0]}")

    @cached_property
    def _key_order(self) -> npt.NDArray[np.int64]:
        return np.argsort(self.keys if self.keys is not None else np.empty(0), kind="stable")


def _ids(values: npt.ArrayLike, what: str, count: int, path: Root) -> npt.NDArray[np.int64]:
    found = np.atleast_1d(np.asarray(values))
    if found.ndim != 1 or (found.dtype.kind not in "ui" and found.size):
        raise DataError(
            expected(what, "whole numbers in one row", f"{found.dtype} of shape {found.shape}", where=str(path))
        )
    if found.size and (int(found.min()) < 0 or int(found.max()) >= count):
        wrong = found[(found < 0) | (found >= count)][0]
        raise DataError(expected(what, f"from 0 to {count - 1}", int(wrong), where=str(path)))
    return found.astype(np.int64)


def _reopen(
    path: str,
    edition: int,
    verify: Literal["touched", "never", "all"],
    max_open: int,
    content: str,
    cache: str | Path | None = None,
) -> Book:
    # What was read once need not be read again in every worker: "all" was done where the book was first opened.
    book = Book(path, edition, verify="touched" if verify == "all" else verify, max_open=max_open, cache=cache)
    if book.content_digest != content:
        raise BookMismatchError(
            f"Expected {path} to be the book that was pickled ({content}), got {book.content_digest}. It was replaced."
        )
    return book
