"""What a book at an address has besides one on a disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bookkd.book import _manifest
from bookkd.book._ahead import Ahead
from bookkd.book._remote_shards import CachedShard, RemoteShard, StreamedShard
from bookkd.book._shard import Shard
from bookkd.book.remote import RemotePath
from bookkd.book.remote.cache import ShardCache
from bookkd.book.remote.settings import cache_folder

if TYPE_CHECKING:
    from bookkd.book.reader import Book

__all__ = ["Far"]


class Far:
    """What a book at an address has besides: where its shards are kept, and who fetches them."""

    STREAMED = 2**29
    """Bytes of blocks that are kept in memory where nothing is kept on the disk."""

    def __init__(self, book: Book, root: RemotePath, cache: str | Path | None) -> None:
        self._book, self._root = book, root
        folder = cache_folder() if cache is None else None if cache == "none" else Path(cache)
        self._cache = None if folder is None else ShardCache(folder)
        self._room = self.STREAMED if self._cache is None else self._cache.limit()
        sizes = np.concatenate([file.sizes for file in book._files])
        views = np.repeat(np.arange(book.n_views), [len(file.stems) for file in book._files])
        # A learner goes through the samples with a view of each: the same samples of every view lie side by side.
        order = np.lexsort((views, np.concatenate([file.starts for file in book._files])))
        self.ahead = Ahead(self._of, order, sizes, 0 if self._cache is None else self._room // 2)

    def _of(self, number: int) -> RemoteShard:
        shard = self._book._found(number)
        if not isinstance(shard, RemoteShard):
            raise TypeError(number)
        return shard

    def shard(self, file: _manifest.ViewFile, index: int, sidecar: _manifest.Sidecar) -> RemoteShard:
        """Return a shard as it is read from afar."""
        plan = self._book.plan
        if self._cache is None:
            return StreamedShard(self._root, file, index, plan, sidecar)
        check = self._book.verify != "never"
        return CachedShard(self._root, file, index, plan, sidecar, cache=self._cache, check=check)

    def full(self, mapped: dict[int, Shard], another: Shard) -> bool:
        """Say whether something has to be let go before another shard is read."""
        held = sum(shard.held for shard in list(mapped.values()) if isinstance(shard, RemoteShard))
        more = another.held if isinstance(another, RemoteShard) else 0
        return bool(mapped) and held + more > self._room
