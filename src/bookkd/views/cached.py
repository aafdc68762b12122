"""`CachedViews`: the views of a `Replay`, computed once and held in memory, for several students or epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import SAMPLE, VIEW, WEIGHT
from bookkd.views.collate import collate
from bookkd.views.picks import Pick, Positions, as_picks
from bookkd.views.replay import Replay
from bookkd.views.views import Views

__all__ = ["CachedViews"]

_CHUNK = 256


class CachedViews(Dataset[dict[str, Any]]):
    """What `replay` returns, from memory: same records, bit for bit, at the price of one `index_select` a batch.

    Input, label, partner, ratio and probe are computed once, in the dtype of the view: end the transform with uint8
    where memory is short. All views must have one shape. Probes are those of the time of caching.

    Args:
        replay: Its data set is read once for each view.
        max_bytes: Memory that may be used; checked after the first record, before anything is allocated.
        views: View numbers to hold, without repeats; None for all.
        workers: Processes that compute; 0 for this one.

    Raises:
        ConfigError: if the views would need more than `max_bytes`; the message says how much.

    >>> cached = CachedViews(Replay([(torch.ones(1, 2, 2), 5)], Views(None, n_views=1)), max_bytes=1000)
    >>> cached.nbytes, cached[Pick(0, 0)]["label"].item()
    (49, 5)
    """

    def __init__(self, replay: Replay, *, max_bytes: int, views: Sequence[int] | None = None, workers: int = 0) -> None:
        self.views: Views = replay.views
        self.dataset: Any = replay.dataset
        self.positions: Positions = replay.positions
        self.cached = list(range(replay.views.n_views)) if views is None else [int(view) for view in views]
        self._column = np.full(replay.views.n_views, -1, dtype=np.int64)
        picks = as_picks([(int(row), view) for row in replay.rows[:1] for view in self.cached], replay.views.n_views)
        if not picks or len(set(self.cached)) != len(self.cached):
            raise ConfigError(
                expected("views", "at least one view of one sample, without repeats", views, where="CachedViews")
            )
        self._column[self.cached] = np.arange(len(self.cached))
        self._store = _allocate(collate([replay[picks[0]]]), len(replay) * len(self.cached), max_bytes)
        self._fill(replay, at_least(workers, 0, "workers", where="CachedViews"))

    def _fill(self, replay: Replay, workers: int) -> None:
        total = len(replay) * len(self.cached)
        chunks = [
            [
                Pick(int(self.rows[place // len(self.cached)]), self.cached[place % len(self.cached)])
                for place in range(start, min(start + _CHUNK, total))
            ]
            for start in range(0, total, _CHUNK)
        ]
        # A generator of its own, since a DataLoader otherwise draws from the global one.
        loader = DataLoader(
            replay, batch_sampler=chunks, collate_fn=collate, num_workers=workers, generator=torch.Generator()
        )
        start = 0
        for batch in loader:
            for name, held in self._store.items():
                if batch[name].shape[1:] != held.shape[1:] or batch[name].dtype != held.dtype:
                    raise DataError(
                        expected(
                            name,
                            f"{held.dtype} {tuple(held.shape[1:])} for all views",
                            f"{batch[name].dtype} {tuple(batch[name].shape[1:])}",
                            where=f"sample {int(batch[SAMPLE][0])}, view {int(batch[VIEW][0])}",
                            do="End the transform with a crop or resize to one size.",
                        )
                    )
                held[start : start + len(batch[name])] = batch[name]
            start += len(batch[SAMPLE])

    def __len__(self) -> int:
        return len(self.positions.rows)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Row of the book of each data set position, shape [len]."""
        return self.positions.rows

    @property
    def nbytes(self) -> int:
        """Memory that the records take."""
        return sum(held.nbytes for held in self._store.values())

    def __getitem__(self, pick: Pick) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([pick]).items()}

    def __getitems__(self, picks: Sequence[Pick]) -> dict[str, Tensor]:
        """Return a batch that is ready; `collate` passes it through."""
        samples, views, weights = zip(*as_picks(picks, self.views.n_views), strict=True)
        columns = self._column[list(views)]
        if columns.min() < 0:
            raise ConfigError(
                expected(
                    "view", f"one of those cached: {self.cached}", views[int(columns.argmin())], where="CachedViews"
                )
            )
        places = torch.from_numpy(self.positions(samples) * len(self.cached) + columns)
        batch = {name: held.index_select(0, places) for name, held in self._store.items()}
        batch[SAMPLE], batch[VIEW] = torch.tensor(samples), torch.tensor(views)
        batch[WEIGHT] = torch.tensor(weights, dtype=torch.float32)
        return batch


def _allocate(first: dict[str, Any], count: int, max_bytes: int) -> dict[str, Tensor]:
    kept = {name: value for name, value in first.items() if name not in (SAMPLE, VIEW, WEIGHT)}
    need = count * sum(value.nbytes for value in kept.values())
    if need > at_least(max_bytes, 0, "max_bytes", where="CachedViews"):
        raise ConfigError(
            expected(
                "max_bytes",
                f"at least the {need} bytes that {count} views need",
                max_bytes,
                where="CachedViews",
                do="Hold fewer views, end the transform with uint8, or read through Replay.",
            )
        )
    return {name: torch.empty(count, *value.shape[1:], dtype=value.dtype) for name, value in kept.items()}
