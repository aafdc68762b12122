"""Records of other samples, drawn from a book at each step: what contrast needs in place of a memory bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bookkd.core.check import at_least
from bookkd.core.fields import INPUT, OWN, SAMPLE, VIEW, FieldInfo
from bookkd.core.rng import generator
from bookkd.knowledge.base import Teacherless
from bookkd.knowledge.stored import StoredKnowledge

__all__ = ["Negatives"]


class Negatives(Teacherless):
    """Gives `own/negatives`: one field of `count` records of a book, of other samples than those of the batch, [count, ...].

    The draw is a function of the seed, the step and the batch's first sample; a sample may come twice.

    Args:
        book: Opened.
        field: Of the book.
        count: Records, at least 1.
        seed: Of the draws.
    """

    def __init__(self, book: StoredKnowledge, field: str, count: int, *, seed: int) -> None:
        super().__init__({f"{OWN}negatives": FieldInfo(book.fields[field].shape)})
        self.book, self.field, self.count, self.seed = book, field, at_least(count, 1, "count"), seed
        self.step = 0

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the records, where `input` is.

        Args:
            batch: Needs `sample`.
            fields: The one field, or none.
        """
        if fields is not None and not fields:
            return {}
        batch_samples = batch[SAMPLE].cpu().numpy()
        rng, book = generator(self.seed, "negatives", self.step, int(batch_samples[0])), self.book.book
        samples = _others(np.unique(batch_samples), book.n_samples, rng.random(self.count))
        views = rng.integers(book.n_views, size=self.count)
        asked: dict[str, Any] = {SAMPLE: torch.from_numpy(samples), VIEW: torch.from_numpy(views)}
        found = self.book.targets({**asked, INPUT: batch[INPUT]} if INPUT in batch else asked, [self.field])
        return {f"{OWN}negatives": found[self.field]}

    def on(self, event: str, run: Any) -> None:
        """Count the steps."""
        if event in ("run_start", "step_end"):
            self.step = int(run.steps)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the step is the run's."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing back."""


def _others(own: npt.NDArray[np.int64], n_samples: int, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return a sample for each draw from [0, 1), uniformly of those that are not among `own`, sorted; of all where they all are."""
    left = n_samples - len(own)
    if left <= 0:
        return (draws * n_samples).astype(np.int64)
    places = (draws * left).astype(np.int64)
    # The i-th of the others has as many of `own` before it as have fewer than i others before them.
    return places + np.searchsorted(own - np.arange(len(own)), places, side="right")
