"""Shards: which of their rows are damaged, and the same shard with these rows said again."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from bookkd.book import _container, _files, _manifest
from bookkd.book._laid import laid_out
from bookkd.book._unit import UnitBuffer
from bookkd.book.codecs.base import Array
from bookkd.book.plan import Plan, Unit, is_logits
from bookkd.core.errors import BookMissingError

__all__ = ["Damage", "Say", "damage_of", "remade"]

Say = Callable[[int, int, int], Mapping[str, npt.NDArray[Any]]]
"""(view, start, stop) -> every field of these rows."""


@dataclass
class Damage:
    """A shard that is not what its sidecar says.

    Args:
        sidecar: What it should be.
        begin: Its beginning, up to the first tensor.
        spans: Where its tensors should lie.
        data: The bytes that are there; shorter than they should be where the file is cut.
        bad: Tensor -> numbers of the blocks that are damaged.
    """

    sidecar: _manifest.Sidecar
    begin: bytes
    spans: Mapping[str, _container.Span]
    data: memoryview
    bad: Mapping[str, list[int]]

    @property
    def rows(self) -> list[tuple[int, int]]:
        """Ranges of samples in damaged blocks, in order."""
        block = self.sidecar.block_rows
        found: list[tuple[int, int]] = []
        for number in sorted({number for numbers in self.bad.values() for number in numbers}):
            start = self.sidecar.start + number * block
            stop = min(start + block, self.sidecar.stop)
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], stop)
            else:
                found.append((start, stop))
        return found

    def block(self, name: str, number: int) -> tuple[int, int]:
        """Return where a block lies in the file."""
        span = self.spans[name]
        step = span.row_bytes * self.sidecar.block_rows
        return span.start + number * step, min(span.start + (number + 1) * step, span.stop)


@contextmanager
def damage_of(root: Path, relative: str, sidecar: _manifest.Sidecar, plan: Plan) -> Iterator[Damage | None]:
    """Give what is wrong with a shard, None for a whole one. A file that is no regular file, or leads out, is an error."""
    rows = sidecar.stop - sidecar.start
    try:
        descriptor, size = _files.open_inside(root, relative)
    except BookMissingError:
        descriptor, size = -1, 0
    try:
        mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else None
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    data = memoryview(b"" if mapped is None else mapped)
    try:
        if size == sidecar.size and xxhash.xxh3_128_hexdigest(data) == sidecar.digest:
            yield None
            return
        begin, spans = laid_out(plan.stored, dict.fromkeys(plan.stored, rows))
        found = Damage(sidecar, begin, spans, data, {})
        found.bad = {name: _bad_blocks(found, name) for name in spans}
        yield found
    finally:
        data.release()
        if mapped is not None:
            mapped.close()


def _bad_blocks(damage: Damage, name: str) -> list[int]:
    found = []
    for number, recorded in enumerate(damage.sidecar.blocks[name].tolist()):
        first, last = damage.block(name, number)
        with damage.data[first:last] as piece:
            if len(piece) != last - first or xxhash.xxh3_64_intdigest(piece) != recorded:
                found.append(number)
    return found


@dataclass
class Remade:
    """A shard whose damaged blocks were said again.

    Args:
        damage: What was wrong.
        blocks: (tensor, number) -> the bytes of a block that was said again.
        said: How many records were said.
        sidecar: Of the shard as it would be now; of equal digest where it is again what it was.
        difference: By how much records that are whole are said otherwise, in words; empty where that is not known.
    """

    damage: Damage
    blocks: Mapping[tuple[str, int], bytes]
    said: int
    sidecar: _manifest.Sidecar
    difference: str = ""

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Give the bytes of the file."""
        yield self.damage.begin
        for name in self.damage.spans:
            for number in range(len(self.damage.sidecar.blocks[name])):
                again = self.blocks.get((name, number))
                if again is not None:
                    yield again
                    continue
                first, last = self.damage.block(name, number)
                with self.damage.data[first:last] as piece:
                    yield piece


def remade(damage: Damage, plan: Plan, say: Say | None) -> Remade:
    """Say the batches again that have damaged rows, and put these into their blocks."""
    said = _Again(plan, damage)
    if say is not None:
        for start, stop in _batches(plan, damage.rows):
            said.take(start, stop, say(damage.sidecar.view, start, stop))
    blocks = {key: piece.tobytes() for key, piece in said.blocks()}
    hashes = {name: values.copy() for name, values in damage.sidecar.blocks.items()}
    for (name, number), piece in blocks.items():
        hashes[name][number] = xxhash.xxh3_64_intdigest(piece)
    result = Remade(damage, blocks, said.count, damage.sidecar, said.difference())
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


@dataclass
class _Again:
    """Encoded rows of damaged blocks, as batches are said again."""

    plan: Plan
    damage: Damage
    found: dict[tuple[str, int], Array] = field(default_factory=dict)
    filled: Counter[tuple[str, int]] = field(default_factory=Counter)
    count: int = 0
    worst: dict[str, float] = field(default_factory=dict)

    def take(self, start: int, stop: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        buffer = UnitBuffer(self.plan, Unit(self.damage.sidecar.view, start, stop))
        buffer.add(start, {name: np.asarray(array) for name, array in arrays.items()})
        self.count += stop - start
        sidecar = self.damage.sidecar
        for name, numbers in self.damage.bad.items():
            for number in numbers:
                begin = sidecar.start + number * sidecar.block_rows
                end = min(begin + sidecar.block_rows, sidecar.stop)
                first, last = max(start, begin), min(stop, end)
                if first < last:
                    rows = buffer.parts[name]
                    block = self.found.setdefault((name, number), np.empty((end - begin, *rows.shape[1:]), rows.dtype))
                    block[first - begin : last - begin] = rows[first - start : last - start]
                    self.filled[name, number] += last - first
        self._compare(buffer, max(start, sidecar.start), min(stop, sidecar.stop))

    def blocks(self) -> Iterator[tuple[tuple[str, int], Array]]:
        """Yield the blocks of which every row was said."""
        return ((key, block) for key, block in self.found.items() if self.filled[key] == len(block))

    def _compare(self, buffer: UnitBuffer, first: int, last: int) -> None:
        """Note how far logits of records that are whole are from what was said again."""
        sidecar = self.damage.sidecar
        block = np.arange(first - sidecar.start, last - sidecar.start) // sidecar.block_rows
        for name, entry in self.plan.fields.items():
            parts = list(entry.stored(name))
            bad = {number for part in parts for number in self.damage.bad[part]}
            whole = np.flatnonzero(~np.isin(block, list(bad)))
            cut = any(self.damage.spans[part].stop > len(self.damage.data) for part in parts)
            if not is_logits(name) or entry.codec.sparse or not len(whole) or cut:
                continue
            here = whole + first - sidecar.start
            old, new = (
                np.asarray(
                    entry.codec.decode({part.removeprefix(f"{name}/"): rows[part] for part in parts}, entry.shape)
                )
                for rows in (
                    {part: self._stored(part, here) for part in parts},
                    {part: buffer.parts[part][whole + first - buffer.unit.start] for part in parts},
                )
            )
            with np.errstate(invalid="ignore"):
                worst = float(np.nanmax(np.abs(old.astype(np.float64) - new.astype(np.float64)), initial=0.0))
            self.worst[name] = max(worst, self.worst.get(name, 0.0))

    def _stored(self, part: str, rows: npt.NDArray[np.int64]) -> Array:
        span = self.damage.spans[part]
        found = np.frombuffer(self.damage.data, np.uint8, span.stop - span.start, span.start)
        array: Array = found.view(span.dtype).reshape(span.shape)[rows].copy()
        return array

    def difference(self) -> str:
        if not self.worst:
            return ""
        return f"; whole records beside them differ by up to {max(self.worst.values()):.2g} in their logits"
