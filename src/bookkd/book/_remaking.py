"""Shards: which of their rows are damaged, and the same shard with these rows said again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from bookkd.book import _container, _files, _manifest
from bookkd.book._laid import laid_out, lengths_in
from bookkd.book._unit import UnitBuffer
from bookkd.book.codecs.base import Array
from bookkd.book.plan import Plan, Unit, is_logits
from bookkd.book.ragged import RaggedArray, Rows
from bookkd.core.errors import BookMissingError

__all__ = ["Damage", "Say", "damage_of", "remade"]

Say = Callable[[int, int, int], Mapping[str, Rows]]
"""(view, start, stop) -> every field of these rows."""

Bad = Mapping[str, Sequence[int]]
"""Tensor -> numbers of the blocks that are damaged."""
_Place = tuple[int, int] | None
"""Where a block lies in the file; None where nobody can tell."""


@dataclass
class Damage:
    """A shard that is not what its sidecar says.

    Args:
        sidecar: What it should be.
        begin: Its beginning, up to the first tensor; of a shard with ragged parts the guess of `lengths_in`.
        spans: Where its tensors should lie, in the order of the file.
        data: The bytes that are there; shorter than they should be where the file is cut, none where nobody can tell what they are.
        places: Tensor -> where each of its blocks should lie.
        bad: Tensor -> numbers of the blocks that are damaged. Of ragged parts and their ends the same ones, since they go together.
    """

    sidecar: _manifest.Sidecar
    begin: bytes
    spans: Mapping[str, _container.Span]
    data: memoryview
    places: Mapping[str, Sequence[_Place]]
    bad: Bad

    @property
    def rows(self) -> list[tuple[int, int]]:
        """Ranges of samples in damaged blocks, in order."""
        found: list[tuple[int, int]] = []
        for number in sorted({number for numbers in self.bad.values() for number in numbers}):
            start, stop = self.rows_of(number)
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], stop)
            else:
                found.append((start, stop))
        return found

    def rows_of(self, number: int) -> tuple[int, int]:
        """Return the samples of a block."""
        start = self.sidecar.start + number * self.sidecar.block_rows
        return start, min(start + self.sidecar.block_rows, self.sidecar.stop)


@contextmanager
def damage_of(root: Path, relative: str, sidecar: _manifest.Sidecar, plan: Plan) -> Iterator[Damage | None]:
    """Give what is wrong with a shard, None for a whole one. A file that is no regular file, or leads out, is an error."""
    with ExitStack() as opened:
        try:
            data = opened.enter_context(_files.mapped_inside(root, relative))
        except BookMissingError:
            data = memoryview(b"")
        whole = len(data) == sidecar.size and _files.digest_of(data) == sidecar.digest
        yield None if whole else _damage(sidecar, data, plan)


def _damage(sidecar: _manifest.Sidecar, data: memoryview, plan: Plan) -> Damage:
    rows = sidecar.stop - sidecar.start
    lengths = lengths_in(data, sidecar.size, plan, rows)
    if lengths is None:
        # Where one tensor ends and the next begins is not known: every record is said again.
        begin, spans = laid_out(plan.stored, dict.fromkeys(plan.stored, rows) | dict.fromkeys(plan.flat, 0))
        everything = range(-(-rows // sidecar.block_rows))
        places: dict[str, Sequence[_Place]] = {name: [None for _ in everything] for name in spans}
        return Damage(sidecar, begin, spans, memoryview(b""), places, dict.fromkeys(spans, everything))
    begin, spans = laid_out(plan.stored, lengths)
    edges = np.append(np.arange(0, rows, sidecar.block_rows), rows)
    places = {name: _fixed(span, edges) for name, span in spans.items() if name not in plan.flat}
    bad = {name: _bad_blocks(sidecar, data, name, of_tensor) for name, of_tensor in places.items()}
    for name, (ends, _) in plan.flat.items():
        places[name] = _flat(data, spans[name], spans[ends], places[ends], bad[ends], edges)
        bad[name] = _bad_blocks(sidecar, data, name, places[name])
    for group in _grouped(plan).values():
        together = sorted({number for name in group for number in bad[name]})
        bad |= dict.fromkeys(group, together)
    return Damage(sidecar, begin, spans, data, places, bad)


def _grouped(plan: Plan) -> dict[str, list[str]]:
    """Return the tensors of ends, each with those whose items they divide, and itself."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, (ends, _) in plan.flat.items():
        found[ends].append(name)
    return {ends: [ends, *names] for ends, names in found.items()}


def _fixed(span: _container.Span, edges: npt.NDArray[np.int64]) -> list[_Place]:
    at = (span.start + edges * span.row_bytes).tolist()
    return list(pairwise(at))


def _flat(
    data: memoryview,
    span: _container.Span,
    ends: _container.Span,
    places: Sequence[_Place],
    bad: Sequence[int],
    edges: npt.NDArray[np.int64],
) -> list[_Place]:
    """Return where the blocks of a flat tensor lie: counted from its start up to a damaged block of ends, and back from its end."""
    items: list[int | None] = []
    for number, place in enumerate(places):
        known = number not in bad and place is not None
        items.append(int.from_bytes(data[place[1] - 4 : place[1]], "little") if known and place is not None else None)
    first: list[int | None] = [0, *(None for _ in items)]
    last: list[int | None] = [*(None for _ in items), span.shape[0]]
    for number, count in enumerate(items):
        before = first[number]
        first[number + 1] = None if before is None or count is None else before + count
    for number in range(len(items) - 1, -1, -1):
        after, count = last[number + 1], items[number]
        last[number] = None if after is None or count is None else after - count
    at = [one if one is not None else other for one, other in zip(first, last, strict=True)]
    return [
        None
        if begin is None or end is None or not 0 <= begin <= end <= span.shape[0]
        else (span.start + begin * span.row_bytes, span.start + end * span.row_bytes)
        for begin, end in pairwise(at)
    ]


def _bad_blocks(sidecar: _manifest.Sidecar, data: memoryview, name: str, places: Sequence[_Place]) -> list[int]:
    found = []
    for number, (place, recorded) in enumerate(zip(places, sidecar.blocks[name].tolist(), strict=True)):
        if place is None:
            found.append(number)
            continue
        with data[place[0] : place[1]] as piece:
            if len(piece) != place[1] - place[0] or xxhash.xxh3_64_intdigest(piece) != recorded:
                found.append(number)
    return found


@dataclass
class Remade:
    """A shard whose damaged blocks were said again.

    Args:
        damage: What was wrong.
        begin: The beginning of the file.
        blocks: (tensor, number) -> the bytes of a block that was said again.
        said: How many records were said.
        sidecar: Of the shard as it would be now; of equal digest where it is again what it was.
        difference: By how much records that are whole are said otherwise, in words; empty where that is not known.
    """

    damage: Damage
    begin: bytes
    blocks: Mapping[tuple[str, int], bytes]
    said: int
    sidecar: _manifest.Sidecar
    difference: str = ""

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Give the bytes of the file."""
        yield self.begin
        for name in self.damage.spans:
            for number, place in enumerate(self.damage.places[name]):
                again = self.blocks.get((name, number))
                if again is not None:
                    yield again
                elif place is not None:
                    with self.damage.data[place[0] : place[1]] as piece:
                        yield piece


def remade(damage: Damage, plan: Plan, say: Say | None) -> Remade:
    """Say the batches again that have damaged rows, and put these into their blocks.

    First the damaged blocks alone. If the shard is then not what it was, the teacher says otherwise now, and the parts of a field
    have to go together: each has the block of one of them said again.
    """
    said = _Again(plan, damage)
    if say is not None:
        for start, stop in _batches(plan, damage.rows):
            said.take(start, stop, say(damage.sidecar.view, start, stop))
    found = _put_together(damage, plan, said, damage.bad)
    if found.sidecar.digest == damage.sidecar.digest:
        return found
    together: dict[str, list[int]] = {}
    for name, entry in plan.fields.items():
        stored = list(entry.stored(name))
        together |= dict.fromkeys(stored, sorted({number for tensor in stored for number in damage.bad[tensor]}))
    return found if together == damage.bad else _put_together(damage, plan, said, together)


def _put_together(damage: Damage, plan: Plan, said: _Again, bad: Bad) -> Remade:
    blocks = said.blocks(bad)
    hashes = {name: values.copy() for name, values in damage.sidecar.blocks.items()}
    for (name, number), piece in blocks.items():
        hashes[name][number] = xxhash.xxh3_64_intdigest(piece)
    begin = damage.begin
    if plan.flat:
        lengths = {name: span.shape[0] for name, span in damage.spans.items()}
        for name in plan.flat:
            of_blocks = (
                len(blocks[name, number])
                if (name, number) in blocks
                else place[1] - place[0]
                if place is not None
                else 0
                for number, place in enumerate(damage.places[name])
            )
            lengths[name] = sum(of_blocks) // damage.spans[name].row_bytes
        begin, _ = laid_out(plan.stored, lengths)
    result = Remade(damage, begin, blocks, said.count, damage.sidecar, said.difference())
    digest, size = xxhash.xxh3_128(), 0
    for part in result.pieces():
        digest.update(part)
        size += len(part)
    result.sidecar = replace(damage.sidecar, digest=digest.hexdigest(), size=size, blocks=hashes)
    return result


def _batches(plan: Plan, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the plan's batches that hold rows of these ranges, in order: a record may depend on its batch."""
    rows = plan.unit_rows or plan.n_samples
    found = set()
    for start, stop in ranges:
        sample = start
        while sample < stop:
            unit = sample - sample % rows
            begin = sample - (sample - unit) % plan.batch_size
            end = min(begin + plan.batch_size, unit + rows, plan.n_samples)
            found.add((begin, end))
            sample = end
    return sorted(found)


class _Again:
    """Encoded rows of damaged blocks, as batches are said again."""

    def __init__(self, plan: Plan, damage: Damage) -> None:
        self.plan, self.damage = plan, damage
        self.count = 0
        self._said: list[UnitBuffer] = []
        self._worst: dict[str, float] = {}

    def take(self, start: int, stop: int, arrays: Mapping[str, Rows]) -> None:
        buffer = UnitBuffer(self.plan, Unit(self.damage.sidecar.view, start, stop))
        buffer.add(start, arrays)
        self.count += stop - start
        self._said.append(buffer)
        self._compare(buffer, max(start, self.damage.sidecar.start), min(stop, self.damage.sidecar.stop))

    def blocks(self, bad: Bad) -> dict[tuple[str, int], bytes]:
        """Return the blocks of which every row was said."""
        found = {}
        for name, numbers in bad.items():
            for number in numbers:
                piece = self._block(name, *self.damage.rows_of(number))
                if piece is not None:
                    found[name, number] = piece
        return found

    def _block(self, name: str, start: int, stop: int) -> bytes | None:
        """Return rows of one tensor as they lie in a block that begins with them."""
        flat = next((flat for flat, (ends, _) in self.plan.flat.items() if ends == name), None)
        pieces, filled = [], 0
        for buffer in self._said:
            first, last = max(start, buffer.unit.start), min(stop, buffer.unit.stop)
            if first < last:
                rows = slice(first - buffer.unit.start, last - buffer.unit.start)
                filled += last - first
                taken = buffer.rows_of(flat or name)[rows]
                pieces.append(taken.counts if flat and isinstance(taken, RaggedArray) else _values(taken))
        if filled != stop - start:
            return None
        joined = np.concatenate(pieces)
        return (np.cumsum(joined).astype("<u4") if flat else joined).tobytes()

    def _compare(self, buffer: UnitBuffer, first: int, last: int) -> None:
        """Note how far logits of records that are whole are from what was said again."""
        sidecar = self.damage.sidecar
        block = np.arange(first - sidecar.start, last - sidecar.start) // sidecar.block_rows
        for name, entry in self.plan.fields.items():
            parts = list(entry.stored(name))
            bad = {number for part in parts for number in self.damage.bad[part]}
            whole = np.flatnonzero(~np.isin(block, list(bad)))
            if not is_logits(name) or entry.codec.sparse or entry.ragged or not len(whole):
                continue
            if any(self.damage.spans[part].stop > len(self.damage.data) for part in parts):
                continue
            here = whole + first - sidecar.start
            old, new = (
                np.asarray(entry.decode({part.removeprefix(f"{name}/"): rows[part] for part in parts}))
                for rows in (
                    {part: self._stored(part, here) for part in parts},
                    {part: buffer.parts[part][whole + first - buffer.unit.start] for part in parts},
                )
            )
            with np.errstate(invalid="ignore"):
                worst = float(np.nanmax(np.abs(old.astype(np.float64) - new.astype(np.float64)), initial=0.0))
            self._worst[name] = max(worst, self._worst.get(name, 0.0))

    def _stored(self, part: str, rows: npt.NDArray[np.int64]) -> Array:
        span = self.damage.spans[part]
        found = np.frombuffer(self.damage.data, np.uint8, span.stop - span.start, span.start)
        array: Array = found.view(span.dtype).reshape(span.shape)[rows].copy()
        return array

    def difference(self) -> str:
        if not self._worst:
            return ""
        return f"; whole records beside them differ by up to {max(self._worst.values()):.2g} in their logits"


def _values(rows: Array | RaggedArray) -> Array:
    return rows.values if isinstance(rows, RaggedArray) else rows
