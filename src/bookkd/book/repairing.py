"""Repair: files are made again from what is left of the book, records by asking again, and nothing is taken that no digest proves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.book import _files, _layout, _manifest
from bookkd.book._committing import Committed, Placed, measured_in, placed_of, write_edition, write_view
from bookkd.book._constants import packed_constants, read_constant
from bookkd.book._given import packed_keys
from bookkd.book._mending import (
    SIDECAR_LOST,
    identities,
    mended_edition,
    mended_sidecar,
    mended_view_file,
    without_measurements,
)
from bookkd.book._numbers import unfinished_growth
from bookkd.book._opening import find_edition, read_keys, read_plan
from bookkd.book._remaking import Say, damage_of, remade
from bookkd.book.constant import Constant
from bookkd.book.plan import Plan
from bookkd.book.remote import local_folder
from bookkd.core.errors import BookCorruptError, BookKDError, BookMismatchError, BookVersionError
from bookkd.core.lock import Lock

__all__ = ["Repaired", "repair"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Repaired:
    """What `repair` did.

    Args:
        edition: Number of the newest edition, a new one where `renewed` is not empty.
        restored: Files that are again, to the byte, what the book says of them.
        renewed: Files in place of ones that cannot be had again: the new edition names them.
        said: Records that were said again.
    """

    edition: int
    restored: tuple[str, ...] = ()
    renewed: tuple[str, ...] = ()
    said: int = 0


@dataclass
class _Work:
    root: Path
    say: Say | None
    accept: bool
    growth: int | None = None
    replaced: bool = False
    restored: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    said: int = 0

    @cached_property
    def identities(self) -> list[str]:
        """Of the plans in the folder."""
        return identities(self.root)

    @property
    def in_the_way(self) -> str:
        """Why no new edition can be written while a growth is begun."""
        return (
            f"a new edition has to name it, and {_layout.plan_name(self.growth or 0)} of a growth is begun; finish that with "
            f"the `make --grow` that began it, or drop it: bookkd compact {self.root} --prune"
        )


def repair(
    path: str | Path,
    say: Say | None = None,
    *,
    keys: npt.NDArray[np.uint64] | None = None,
    constants: Mapping[str, npt.ArrayLike] | None = None,
    accept: bool = False,
    progress: Progress | None = None,
) -> Repaired:
    """Find every fault of a book's newest edition and mend what can be proven to be what it was.

    Edition, view files, sidecars and headers of shards are made again from the files that are left. Records are asked for
    again, only those of faulty blocks and the others of their batches, and put in place if and only if the shard then has
    its recorded digest; so nothing else of the book changes. A sidecar whose measurements are lost is proven by the
    content digest of its view, and goes into a new edition of the same content. Interrupted, it is simply run again.
    Where a growth is begun, which has the number of such an edition, what needs one is left as it is.

    Args:
        path: Folder of the book.
        say: Gives every field of rows `start` to `stop` of a view, called with the batches of the plan; None where nobody can.
        keys: Keys of the samples, where their file may be faulty.
        constants: Name -> array, where their files may be faulty: nothing else in a book says what they were.
        accept: If true, records that differ from what they were are taken, under a new edition of another content digest.
        progress: Called with (shards checked, shards in all).

    Raises:
        BookCorruptError: if something cannot be mended: what, and what to do. What could be is.
        BookMismatchError: if records are said otherwise than they were, and `accept` is false.
        BookLockedError: if another process writes the book.

    >>> import tempfile
    >>> from bookkd.book import BookWriter, Dense, FieldPlan
    >>> plan = Plan(4, 1, {"logits": FieldPlan((3,), Dense())})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with BookWriter(folder, plan) as writer:
    ...         writer.write_rows(0, 0, {"logits": np.eye(4, 3)})
    ...         _ = writer.finish()
    ...     shard = next(Path(folder).rglob("*.safetensors"))
    ...     _ = shard.write_bytes(shard.read_bytes()[:-1])
    ...     repair(folder, lambda view, start, stop: {"logits": np.eye(4, 3)[start:stop]}).restored
    ('view-0000/rows-000000000-000000004.safetensors',)
    """
    root = local_folder(path, "repair")
    number = find_edition(root, None)
    lock = Lock(root / _layout.LOCK_NAME)
    try:
        _files.remove_leftovers(root)
        work = _Work(root, say, accept, unfinished_growth(root))
        edition = _edition(work, number)
        plan = _plan(work, edition, keys)
        _mend_constants(work, plan, constants or {})
        views = _mend_views(work, edition, plan, progress)
        if any(view is not None for view in views):
            number = edition.number + 1
            entries = tuple(
                entry if found is None else write_view(root, view, *found)
                for view, (entry, found) in enumerate(zip(edition.views, views, strict=True))
            )
            renewed = replace(edition, number=number, views=entries)
            write_edition(root, replace(renewed, fidelity=_measured(root, renewed)) if work.replaced else renewed)
        _refuse_rest(work, plan)
        return Repaired(number, tuple(work.restored), tuple(work.renewed), work.said)
    finally:
        lock.release()


def _measured(root: Path, edition: _manifest.Edition) -> dict[str, Any]:
    """Return what is measured of an edition whose sidecars are other ones, with what its codecs were chosen for."""
    files = (_manifest.read_view_file(root, view, entry, edition.n_samples) for view, entry in enumerate(edition.views))
    sidecars = [_manifest.read_sidecar(root, file, index) for file in files for index in range(len(file.stems))]
    found = measured_in((sidecar.fidelity for sidecar in sidecars), alike=False)
    chosen = {name: figures["choice"] for name, figures in edition.fidelity.items() if "choice" in figures}
    return {
        name: {**figures, **({"choice": chosen[name]} if name in chosen else {})} for name, figures in found.items()
    }


def _edition(work: _Work, number: int) -> _manifest.Edition:
    try:
        return _manifest.read_edition(work.root, number)
    except BookVersionError:
        raise
    except BookKDError as error:
        found = mended_edition(work.root, number)
        name = _layout.edition_name(number)
        if found is None:
            raise BookCorruptError(
                f"Expected {work.root / name} to be mendable, got: {error} What is left does not prove what it named. Restore "
                f"it from a copy, or delete it to read an older edition."
            ) from error
        _files.write_atomic(work.root, name, [found.to_bytes()])
        work.restored.append(name)
        return found


def _plan(work: _Work, edition: _manifest.Edition, keys: npt.NDArray[np.uint64] | None) -> Plan:
    try:
        plan = read_plan(work.root, edition)
    except BookKDError as error:
        raise BookCorruptError(
            f"Expected {work.root / edition.plan_file} to be whole, got: {error} A plan stands nowhere else: restore it from a "
            f"copy, or make the book again in another folder."
        ) from error
    if plan.keys_digest is None:
        return plan
    try:
        read_keys(work.root, plan, edition.keys_file)
    except BookKDError:
        packed = b"" if keys is None or len(keys) != plan.n_samples else packed_keys(keys, plan.n_samples)
        if _files.digest_of(packed) == plan.keys_digest:
            _files.write_atomic(work.root, edition.keys_file, [packed])
            work.restored.append(edition.keys_file)
        else:
            given = "none were given" if keys is None else "others were given"
            work.lost.append(f"{edition.keys_file}: the keys are needed that the book was made with, {given}")
    return plan


def _mend_constants(work: _Work, plan: Plan, given: Mapping[str, npt.ArrayLike]) -> None:
    packed = {each.entry: each.data for each in packed_constants(given).values()}
    named: dict[Constant, list[str]] = {}
    for name, entry in plan.constants.items():
        named.setdefault(entry, []).append(name)
    for entry, names in named.items():
        try:
            read_constant(work.root, entry)
        except BookKDError:
            if entry in packed:
                _files.write_atomic(work.root, entry.file, packed[entry])
                work.restored.append(entry.file)
            else:
                said = "another was given or worked out" if any(name in given for name in names) else "none was given"
                work.lost.append(f"{entry.file}: the constant {' or '.join(names[:2])} stands nowhere else, and {said}")


def _mend_views(
    work: _Work, edition: _manifest.Edition, plan: Plan, progress: Progress | None
) -> list[tuple[list[Placed], str] | None]:
    """Mend every view; return the lines and content of those that need a new view file."""
    files: list[_manifest.ViewFile | None] = []
    for view, entry in enumerate(edition.views):
        try:
            files.append(_manifest.read_view_file(work.root, view, entry, edition.n_samples))
        except BookKDError:
            name = f"{_layout.view_folder(view)}/{entry.file}"
            data = mended_view_file(work.root, view, entry, edition.n_samples)
            if data is None:
                work.lost.append(f"{name}: no shards in its folder give the digest that the edition has of it")
                files.append(None)
                continue
            _files.write_atomic(work.root, name, [data])
            work.restored.append(name)
            files.append(_manifest.read_view_file(work.root, view, entry, edition.n_samples))
    total = sum(len(file.stems) for file in files if file is not None)
    ticks = itertools.count(1)

    def tick() -> None:
        if progress is not None:
            progress(next(ticks), total)

    return [None if file is None else _mend_view(work, edition, plan, file, tick) for file in files]


def _mend_view(
    work: _Work, edition: _manifest.Edition, plan: Plan, file: _manifest.ViewFile, tick: Callable[[], None]
) -> tuple[list[Placed], str] | None:
    lines = placed_of(file)
    sidecars: list[_manifest.Sidecar | None] = []
    unproven: list[int] = []
    for index, line in enumerate(lines):
        name = f"{_layout.view_folder(file.view)}/{line.stem}.json"
        try:
            sidecars.append(_manifest.read_sidecar(work.root, file, index))
            continue
        except BookKDError:
            found = mended_sidecar(work.root, file, index, plan, [edition.identity, *work.identities])
        sidecars.append(found)
        if found is not None and _files.digest_of(found.to_bytes()) == line.sidecar_digest:
            _files.write_atomic(work.root, name, [found.to_bytes()])
            work.restored.append(name)
        else:
            unproven.append(index)
    whole = [each for each in sidecars if each is not None]
    if unproven and not _proven(work, edition, file.view, lines, whole, unproven):
        for _ in lines:
            tick()
        return None
    return _mend_shards(work, edition, plan, file.view, lines, whole, tick, renewed=bool(unproven))


def _proven(
    work: _Work,
    edition: _manifest.Edition,
    view: int,
    lines: list[Placed],
    sidecars: list[_manifest.Sidecar],
    unproven: Sequence[int],
) -> bool:
    """Put sidecars that lost their measurements in place, if the content of the view proves their hashes."""
    names = [f"{_layout.view_folder(view)}/{line.stem}.json" for line in lines]
    if len(sidecars) != len(lines) or _content(sidecars) != edition.views[view].content:
        for index in unproven:
            place = f"view {view}, samples {lines[index].start} to {lines[index].stop}"
            work.lost.append(f"{names[index]}: {SIDECAR_LOST} ({place})")
        return False
    if work.growth is not None:
        work.lost += [f"{names[index]}: {work.in_the_way}" for index in unproven]
        return False
    intact = [each for index, each in enumerate(sidecars) if index not in unproven]
    for index in unproven:
        sidecars[index] = without_measurements(sidecars[index], intact)
        data = sidecars[index].to_bytes()
        _files.write_atomic(work.root, names[index], [data])
        work.renewed.append(names[index])
        lines[index] = Placed.of(lines[index].stem, Committed(sidecars[index], len(data), _files.digest_of(data)))
    return True


def _content(sidecars: Sequence[_manifest.Sidecar]) -> str:
    try:
        return _manifest.content_of_view(sidecars)
    except (BookKDError, KeyError):
        return ""


def _mend_shards(
    work: _Work,
    edition: _manifest.Edition,
    plan: Plan,
    view: int,
    lines: list[Placed],
    sidecars: list[_manifest.Sidecar],
    tick: Callable[[], None],
    *,
    renewed: bool,
) -> tuple[list[Placed], str] | None:
    """Mend the shards of a view whose sidecars are known; return its lines and content where a new edition has to name them."""
    for index, (line, sidecar) in enumerate(zip(lines, sidecars, strict=True)):
        tick()
        relative = f"{_layout.view_folder(view)}/{line.stem}.safetensors"
        with damage_of(work.root, relative, sidecar, plan) as damage:
            if damage is None:
                continue
            if damage.rows and work.say is None:
                work.lost.append(f"{relative}: {_ranges(damage.rows)} of view {view} have to be said again")
                continue
            made = remade(damage, plan, work.say)
            work.said += made.said
            if made.sidecar.digest == sidecar.digest:
                _files.write_atomic(work.root, relative, made.pieces())
                work.restored.append(relative)
                continue
            if not work.accept:
                work.other.append(f"{relative} ({_ranges(damage.rows)} of view {view}{made.difference})")
                continue
            if work.growth is not None:
                work.lost.append(f"{relative}: {work.in_the_way}")
                continue
            # What was measured is of records that are no more.
            sidecar = without_measurements(made.sidecar, [made.sidecar])
            lines[index], sidecars[index] = _renew(work, edition, view, line, sidecar, made.pieces())
            renewed = work.replaced = True
    return (lines, _manifest.content_of_view(sidecars)) if renewed else None


def _renew(
    work: _Work,
    edition: _manifest.Edition,
    view: int,
    line: Placed,
    sidecar: _manifest.Sidecar,
    pieces: Iterator[bytes | memoryview],
) -> tuple[Placed, _manifest.Sidecar]:
    stem = _layout.shard_stem(line.start, line.stop, edition.number + 1)
    place = f"{_layout.view_folder(view)}/{stem}"
    _files.write_atomic(work.root, f"{place}.safetensors", pieces)
    data = sidecar.to_bytes()
    _files.write_atomic(work.root, f"{place}.json", [data])
    work.renewed.append(f"{place}.safetensors")
    return Placed.of(stem, Committed(sidecar, len(data), _files.digest_of(data))), sidecar


def _ranges(rows: Sequence[tuple[int, int]]) -> str:
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return "samples " + ", ".join(f"{start} to {stop}" for start, stop in rows[:3]) + more if rows else "the header"


def _refuse_rest(work: _Work, plan: Plan) -> None:
    """Say what is left to do; what could be mended is."""
    if work.lost:
        more = f" and {len(work.lost) - 3} more" if len(work.lost) > 3 else ""
        do = "Restore the files from a copy, or make the book again in another folder."
        if work.say is not None and any("none was given" in each for each in work.lost):
            do = "Pass it: bookkd.making.repair(path, ..., constants={name: array}), or restore the file from a copy."
        elif any("said again" in each or "none was given" in each for each in work.lost):
            do = "Name the teacher and the data that the book was made with, as for `make`: bookkd repair BOOK --teacher ..."
        raise BookCorruptError(
            f"Expected {work.root} to be mendable from what is left of it, got {'; '.join(work.lost[:3])}{more}. {do}"
        )
    if work.other:
        more = f" and {len(work.other) - 3} more" if len(work.other) > 3 else ""
        raise BookMismatchError(
            f"Expected the teacher to say again what it said, got other records for {'; '.join(work.other[:3])}{more}. The book was "
            f"made on {plan.device} with {plan.threads} threads and {_versions(plan.versions)}: repair it under these, restore the "
            f"files from a copy, or take the other records under a new edition with --accept."
        )


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "versions unknown"
