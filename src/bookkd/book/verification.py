"""Reading everything once: every file of a book against the digest that names it, with the place of each fault."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash

from bookkd.book import _container, _files, _layout, _manifest
from bookkd.book._constants import read_constant
from bookkd.book._ends import Ends
from bookkd.book._hashing import Meter, Progress, digest_of_file
from bookkd.book._opening import find_edition, read_keys, read_plan
from bookkd.book.plan import Plan
from bookkd.book.ragged import Flat
from bookkd.book.remote import RemotePath, Root, root_of
from bookkd.core.errors import BookKDError, BookUnfinishedError

__all__ = ["Fault", "verify"]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a book.

    Args:
        path: The file, relative to the book.
        view: The view it concerns, if one.
        start: First sample that it concerns.
        stop: End of the samples.
        part: Tensor, such as "logits/values".
        block: Number of the hashing block.
        message: What is wrong, one line.
    """

    path: str
    view: int | None = None
    start: int | None = None
    stop: int | None = None
    part: str | None = None
    block: int | None = None
    message: str = ""

    def __str__(self) -> str:
        place = [
            "" if self.view is None else f"view {self.view}",
            "" if self.start is None else f"samples {self.start} to {self.stop}",
            "" if self.part is None else self.part,
            "" if self.block is None else f"block {self.block}",
        ]
        listed = ", ".join(entry for entry in place if entry)
        return " ".join(f"{self.path}{f' ({listed})' if listed else ''}: {self.message}".split())


def verify(
    path: str | Path | RemotePath, edition: int | None = None, *, progress: Progress | None = None
) -> list[Fault]:
    """Read a whole book and return what is wrong with it.

    Args:
        path: Folder of the book, or its address: whole shards are fetched, past the cache.
        edition: Number of the edition; None for the newest.
        progress: Called with (bytes read, bytes in all) as shards are read.

    Returns:
        One entry per fault, in the order of views and samples; empty for a whole book.

    Raises:
        BookMissingError: if there is no book or no such edition.
    """
    root = root_of(path)
    try:
        number = find_edition(root, edition)
    except BookUnfinishedError as error:
        return [Fault(_layout.edition_name(1), message=str(error))]
    name = _layout.edition_name(number)
    try:
        found = _manifest.read_edition(root, number)
    except BookKDError as error:
        return [Fault(name, message=str(error))]
    faults: list[Fault] = []
    plan: Plan | None = None
    try:
        plan = read_plan(root, found)
    except BookKDError as error:
        faults.append(Fault(found.plan_file, message=str(error)))
    if plan is not None and plan.keys_digest is not None:
        try:
            read_keys(root, plan, found.keys_file)
        except BookKDError as error:
            faults.append(Fault(found.keys_file, message=str(error)))
    for constant in dict.fromkeys({} if plan is None else plan.constants.values()):
        try:
            read_constant(root, constant)
        except BookKDError as error:
            faults.append(Fault(constant.file, message=str(error)))
    files = []
    for view, entry in enumerate(found.views):
        try:
            files.append((_manifest.read_view_file(root, view, entry, found.n_samples), entry))
        except BookKDError as error:
            name = f"{_layout.view_folder(view)}/{entry.file}"
            faults.append(Fault(name, view, 0, found.n_samples, message=str(error)))
    total = sum(int(file.sizes.sum()) for file, _ in files)
    meter = Meter(progress, total)
    for file, entry in files:
        faults.extend(_verify_view(root, file, entry, plan, meter))
    return faults


def _verify_view(
    root: Root, file: _manifest.ViewFile, entry: _manifest.ViewEntry, plan: Plan | None, meter: Meter
) -> Iterator[Fault]:
    sidecars: list[_manifest.Sidecar] = []
    for index, stem in enumerate(file.stems):
        relative = f"{_layout.view_folder(file.view)}/{stem}"
        start, stop = int(file.starts[index]), int(file.stops[index])
        try:
            sidecar = _manifest.read_sidecar(root, file, index)
        except BookKDError as error:
            yield Fault(f"{relative}.json", file.view, start, stop, message=str(error))
            meter.add(int(file.sizes[index]))
            continue
        sidecars.append(sidecar)
        yield from _verify_shard(root, f"{relative}.safetensors", sidecar, plan, meter)
    if len(sidecars) == len(file.stems):
        yield from _verify_content(file, entry, sidecars)


def _verify_content(
    file: _manifest.ViewFile, entry: _manifest.ViewEntry, sidecars: list[_manifest.Sidecar]
) -> Iterator[Fault]:
    try:
        content = _manifest.content_of_view(sidecars)
    except (BookKDError, KeyError) as error:
        content = str(error)
    if content != entry.content:
        message = f"Expected the content digest of its sidecars to be {entry.content}, got {content}."
        yield Fault(
            f"{_layout.view_folder(file.view)}/{entry.file}", file.view, 0, int(file.stops[-1]), message=message
        )


def _verify_shard(
    root: Root, relative: str, sidecar: _manifest.Sidecar, plan: Plan | None, meter: Meter
) -> Iterator[Fault]:
    view, start, stop = sidecar.view, sidecar.start, sidecar.stop
    try:
        descriptor, size = _files.open_inside(root, relative, sidecar.size)
    except BookKDError as error:
        meter.add(sidecar.size)
        yield Fault(relative, view, start, stop, message=str(error))
        return
    try:
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if size != sidecar.size:
                meter.add(sidecar.size)
                yield Fault(relative, view, start, stop, message=f"Expected {sidecar.size} bytes, got {size}.")
                return
            whole = digest_of_file(file, meter) == sidecar.digest
            where, flat = str(root / relative), plan.flat if plan is not None else None
            spans = _header(file, size, where, flat)
            if plan is not None:
                _container.check_layout(spans, plan.stored, stop - start, where, plan.flat)
            ends = {each.ends: _ends(file, spans, name, each, sidecar) for name, each in (flat or {}).items()}
            if not whole:
                yield from _faulty_blocks(file, relative, sidecar, spans, flat or {}, ends)
            for name, each in ends.items():
                yield from _faulty_ends(relative, sidecar, name, each)
    except (BookKDError, OSError) as error:
        yield Fault(relative, view, start, stop, message=str(error))


def _header(file: FileIO, size: int, where: str, flat: Mapping[str, Flat] | None) -> dict[str, _container.Span]:
    """Parse the header; without a plan (None) nobody knows which tensors may be empty."""
    begin = _container.header_end(_at(file, 0, 8), size, where)
    return _container.parse_header(_at(file, 8, begin - 8), begin, size, where, _Any() if flat is None else flat)


class _Any:
    def __contains__(self, name: object) -> bool:
        return True


def _ends(
    file: FileIO, spans: Mapping[str, _container.Span], name: str, flat: Flat, sidecar: _manifest.Sidecar
) -> Ends:
    span = spans[flat.ends]
    ends = np.frombuffer(_at(file, span.start, span.stop - span.start), dtype=span.dtype)
    return Ends(ends, sidecar.block_rows.bit_length() - 1, spans[name].shape[0], flat.most)


def _faulty_ends(relative: str, sidecar: _manifest.Sidecar, name: str, ends: Ends) -> Iterator[Fault]:
    """Name ends that fall, or that do not add up, whatever their hashes say."""
    fault = ends.fault()
    if fault:
        yield Fault(relative, sidecar.view, sidecar.start, sidecar.stop, name, message=f"It says {fault}.")
    for block in range(len(ends.first) - 1):
        fault = ends.fault_of(block)
        if fault:
            first = sidecar.start + block * sidecar.block_rows
            stop = min(first + sidecar.block_rows, sidecar.stop)
            yield Fault(relative, sidecar.view, first, stop, name, block, f"It says {fault}.")


def _at(file: FileIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _faulty_blocks(
    file: FileIO,
    relative: str,
    sidecar: _manifest.Sidecar,
    spans: Mapping[str, _container.Span],
    flat: Mapping[str, Flat],
    ends: Mapping[str, Ends],
) -> Iterator[Fault]:
    """Name the blocks that differ; where none does, it is the header."""
    found = False
    rows = np.append(np.arange(0, sidecar.stop - sidecar.start, sidecar.block_rows), sidecar.stop - sidecar.start)
    for part, span in sorted(spans.items()):
        if part in flat and ends[flat[part].ends].fault():
            continue  # where its blocks lie is not known; the ends are a fault themselves
        edges = ends[flat[part].ends].first if part in flat else np.minimum(rows, span.shape[0])
        for block, (first, last) in enumerate(pairwise((span.start + edges * span.row_bytes).tolist())):
            data = _at(file, first, last - first)
            recorded = sidecar.blocks[part][block] if part in sidecar.blocks else None
            if recorded is None or xxhash.xxh3_64_intdigest(data) != int(recorded):
                found = True
                first = sidecar.start + block * sidecar.block_rows
                stop = min(first + sidecar.block_rows, sidecar.stop)
                message = "The bytes differ from their recorded xxh3_64."
                yield Fault(relative, sidecar.view, first, stop, part, block, message)
    if not found:
        message = f"The file differs from its recorded xxh3_128 {sidecar.digest}, but no block does: it is the header."
        yield Fault(relative, sidecar.view, sidecar.start, sidecar.stop, message=message)
