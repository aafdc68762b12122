"""Manifests made again from what is left; every one is a guess that a digest has to prove."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

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

__all__ = ["SIDECAR_LOST", "mended_edition", "mended_sidecar", "mended_view_file", "without_measurements"]

SIDECAR_LOST = "neither it nor its shard is what the book says, so that nothing proves what the records were"
_HEX = re.compile(rb"[0-9a-f]{32}")
_TRIES = 256
"""Ways to choose among files that are left over; more are not tried."""


def _bytes(root: Path, relative: str) -> bytes:
    with contextlib.suppress(BookKDError):
        return _files.read_inside(root, relative)
    return b""


def _json(data: bytes) -> dict[str, Any]:
    with contextlib.suppress(BookKDError):
        return jsonio.parse(data, "", limit=_layout.JSON_LIMIT)
    return {}


def mended_edition(root: Path, number: int) -> _manifest.Edition | None:
    """Return an edition made of the plan and view files in a book; None unless the damaged file still has a digest of it.

    That is its own digest, or that of its content: then measurements come from the sidecars, and what it cost is not known.
    """
    left = _bytes(root, _layout.edition_name(number))
    digests = {found.decode() for found in _HEX.findall(left)}
    told = _json(left)
    cost = told.get("cost") if isinstance(told.get("cost"), dict) else {}
    fidelity = told.get("fidelity") if isinstance(told.get("fidelity"), dict) else {}
    for plan_file, plan, data in _plans(root, number):
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
                keys_file=_keys_file(root, plan, number),
            )
            measured = measured_in(sidecars, alike=False)
            for guess in (fidelity or measured, measured):
                with contextlib.suppress(ValueError, TypeError):
                    whole = replace(content, fidelity=guess, cost=cost or {})
                    if jsonio.parse(whole.to_bytes(), "")["digest"] in digests:
                        return whole
            if content.content_digest in digests:
                return replace(content, fidelity=measured)
    return None


def _plans(root: Path, number: int) -> Iterator[tuple[str, Plan, bytes]]:
    """Yield the plans that an edition may name, the newest first."""
    for name in (_layout.plan_name(each) for each in range(number, 0, -1)):
        data = _bytes(root, name)
        with contextlib.suppress(BookKDError):
            if data:
                yield name, Plan.from_json(jsonio.parse(data, name), name), data


def _keys_file(root: Path, plan: Plan, number: int) -> str:
    for name in (_layout.keys_name(each) for each in range(number, 0, -1)):
        if plan.keys_digest is not None and (root / name).is_file():
            with contextlib.suppress(BookKDError):
                limit = plan.n_samples * 8 + 2**22
                if _files.digest_of(_files.read_inside(root, name, limit)) == plan.keys_digest:
                    return name
    return _layout.KEYS_NAME


def _views(
    root: Path, plan: Plan, left: bytes
) -> Iterator[tuple[tuple[_manifest.ViewEntry, ...], list[Mapping[str, Any]]]]:
    """Yield choices of one whole view file a view, those that the damaged edition still names first."""
    named = {name.decode() for name in re.findall(rb"view-[0-9a-f]{8}\.json", left)}
    options = [_view_files(root, view, plan.n_samples) for view in range(plan.n_views)]
    ordered = [sorted(found, key=lambda each: each[0].file not in named) for found in options]
    for choice in itertools.islice(itertools.product(*ordered), _TRIES):
        yield tuple(entry for entry, _ in choice), [fidelity for _, measured in choice for fidelity in measured]


def _view_files(root: Path, view: int, n_samples: int) -> list[tuple[_manifest.ViewEntry, list[Mapping[str, Any]]]]:
    folder = _layout.view_folder(view)
    found = []
    for name in _files.entries(root / folder) if (root / folder).is_dir() else []:
        data = _bytes(root, f"{folder}/{name}") if _layout.VIEW_FILE.fullmatch(name) else b""
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
    by_start: dict[int, list[tuple[str, _manifest.Sidecar, bytes]]] = {}
    for name in _files.entries(root / folder) if (root / folder).is_dir() else []:
        stem, _, end = name.partition(".")
        if _layout.SHARD_STEM.fullmatch(stem) and end == "json":
            data = _bytes(root, f"{folder}/{name}")
            with contextlib.suppress(BookKDError):
                sidecar = _manifest.Sidecar.from_json(jsonio.parse(data, name), name)
                by_start.setdefault(sidecar.start, []).append((stem, sidecar, data))
    for each in by_start.values():
        each.sort(key=lambda line: f'"{line[0]}"' not in left)
    for chain in itertools.islice(_chains(by_start, n_samples), _TRIES):
        data = _manifest.ViewFile(
            view=view,
            stems=[stem for stem, _, _ in chain],
            starts=np.array([sidecar.start for _, sidecar, _ in chain], dtype=np.int64),
            stops=np.array([sidecar.stop for _, sidecar, _ in chain], dtype=np.int64),
            sizes=np.array([sidecar.size for _, sidecar, _ in chain], dtype=np.int64),
            sidecar_sizes=np.array([len(data) for _, _, data in chain], dtype=np.int64),
            sidecars=[_files.digest_of(data) for _, _, data in chain],
        ).to_bytes()
        if (len(data), _files.digest_of(data)) == (entry.size, entry.digest):
            return data
    return None


def _chains(
    by_start: Mapping[int, Sequence[tuple[str, _manifest.Sidecar, bytes]]], n_samples: int
) -> Iterator[list[tuple[str, _manifest.Sidecar, bytes]]]:
    """Yield the ways to cover all samples; without recursion, since a view may have many shards."""
    chain: list[tuple[str, _manifest.Sidecar, bytes]] = []
    open_choices = [iter(by_start.get(0, ()))]
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
            open_choices.append(iter(by_start.get(line[1].stop, ())))


def mended_sidecar(
    root: Path, file: _manifest.ViewFile, index: int, plan: Plan, identity: str
) -> _manifest.Sidecar | None:
    """Return a sidecar made of its shard's bytes, with the measurements of the damaged one if these can still be read.

    The caller has to prove it, by its own digest or that of the view's content. None where the shard is of another size.
    """
    folder = _layout.view_folder(file.view)
    stem, rows = file.stems[index], int(file.stops[index] - file.starts[index])
    size = int(file.sizes[index])
    with contextlib.suppress(BookKDError):
        data = _files.read_inside(root, f"{folder}/{stem}.safetensors", limit=size)
        lengths = lengths_in(memoryview(data), size, plan, rows)
        begin, spans = laid_out(plan.stored, lengths or dict.fromkeys(plan.stored, rows))
        if lengths is not None and len(data) == size and data[: len(begin)] == begin:
            left = _bytes(root, f"{folder}/{stem}.json")
            block = plan.block_rows or rows
            made = _manifest.Sidecar(
                view=file.view,
                start=int(file.starts[index]),
                stop=int(file.stops[index]),
                size=size,
                digest=_files.digest_of(data),
                block_rows=block,
                blocks=_hashes(memoryview(data), spans, plan, block),
                plan=identity,
                fidelity={},
            )
            guesses = [
                replace(made, plan=each, fidelity=fidelity)
                for each in _identities(root, identity, left)
                for fidelity in _measurements(left)
            ]
            proven = (each for each in guesses if _proves(each, file.sidecars[index]))
            return next(proven, made)
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


def _proves(sidecar: _manifest.Sidecar, digest: str) -> bool:
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        return _files.digest_of(sidecar.to_bytes()) == digest
    return False


def _identities(root: Path, identity: str, left: bytes) -> list[str]:
    """Return the plans that a shard may have been written under: that of the edition, those of older ones, what is left."""
    found = [identity]
    for name in _files.entries(root):
        if _layout.PLAN_FILE.fullmatch(name):
            with contextlib.suppress(BookKDError):
                found.append(jsonio.digest(Plan.from_json(jsonio.parse(_bytes(root, name), name), name).identity()))
    found += [each.decode() for each in _HEX.findall(left)]
    return list(dict.fromkeys(found))


def _measurements(left: bytes) -> list[Mapping[str, Any]]:
    """Return what may have been the measurements: as the damaged file has them, or as a piece of it has."""
    whole = _json(left).get("fidelity")
    piece = re.search(rb'\n "fidelity": (\{.*\}),\n "format_version"', left, re.DOTALL)
    cut = _json(piece[1]) if piece else None
    return [each for each in (whole, cut, {}) if isinstance(each, dict)]


def without_measurements(sidecar: _manifest.Sidecar, siblings: Sequence[_manifest.Sidecar]) -> _manifest.Sidecar:
    """Return a sidecar that says that none of its rows were measured, at the temperatures of its siblings."""
    like = siblings[0].fidelity if siblings else {}
    return replace(sidecar, fidelity={name: nothing_measured(each) for name, each in like.items()})
