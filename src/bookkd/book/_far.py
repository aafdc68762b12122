"""The shards of a book at an address: what is mapped, what is arriving and what is ahead, within the room there is for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from bookkd.book import _manifest
from bookkd.book._ahead import Ahead
from bookkd.book._mapped import Rows, Shards
from bookkd.book._remote_shards import CachedShard, RemoteShard, StreamedShard, sidecar_in
from bookkd.book._shard import Shard
from bookkd.book.plan import Plan
from bookkd.book.remote import RemotePath
from bookkd.book.remote.cache import ShardCache
from bookkd.book.remote.settings import cache_folder

__all__ = ["FarShards"]


class FarShards(Shards):
    """The shards of a book at an address; arguments as `Shards`.

    Args:
        cache: Folder where they are kept, or "none"; None for what the environment says.
    """

    STREAMED = 2**29
    """Bytes of blocks that are kept in memory where nothing is kept on the disk."""

    def __init__(
        self,
        root: RemotePath,
        plan: Plan,
        files: Sequence[_manifest.ViewFile],
        *,
        check: bool,
        most: int,
        cache: str | Path | None,
    ) -> None:
        super().__init__(root, plan, files, check=check, most=most)
        self._place = root
        folder = cache_folder() if cache is None else None if cache == "none" else Path(cache)
        self._cache = None if folder is None else ShardCache(folder)
        self.room = self.STREAMED if self._cache is None else self._cache.limit()
        self._sizes = np.concatenate([file.sizes for file in files])
        views = np.repeat(np.arange(len(files)), [len(file.stems) for file in files])
        # A learner goes through the samples with a view of each: the same samples of every view lie side by side.
        order = np.lexsort((views, np.concatenate([file.starts for file in files])))
        self._ahead = Ahead(self._fetch, order, self._sizes, 0 if self._cache is None else self.room // 2)

    @property
    def whole(self) -> bool:
        """Whether shards are fetched as a whole, to be kept on the disk."""
        return self._cache is not None

    def groups(self, rows: Mapping[int, Rows], parts: Sequence[str]) -> Iterator[list[int]]:
        """Fetch and map as many shards at once as there is room for, and yield them to be read before the next ones."""
        groups: list[dict[int, Rows]] = [{}]
        sizes = [0]
        for number, wanted in rows.items():
            size = self._size(number, wanted, parts)
            if groups[-1] and (sizes[-1] + size > self.room or len(groups[-1]) == self._most):
                groups.append({})
                sizes.append(0)
            groups[-1][number] = wanted
            sizes[-1] += size
        for group, size in zip(groups, sizes, strict=True):
            yield self._ready(group, parts, size, follow=len(groups) == 1)

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Fetch shards in the background, as far as there is room; nothing where nothing is kept on the disk."""
        self._ahead.soon([number for number in numbers if number not in self._open])

    def close(self) -> None:
        """Let go of every mapping, and give up what is arriving."""
        self._ahead.close()
        super().close()

    def _ready(self, group: Mapping[int, Rows], parts: Sequence[str], size: int, *, follow: bool) -> list[int]:
        """Make room for a group and fetch of it what is missing; nothing of it is let go for the rest of it."""
        for number in group:
            shard = self._open.pop(number, None)
            if shard is not None:
                self._open[number] = shard
        others = [shard for number, shard in list(self._open.items()) if number not in group]
        held, count = sum(shard.held for shard in others), len(others)
        for shard in others:
            if held + size <= self.room and count + len(group) <= self._most:
                break
            held, count = held - shard.held, count - 1
            self._let_go()
        missing = {number: rows for number, rows in group.items() if not self._has(number, rows, parts)}
        if missing:
            self._ahead.want(missing, parts, mapped=self._open if follow else None)
        for number in group:
            self._open[number] = self._found(number)
        return list(group)

    def _size(self, number: int, rows: Rows, parts: Sequence[str]) -> int:
        """Return the bytes that a shard takes, at most, when these rows of it are there."""
        if self._cache is not None:
            return int(self._sizes[number])
        shard = self._known.get(number)
        held = 0 if shard is None else shard.held
        if self._has(number, rows, parts):
            return held
        block = self._plan.block_rows or 1
        touched = len(np.unique(rows // block)) * block / (self._plan.unit_rows or self._plan.n_samples)
        share = sum(self._weights[part] for part in parts) / sum(self._weights.values())
        return held + int(self._sizes[number] * min(1.0, touched * share))

    @cached_property
    def _weights(self) -> dict[str, int]:
        """Bytes of a record in each tensor, at most."""
        flat = self._plan.flat
        return {
            part: dtype.itemsize * math.prod(shape) * (flat[part].most if part in flat else 1)
            for part, (dtype, shape) in self._plan.stored.items()
        }

    def _has(self, number: int, rows: Rows, parts: Sequence[str]) -> bool:
        shard = self._known.get(number)
        return isinstance(shard, RemoteShard) and shard.has(rows, parts)

    def _fetch(self, number: int, rows: Rows | None, parts: Sequence[str]) -> None:
        """Fetch and map a shard for these rows; for None only fetch it. Runs in other threads."""
        shard = self._found(number)
        if isinstance(shard, RemoteShard):
            shard.prepare(rows, parts)

    def _made(self, file: _manifest.ViewFile, index: int) -> Shard:
        sidecar = sidecar_in(self._cache, self._place, file, index)
        if self._cache is None:
            return StreamedShard(self._place, file, index, self._plan, sidecar)
        return CachedShard(self._place, file, index, self._plan, sidecar, cache=self._cache, check=self._check)
