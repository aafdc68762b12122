"""Manifests made again from what is left; every one is a guess that a digest has to prove."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from bookkd.book import _files, _layout, _manifest
from bookkd.book._carried import nothing_measured
from bookkd.book._committing import measured_in
from bookkd.book._container import Span
from bookkd.book._ends import Ends
from bookkd.book._laid import laid_out, lengths_in
from bookkd.book.plan import Plan
from bookkd.core import jsonio
from bookkd.core.errors import BookKDError

__all__ = ["SIDECAR_LOST", "identities", "mended_edition", "mended_sidecar", "mended_view_file", "without_measurements"]

SIDECAR_LOST = "neither it nor its shard is what the book says, so that nothing proves what the records were"
_HEX = re.compile(rb"[0-9a-f]{32}")
_HEX_TEXT = re.compile(rb'"([0-9a-f]{32})"')
_PLAN = re.compile(rb'"plan": "([0-9a-f]{32})"')
_BEGIN, _END = b'\n "fidelity": {', b'},\n "format_version"'
_STEM = re.compile(rf'"({_layout.SHARD_STEM.pattern})"')
_TRIES = 256
"""Ways to choose among files that are left over; more are not tried."""
_TRIED_BYTES = 2**25
"""Bytes that all tries for one file may make; what somebody laid there may be long and have many ways."""
_CANDIDATES = 8
"""Files of one kind, and names found in a damaged file, that are tried; the likeliest first."""

_NEWEST = 10**6
"""Above the number of every edition."""

_T = TypeVar("_T")
_Line = tuple[str, _manifest.Sidecar, bytes]
"""Stem, sidecar, and the bytes of its file."""


def _bytes(root: Path, relative: str) -> bytes:
    with contextlib.suppress(BookKDError):
        return _files.read_inside(root, relative)
    return b""


def _json(data: bytes) -> dict[str, Any]:
    with contextlib.suppress(BookKDError):
        return jsonio.parse(data, "", limit=_layout.JSON_LIMIT)
    return {}


def _tries(guesses: Iterable[_T], made: Callable[[_T], bytes]) -> Iterator[tuple[_T, bytes]]:
    """Yield guesses with the bytes of the file that each would be, as many as are worth the time."""
    total = 0
    for guess in itertools.islice(guesses, _TRIES):
        data = b""
        with contextlib.suppress(ValueError, TypeError, RecursionError):  # figures of a damaged file may be anything
            data = made(guess)
        yield guess, data
        total += len(data)
        if total > _TRIED_BYTES:
            return


def mended_edition(root: Path, number: int) -> _manifest.Edition | None:
    """Return an edition made of the plan and view files in a book; None unless the damaged file still has a digest of it.

    That is its own digest, or that of its content: then measurements come from the sidecars, and what it cost is not known.
    """
    left = _bytes(root, _layout.edition_name(number))
    digests = {found.decode() for found in _HEX.findall(left)}
    told = _json(left)
    cost, fidelity = ({} if not isinstance(told.get(key), dict) else told[key] for key in ("cost", "fidelity"))

    def guesses() -> Iterator[tuple[_manifest.Edition, dict[str, Any]]]:
        for content, measured in _contents(root, number, left):
            for guess in (fidelity, measured) if fidelity else (measured,):
                yield replace(content, fidelity=guess, cost=cost), measured

    by_content = None
    for (whole, measured), data in _tries(guesses(), lambda guess: guess[0].to_bytes()):
        if _json(data).get("digest") in digests:
            return whole
        if by_content is None and whole.content_digest in digests:
            by_content = replace(whole, fidelity=measured, cost={})
    return by_content


def _contents(root: Path, number: int, left: bytes) -> Iterator[tuple[_manifest.Edition, dict[str, Any]]]:
    """Yield editions of the plans and view files that are there, each with what its sidecars have measured."""
    for plan_file, plan, data in _plans(root, number):
        keys_file = _keys_file(root, plan, number)
        for entries, sidecars in _views(root, plan, left):
            content = _manifest.Edition(
                number=number,
                n_samples=plan.n_samples,
                views=entries,
                plan_size=len(data),
                plan_digest=_files.digest_of(data),
                identity=jsonio.digest(plan.identity()),
                fidelity={},
                cost={},
                plan_file=plan_file,
                keys_file=keys_file,
            )
            yield content, measured_in(sidecars, alike=False)


def _names(root: Path, form: re.Pattern[str], number: int) -> list[str]:
    """Return the files of a form that an edition may name, the newest first; what is there is asked, not every number."""
    found = ((int(match[1] or 1), match[0]) for name in _files.entries(root) if (match := form.fullmatch(name)))
    return [name for of, name in sorted(found, reverse=True) if of <= number][:_CANDIDATES]


def _plans(root: Path, number: int) -> Iterator[tuple[str, Plan, bytes]]:
    """Yield the plans that an edition may name, the newest first."""
    for name in _names(root, _layout.PLAN_FILE, number):
        data = _bytes(root, name)
        with contextlib.suppress(BookKDError):
            if data:
                yield name, Plan.from_json(jsonio.parse(data, name), name), data


def _keys_file(root: Path, plan: Plan, number: int) -> str:
    for name in _names(root, _layout.KEYS_FILE, number) if plan.keys_digest is not None else ():
        with contextlib.suppress(BookKDError), _files.mapped_inside(root, name) as data:
            if _files.digest_of(data) == plan.keys_digest:
                return name
    return _layout.KEYS_NAME


def _views(
    root: Path, plan: Plan, left: bytes
) -> Iterator[tuple[tuple[_manifest.ViewEntry, ...], list[Mapping[str, Any]]]]:
    """Yield choices of one whole view file a view, those that the damaged edition still names first."""
    named = {name.decode() for name in re.findall(rb"view-[0-9a-f]{8}\.json", left)}
    options = [_view_files(root, view, plan.n_samples, named) for view in range(plan.n_views)]
    for choice in itertools.islice(itertools.product(*options), _TRIES):
        yield tuple(entry for entry, _ in choice), [fidelity for _, measured in choice for fidelity in measured]


def _view_files(
    root: Path, view: int, n_samples: int, named: Collection[str]
) -> list[tuple[_manifest.ViewEntry, list[Mapping[str, Any]]]]:
    """Return the whole view files of a view, those that were named first."""
    folder = _layout.view_folder(view)
    there = _files.entries(root / folder) if (root / folder).is_dir() else []
    names = sorted(filter(_layout.VIEW_FILE.fullmatch, there), key=lambda name: name not in named)
    found: list[tuple[_manifest.ViewEntry, list[Mapping[str, Any]]]] = []
    for name in names:
        if len(found) == _CANDIDATES:
            break
        data = _bytes(root, f"{folder}/{name}")
        digest = _files.digest_of(data)
        if name != f"view-{digest[:8]}.json":
            continue
        with contextlib.suppress(BookKDError, KeyError):
            file = _manifest.ViewFile.from_json(jsonio.parse(data, name), n_samples, name)
            sidecars = [_manifest.read_sidecar(root, file, index) for index in range(len(file.stems))]
            entry = _manifest.ViewEntry(name, len(data), digest, _manifest.content_of_view(sidecars))
            found.append((entry, [sidecar.fidelity for sidecar in sidecars]))
    return found


def mended_view_file(root: Path, view: int, entry: _manifest.ViewEntry, n_samples: int) -> bytes | None:
    """Return the file of a view made of the sidecars in its folder; None unless it has the digest that the edition has of it."""
    folder = _layout.view_folder(view)
    left = _bytes(root, f"{folder}/{entry.file}").decode("ascii", "replace")
    named = {match[1] for match in _STEM.finditer(left)}
    by_start: dict[int, list[_Line]] = {}
    for name in _files.entries(root / folder) if (root / folder).is_dir() else []:
        stem, _, end = name.partition(".")
        if _layout.SHARD_STEM.fullmatch(stem) and end == "json":
            data = _bytes(root, f"{folder}/{name}")
            with contextlib.suppress(BookKDError):
                sidecar = _manifest.Sidecar.from_json(jsonio.parse(data, name), name)
                by_start.setdefault(sidecar.start, []).append((stem, sidecar, data))
    for each in by_start.values():
        each.sort(key=lambda line: line[0] not in named)
    for _, data in _tries(_chains(by_start, n_samples), lambda chain: _view_bytes(view, chain)):
        if (len(data), _files.digest_of(data)) == (entry.size, entry.digest):
            return data
    return None


def _view_bytes(view: int, chain: Sequence[_Line]) -> bytes:
    return _manifest.ViewFile(
        view=view,
        stems=[stem for stem, _, _ in chain],
        starts=np.array([sidecar.start for _, sidecar, _ in chain], dtype=np.int64),
        stops=np.array([sidecar.stop for _, sidecar, _ in chain], dtype=np.int64),
        sizes=np.array([sidecar.size for _, sidecar, _ in chain], dtype=np.int64),
        sidecar_sizes=np.array([len(data) for _, _, data in chain], dtype=np.int64),
        sidecars=[_files.digest_of(data) for _, _, data in chain],
    ).to_bytes()


def _chains(by_start: Mapping[int, Sequence[_Line]], n_samples: int) -> Iterator[list[_Line]]:
    """Yield the ways to cover all samples; without recursion, since a view may have many shards.

    Only lines are followed from whose end the last sample can be reached, so that no step is taken in vain: finding that
    there is no way takes one look at each line.
    """
    leading: dict[int, list[_Line]] = {}
    for start in sorted(by_start, reverse=True):
        ways = [line for line in by_start[start] if line[1].stop == n_samples or leading.get(line[1].stop)]
        if ways:
            leading[start] = ways
    chain: list[_Line] = []
    open_choices = [iter(leading.get(0, ()))]
    while open_choices:
        line = next(open_choices[-1], None)
        if line is None:
            open_choices.pop()
            if chain:
                chain.pop()
            continue
        chain.append(line)
        if line[1].stop == n_samples:
            yield list(chain)
            chain.pop()
        else:
            open_choices.append(iter(leading[line[1].stop]))


def mended_sidecar(
    root: Path, file: _manifest.ViewFile, index: int, plan: Plan, known: Sequence[str]
) -> _manifest.Sidecar | None:
    """Return a sidecar made of its shard's bytes, with the measurements of the damaged one if these can still be read.

    The caller has to prove it, by its own digest or that of the view's content. None where the shard is of another size.

    Args:
        root: Folder of the book.
        file: The file of its view.
        index: Which of its shards.
        plan: Of the book.
        known: Identities that it may have been written under, the likeliest first.
    """
    folder = _layout.view_folder(file.view)
    stem, rows = file.stems[index], int(file.stops[index] - file.starts[index])
    size = int(file.sizes[index])
    with contextlib.suppress(BookKDError), _files.mapped_inside(root, f"{folder}/{stem}.safetensors") as data:
        if len(data) != size:
            return None
        lengths = lengths_in(data, size, plan, rows)
        begin, spans = laid_out(plan.stored, lengths or dict.fromkeys(plan.stored, rows))
        if lengths is not None and bytes(data[: len(begin)]) == begin:
            left = _bytes(root, f"{folder}/{stem}.json")
            block = plan.block_rows or rows
            made = _manifest.Sidecar(
                view=file.view,
                start=int(file.starts[index]),
                stop=int(file.stops[index]),
                size=size,
                digest=_files.digest_of(data),
                block_rows=block,
                blocks=_hashes(data, spans, plan, block),
                plan=known[0],
                fidelity={},
            )
            guesses = (
                replace(made, plan=each, fidelity=fidelity)
                for fidelity in _measurements(left)
                for each in dict.fromkeys([*known, *_named_plans(left)])
            )
            for guess, again in _tries(guesses, _manifest.Sidecar.to_bytes):
                if _files.digest_of(again) == file.sidecars[index]:
                    return guess
            return made
    return None


def _hashes(data: memoryview, spans: Mapping[str, Span], plan: Plan, block: int) -> dict[str, npt.NDArray[np.uint64]]:
    """Return the hashes of a shard's blocks, as far as its ends say where they lie; whether they are right is not known."""
    found = {}
    for name, span in sorted(spans.items()):
        edges = np.append(np.arange(0, span.shape[0], block), span.shape[0])
        if name in plan.flat:
            ends, most = plan.flat[name]
            of = spans[ends]
            edges = Ends(
                np.frombuffer(data, of.dtype, of.shape[0], of.start), block.bit_length() - 1, span.shape[0], most
            ).first
        at = (span.start + edges * span.row_bytes).tolist()
        found[name] = np.array(
            [xxhash.xxh3_64_intdigest(data[begin:end]) for begin, end in pairwise(at)], dtype=np.uint64
        )
    return found


def identities(root: Path) -> list[str]:
    """Return the identities of the plans in a book, the newest first: a shard may have been written under an older one."""
    return [jsonio.digest(plan.identity()) for _, plan, _ in _plans(root, _NEWEST)]


def _named_plans(left: bytes) -> list[str]:
    """Return what may have been the identity in a damaged sidecar: what is named so, then other digests, the last ones first."""
    found = [*_PLAN.findall(left), *_HEX_TEXT.findall(left), *reversed(_HEX.findall(left))]
    return [each.decode() for each in dict.fromkeys(found)][:_CANDIDATES]


def _measurements(left: bytes) -> list[Mapping[str, Any]]:
    """Return what may have been the measurements: as the damaged file has them, or as a piece of it has."""
    whole = _json(left).get("fidelity")
    begin, end = left.find(_BEGIN), left.rfind(_END)  # an expression would look to the end from each beginning
    cut = _json(left[begin + len(_BEGIN) - 1 : end + 1]) if 0 <= begin < end else None
    told = whole if isinstance(whole, dict) else cut
    return [each for each in (told, {}) if isinstance(each, dict)]


def without_measurements(sidecar: _manifest.Sidecar, siblings: Sequence[_manifest.Sidecar]) -> _manifest.Sidecar:
    """Return a sidecar that says that none of its rows were measured, at the temperatures of its siblings."""
    like = siblings[0].fidelity if siblings else {}
    return replace(sidecar, fidelity={name: nothing_measured(each) for name, each in like.items()})
