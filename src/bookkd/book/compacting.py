"""Tidying a book: the shards of a view become one file, and what no edition needs any more is deleted."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from bookkd.book import _container, _files, _layout, _manifest
from bookkd.book._carried import merged_fidelity
from bookkd.book._committing import Committed, Placed, found_unit, placed_of, write_edition, write_view
from bookkd.book._hashing import Meter, Progress, digest_of_file
from bookkd.book._laid import laid_out
from bookkd.book._numbers import edition_numbers, unfinished_growth
from bookkd.book._shard import read_header
from bookkd.book.plan import Unit
from bookkd.book.reader import Book
from bookkd.book.remote import local_folder
from bookkd.book.verification import verify
from bookkd.core.check import at_least
from bookkd.core.errors import BookCorruptError, BookUnfinishedError
from bookkd.core.files import storage_errors, sync_folder
from bookkd.core.lock import Lock

__all__ = ["Pruned", "compact", "prune"]

_CHUNK = 2**22


@dataclass(frozen=True)
class Pruned:
    """What `prune` deleted.

    Args:
        editions: Numbers of the editions.
        files: How many files, those of the editions among them.
        bytes: Their size.
    """

    editions: tuple[int, ...] = ()
    files: int = 0
    bytes: int = 0


def compact(
    path: str | Path, *, shard_bytes: int = 4 * 2**30, drop_growth: bool = False, progress: Progress | None = None
) -> Book:
    """Put the shards of each view into one file, as a new edition of the same content digest.

    One file a view is read fastest. Every file is checked on the way. The old edition stays readable, and on the disk until
    `prune`. Interrupted, it is gone on with; there is no new edition where nothing is to be put together.

    Args:
        path: Folder of a finished book.
        shard_bytes: Largest file; a larger view becomes several.
        drop_growth: If true, a growth that was begun and not finished is no hindrance: its plan is deleted.
        progress: Called with (bytes written, bytes in all).

    Returns:
        The book, open.

    Raises:
        BookUnfinishedError: if a growth was begun and not finished.
        BookCorruptError: if a shard is not what was written; the old edition stays the newest.
        BookLockedError: if another process writes the book.
        StorageError: if the disk is full; running it again goes on.

    >>> import tempfile
    >>> from bookkd.book import BookWriter, Dense, FieldPlan, Plan
    >>> plan = Plan(4, 1, {"logits": FieldPlan((3,), Dense())}, unit_rows=2, block_rows=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with BookWriter(folder, plan) as writer:
    ...         writer.write_rows(0, 0, {"logits": np.eye(4, 3)})
    ...         before = writer.finish()
    ...     after = compact(folder)
    ...     prune(folder).editions, after.edition, after.content_digest == before.content_digest
    ((1,), 2, True)
    """
    at_least(shard_bytes, 1, "shard_bytes", where="compact")
    root = local_folder(path, "compact")
    with _writing(root):
        begun = unfinished_growth(root)
        if begun is not None and not drop_growth:
            raise BookUnfinishedError(
                f"Expected {root} to have no unfinished growth, got {_layout.plan_name(begun)} without its edition. Finish it "
                f"with the `make --grow` that began it, or drop it: bookkd compact {root} --prune."
            )
        if begun is not None:
            with storage_errors(root):
                (root / _layout.plan_name(begun)).unlink()
                sync_folder(root)
        book = Book(root)
        groups = [_grouped(placed_of(file), shard_bytes, book) for file in book._files]
        if all(len(group) == 1 for groups_of_view in groups for group in groups_of_view):
            return book
        _write(book, groups, progress)
        return Book(root)


def prune(path: str | Path) -> Pruned:
    """Delete all editions but the newest, and every file of the book that it does not name, also an unfinished growth's.

    Editions go first, the oldest before the others: killed in between, the folder is a readable book. Files of other names
    stay. Readers that have a deleted file mapped go on; one that has not is told to open the book again.

    Args:
        path: Folder of a finished book.

    Returns:
        What was deleted.

    Raises:
        BookLockedError: if another process writes the book.
        BookFormatError: if the newest edition cannot be read; nothing is deleted then.
        BookCorruptError: if shards would be deleted, and what is kept is not whole: they may be the only whole copy.
        StorageError: if a file cannot be deleted.
    """
    root = local_folder(path, "prune")
    with _writing(root):
        book = Book(root)
        named = _named(book)
        old = [number for number in edition_numbers(root) if number != book.edition]
        rest = [name for name in _own_files(root) if name not in named]
        _check_before(root, rest)
        gone = [_layout.edition_name(number) for number in old]
        size = 0
        with storage_errors(root):
            for name in gone:
                size += (root / name).lstat().st_size
                (root / name).unlink()
                sync_folder(root)
            for name in rest:
                if name not in gone:
                    size += (root / name).lstat().st_size
                    (root / name).unlink()
            for folder in {(root / name).parent for name in rest} - {root}:
                with suppress(OSError):  # other files lie in it
                    if not any(folder.iterdir()):
                        folder.rmdir()
        return Pruned(tuple(old), len({*gone, *rest}), size)


def _check_before(root: Path, rest: Sequence[str]) -> None:
    """Refuse to delete shards while the newest edition has a fault."""
    faults = verify(root) if any(name.endswith(".safetensors") for name in rest) else []
    if faults:
        raise BookCorruptError(
            f"Expected the newest edition of {root} to be whole before older files are deleted, got {len(faults)} faults, first: "
            f"{faults[0]}. Repair it first, or read the older edition with `edition=`."
        )


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    Book(root)  # what is no book is refused before a lock lies in it
    lock = Lock(root / _layout.LOCK_NAME)
    try:
        _files.remove_leftovers(root)
        yield
    finally:
        lock.release()


def _named(book: Book) -> set[str]:
    """Return the files that an edition names, relative to the book."""
    edition = book._edition
    found = {_layout.edition_name(edition.number), edition.plan_file}
    if book.plan.keys_digest is not None:
        found.add(edition.keys_file)
    found.update(entry.file for entry in book.plan.constants.values())
    for file, entry in zip(book._files, edition.views, strict=True):
        folder = _layout.view_folder(file.view)
        found.add(f"{folder}/{entry.file}")
        found.update(f"{folder}/{stem}{end}" for stem in file.stems for end in (".json", ".safetensors"))
    return found


def _own_files(root: Path) -> list[str]:
    """Return the files in a folder whose names are those of a book's."""
    found = [
        name
        for name in _files.entries(root)
        if any(form.fullmatch(name) for form in (_layout.EDITION_NAME, _layout.PLAN_FILE, _layout.KEYS_FILE))
    ]
    for folder in _files.entries(root):
        place = root / folder
        if folder == _layout.CONSTANTS_FOLDER and place.is_dir() and not place.is_symlink():
            found += [f"{folder}/{name}" for name in _files.entries(place) if _layout.CONSTANT_FILE.fullmatch(name)]
        if _layout.VIEW_FOLDER.fullmatch(folder) and place.is_dir() and not place.is_symlink():
            for name in _files.entries(place):
                stem, _, end = name.partition(".")
                shard = _layout.SHARD_STEM.fullmatch(stem) and end in ("json", "safetensors")
                if shard or _layout.VIEW_FILE.fullmatch(name):
                    found.append(f"{folder}/{name}")
    return found


def _grouped(placed: Sequence[Placed], shard_bytes: int, book: Book) -> list[list[Placed]]:
    """Return the shards that become one, in order; hashes of a shard are limited, too."""
    block, parts = book.plan.block_rows or 1, len(book.plan.stored)
    groups: list[list[Placed]] = []
    for line in placed:
        if groups:
            group = groups[-1]
            size = sum(each.size for each in group) + line.size
            hashes = -(-(line.stop - group[0].start) // block) * parts
            if size <= shard_bytes and hashes <= _layout.MAX_HASHES and line.start % block == 0:
                group.append(line)
                continue
        groups.append([line])
    return groups


def _write(book: Book, groups: Sequence[Sequence[Sequence[Placed]]], progress: Progress | None) -> None:
    number, edition = book.edition + 1, book._edition
    total = sum(_data_bytes(group) for of_view in groups for group in of_view if len(group) > 1)
    meter = Meter(progress, total)
    entries = []
    for view, of_view in enumerate(groups):
        if all(len(group) == 1 for group in of_view):
            entries.append(edition.views[view])
            continue
        sidecars = [
            _manifest.read_sidecar(book.path, book._files[view], index) for index in range(len(book._files[view].stems))
        ]
        by_start = {sidecar.start: sidecar for sidecar in sidecars}
        placed: list[Placed] = []
        for group in of_view:
            if len(group) == 1:
                placed += group
                continue
            stem = _layout.shard_stem(group[0].start, group[-1].stop, number)
            done = _merge(book, stem, group, [by_start[line.start] for line in group], meter)
            placed.append(Placed.of(stem, done))
        entries.append(write_view(book.path, view, placed, edition.views[view].content))
    write_edition(book.path, replace(edition, number=number, views=tuple(entries)))


def _data_bytes(group: Sequence[Placed]) -> int:
    return sum(line.size for line in group)


def _merge(
    book: Book, stem: str, group: Sequence[Placed], sidecars: Sequence[_manifest.Sidecar], meter: Meter
) -> Committed:
    """Write one shard of several, piece by piece, or take it over from an interrupted run."""
    view, start, stop = sidecars[0].view, group[0].start, group[-1].stop
    place = f"{_layout.view_folder(view)}/{stem}"
    found = found_unit(book.path, book.plan, Unit(view, start, stop), stem, book._edition.identity)
    if found is not None and _is_whole(book, f"{place}.safetensors", found.sidecar.digest):
        meter.add(_data_bytes(group))
        return found
    hasher = xxhash.xxh3_128()
    with ExitStack() as opened:
        sources = [opened.enter_context(_Source.open(book, view, line)) for line in group]
        rows = {name: sum(source.spans[name].shape[0] for source in sources) for name in book.plan.stored}
        begin, spans = laid_out(book.plan.stored, rows)

        def pieces() -> Iterator[bytes | memoryview]:
            yield begin
            for name in spans:
                for source in sources:
                    for piece in source.take(name):
                        meter.add(len(piece))
                        yield piece
            for source, sidecar in zip(sources, sidecars, strict=True):
                source.check(sidecar.digest)
                meter.add(len(source.data) - source.taken)

        def hashed() -> Iterator[bytes | memoryview]:
            for piece in pieces():
                hasher.update(piece)
                yield piece

        _files.write_atomic(book.path, f"{place}.safetensors", hashed())
    size = max(len(begin), *(span.stop for span in spans.values()))
    sidecar = replace(
        sidecars[0],
        stop=stop,
        size=size,
        digest=hasher.hexdigest(),
        blocks={name: np.concatenate([each.blocks[name] for each in sidecars]) for name in sidecars[0].blocks},
        plan=book._edition.identity,
        fidelity=merged_fidelity([each.fidelity for each in sidecars]),
    )
    data = sidecar.to_bytes()
    _files.write_atomic(book.path, f"{place}.json", [data])
    return Committed(sidecar, len(data), _files.digest_of(data))


def _is_whole(book: Book, relative: str, digest: str) -> bool:
    """Say whether a shard that an interrupted run left has still the bytes that it wrote."""
    descriptor, _ = _files.open_inside(book.path, relative)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        return digest_of_file(file) == digest


@dataclass
class _Source:
    """A shard that is copied tensor by tensor, and hashed as a whole on the way.

    Args:
        where: Its path, for errors.
        data: Its bytes.
        spans: Where its tensors lie.
    """

    where: str
    data: memoryview
    spans: Mapping[str, _container.Span]

    def __post_init__(self) -> None:
        self._order = sorted(self.spans, key=lambda name: (self.spans[name].start, self.spans[name].stop))
        self._hasher = xxhash.xxh3_128(self.data[: self.spans[self._order[0]].start])
        self._taken: list[str] = []
        self.taken = 0

    @classmethod
    @contextmanager
    def open(cls, book: Book, view: int, line: Placed) -> Iterator[_Source]:
        """Map a shard after checking its size and header."""
        relative = f"{_layout.view_folder(view)}/{line.stem}.safetensors"
        where = str(book.path / relative)
        descriptor, size = _files.open_inside(book.path, relative)
        try:
            if size != line.size:
                raise BookCorruptError(f"Expected {where} to have {line.size} bytes, got {size}. Run `bookkd verify`.")
            _container.header_end(os.read(descriptor, 8), size, where)  # an empty file cannot be mapped
            mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        with mapped, memoryview(mapped) as data:
            spans = read_header(mapped, where, book.plan.flat)
            _container.check_layout(spans, book.plan.stored, line.stop - line.start, where, book.plan.flat)
            yield cls(where, data, spans)

    def take(self, name: str) -> Iterator[memoryview]:
        """Give the bytes of a tensor, in pieces."""
        span = self.spans[name]
        for first in range(span.start, span.stop, _CHUNK):
            with self.data[first : min(first + _CHUNK, span.stop)] as piece:
                self._hasher.update(piece)
                self.taken += len(piece)
                yield piece
        self._taken.append(name)

    def check(self, digest: str) -> None:
        """Refuse a file that is not what was written, once every tensor was taken."""
        if self._taken != self._order:  # written by a library that orders tensors otherwise
            self._hasher = xxhash.xxh3_128(self.data)
        if self._hasher.hexdigest() != digest:
            raise BookCorruptError(
                f"Expected {self.where} to have xxh3_128 {digest}, got {self._hasher.hexdigest()}. The bytes were changed: "
                f"run `bookkd verify`, then `bookkd repair`."
            )
