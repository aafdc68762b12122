"""Putting a unit, a view file and an edition on the disk: what every writer of a book has in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bookkd.book import _container, _fidelity, _files, _layout, _manifest
from bookkd.book._unit import UnitBuffer
from bookkd.book.plan import Plan, Unit
from bookkd.book.remote import RemotePath, Root
from bookkd.core.errors import BookKDError, BookLockedError, StorageError, expected

__all__ = ["Committed", "Placed", "commit", "found_unit", "measured_in", "placed_of", "write_edition", "write_view"]


class Committed(NamedTuple):
    """A sidecar with the size and digest of its file."""

    sidecar: _manifest.Sidecar
    size: int
    digest: str


class Placed(NamedTuple):
    """One line of a view file."""

    stem: str
    start: int
    stop: int
    size: int
    sidecar_size: int
    sidecar_digest: str

    @classmethod
    def of(cls, stem: str, done: Committed) -> Placed:
        """Return the line of a shard that was committed."""
        return cls(stem, done.sidecar.start, done.sidecar.stop, done.sidecar.size, done.size, done.digest)


def placed_of(file: _manifest.ViewFile) -> list[Placed]:
    """Return the lines of a view file."""
    columns = (file.starts, file.stops, file.sizes, file.sidecar_sizes)
    numbers = (column.tolist() for column in columns)
    return [Placed(*line) for line in zip(file.stems, *numbers, file.sidecars, strict=True)]


def commit(
    root: Root, buffer: UnitBuffer, stem: str, identity: str, fidelity: Mapping[str, Any] | None = None
) -> Committed:
    """Write a full unit, shard first and sidecar second: a unit without a sidecar was never written.

    Args:
        root: Folder of the book.
        buffer: The unit.
        stem: Name of the shard without its extension.
        identity: Digest of the identity of the plan it is written under.
        fidelity: In place of what the buffer measured.
    """
    place = f"{_layout.view_folder(buffer.unit.view)}/{stem}"
    packed = _container.pack(buffer.parts)
    sidecar = buffer.sidecar(packed, identity)
    if fidelity is not None:
        sidecar = replace(sidecar, fidelity=dict(fidelity))
    _files.write_atomic(root, f"{place}.safetensors", [packed])
    data = sidecar.to_bytes()
    _files.write_atomic(root, f"{place}.json", [data])
    return Committed(sidecar, len(data), _files.digest_of(data))


def found_unit(root: Root, plan: Plan, unit: Unit, stem: str, identity: str) -> Committed | None:
    """Return a unit that an interrupted writer of the same plan committed: its sidecar, and a shard of the size that it says.

    A unit whose sidecar is missing, damaged or of something else is simply written again.
    """
    place = f"{_layout.view_folder(unit.view)}/{stem}"
    try:
        found, data = _files.read_json(root, f"{place}.json")
        sidecar = _manifest.Sidecar.from_json(found, place)
        mine = (
            Unit(sidecar.view, sidecar.start, sidecar.stop) == unit
            and sidecar.plan == identity
            and sidecar.block_rows == plan.block_rows
            and set(sidecar.blocks) == set(plan.stored)
        )
        if mine and (root / f"{place}.safetensors").stat().st_size == sidecar.size:
            return Committed(sidecar, len(data), _files.digest_of(data))
    except (BookKDError, OSError) as error:
        if isinstance(root, RemotePath) and isinstance(error, StorageError):
            raise  # nobody knows what is there
    return None


def write_view(root: Root, view: int, placed: Sequence[Placed], content: str) -> _manifest.ViewEntry:
    """Write the file of a view and return what an edition says of it."""
    data = _manifest.ViewFile(
        view=view,
        stems=[line.stem for line in placed],
        starts=np.array([line.start for line in placed], dtype=np.int64),
        stops=np.array([line.stop for line in placed], dtype=np.int64),
        sizes=np.array([line.size for line in placed], dtype=np.int64),
        sidecar_sizes=np.array([line.sidecar_size for line in placed], dtype=np.int64),
        sidecars=[line.sidecar_digest for line in placed],
    ).to_bytes()
    digest = _files.digest_of(data)
    name = f"view-{digest[:8]}.json"
    # A killed run may have left the same file; other bytes under this name are damage that nothing refers to yet.
    _files.write_atomic(root, f"{_layout.view_folder(view)}/{name}", [data])
    return _manifest.ViewEntry(name, len(data), digest, content)


def measured_in(sidecars: Iterable[Mapping[str, Any]], *, alike: bool = True) -> dict[str, Any]:
    """Return the fidelity figures of the fields that these sidecars have measured.

    Args:
        sidecars: `fidelity` of each.
        alike: If true, one that has not measured what another has is an error; else such a field is left out.

    Raises:
        BookFormatError: if they were not measured alike.
    """
    found = list(sidecars)
    names = set().union(*found) if alike else set(found[0]).intersection(*found)
    merged = {name: _fidelity.merge(found, name) for name in sorted(names)}
    return {name: _fidelity.summary(sums) for name, sums in merged.items() if sums["n"]}


def write_edition(root: Root, edition: _manifest.Edition) -> None:
    """Write an edition, if there is none of its number.

    Raises:
        BookLockedError: if another writer was first.
    """
    name = _layout.edition_name(edition.number)
    if not _files.create(root, name, edition.to_bytes()):
        raise BookLockedError(expected("edition", "absent", f"{name} of another writer", where=str(root)))
