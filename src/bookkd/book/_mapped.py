"""The shards of a book: made when they are first used, and a bounded number of them mapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bookkd.book import _layout, _manifest
from bookkd.book._numbers import gone
from bookkd.book._shard import Shard
from bookkd.book.plan import Plan
from bookkd.book.remote import Root
from bookkd.core.errors import BookMissingError

__all__ = ["Rows", "Shards"]

Rows = npt.NDArray[np.int64]


class Shards:
    """The shards of a book in a folder. The mapping that was used longest ago is let go when too many are open.

    Threads may use them at once: what one lets go another maps again.

    Args:
        root: Place of the book.
        plan: Of the book.
        files: Its view files; shards are numbered through all of them.
        check: If false, blocks are not hashed when they are first touched.
        most: Most shards mapped at once.
    """

    def __init__(self, root: Root, plan: Plan, files: Sequence[_manifest.ViewFile], *, check: bool, most: int) -> None:
        self._root, self._plan, self._files, self._check, self._most = root, plan, files, check, most
        self._first = np.concatenate([[0], np.cumsum([len(file.stems) for file in files])])
        self._open: dict[int, Shard] = {}
        self._known: dict[int, Shard] = {}

    def __len__(self) -> int:
        """Return how many are mapped."""
        return len(self._open)

    def groups(self, rows: Mapping[int, Rows], parts: Sequence[str]) -> Iterator[list[int]]:
        """Yield the numbers of the shards that are read next, as many as are best read one after another.

        Args:
            rows: Number of a shard -> its rows.
            parts: Their tensors.
        """
        yield list(rows)

    def use(self, number: int) -> Shard:
        """Return a shard to read from."""
        shard = self._open.pop(number, None)
        if shard is None:
            shard = self._found(number)
            while len(self._open) >= self._most:
                self._let_go()
        self._open[number] = shard
        return shard

    def close(self) -> None:
        """Let go of every mapping; reading maps them again."""
        for number in list(self._open):
            shard = self._open.pop(number, None)
            if shard is not None:  # another thread may have let it go
                shard.unmap()

    def _let_go(self) -> None:
        """Let go of what was used longest ago."""
        for number in list(self._open)[:1]:
            oldest = self._open.pop(number, None)
            if oldest is not None:
                oldest.unmap()

    def _found(self, number: int) -> Shard:
        shard = self._known.get(number)
        if shard is None:
            view = int(np.searchsorted(self._first, number, side="right")) - 1
            file, index = self._files[view], number - int(self._first[view])
            try:
                made = self._made(file, index)
            except BookMissingError as error:
                raise gone(self._root, f"{_layout.view_folder(view)}/{file.stems[index]}.json", error) from error
            shard = self._known.setdefault(number, made)
        return shard

    def _made(self, file: _manifest.ViewFile, index: int) -> Shard:
        sidecar = _manifest.read_sidecar(self._root, file, index) if self._check else None
        return Shard(self._root, file, index, self._plan, sidecar)
