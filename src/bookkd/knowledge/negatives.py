"""Records of other samples, drawn from a book at each step: what contrast needs in place of a memory bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.fields import IGNORE_LABEL, INPUT, LABEL, OWN, SAMPLE, VIEW, FieldInfo
from bookkd.core.rng import generator
from bookkd.knowledge.base import Teacherless
from bookkd.knowledge.stored import StoredKnowledge

__all__ = ["Negatives"]

_NEGATIVES, _LABELS = f"{OWN}negatives", f"{OWN}labels"


class Negatives(Teacherless):
    """Gives `own/negatives`: one field of `count` records of a book, of other samples than those of the batch, [count, ...].

    Beside them `own/labels`: the classes of the batch's samples and behind them those of the negatives, int64 [batch + count],
    `IGNORE_LABEL` where the student may not see one. The draw is a function of the seed, the step and the batch's first sample; a
    sample may come twice. It is from all samples of the book until `among` says which ones the student learns from.

    Args:
        book: Opened.
        field: Of the book.
        count: Records, at least 1.
        seed: Of the draws.
    """

    def __init__(self, book: StoredKnowledge, field: str, count: int, *, seed: int) -> None:
        super().__init__({_NEGATIVES: FieldInfo(book.fields[field].shape), _LABELS: FieldInfo(())})
        self.book, self.field, self.count, self.seed = book, field, at_least(count, 1, "count"), seed
        self.step = 0
        self.rows: npt.NDArray[np.int64] = np.arange(book.book.n_samples, dtype=np.int64)
        self.labels: npt.NDArray[np.int64] = np.full(len(self.rows), IGNORE_LABEL, dtype=np.int64)

    def among(self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64] | None) -> None:
        """Draw from these samples alone: what a student learns from, so that nothing of what is held out reaches it.

        Args:
            rows: Rows of the book, without repeats, int64 [n].
            labels: Their classes, `IGNORE_LABEL` where hidden, int64 [n]; None where samples have no one class.
        """
        order = np.argsort(rows)
        self.rows = rows[order]
        self.labels = np.full(len(rows), IGNORE_LABEL, dtype=np.int64) if labels is None else labels[order]

    def targets(self, batch: Mapping[str, Any], fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the records and classes, where `input` is.

        Args:
            batch: Needs `sample`, and `label` for the classes.
            fields: Which of both; both where None.
        """
        wanted = list(self._fields) if fields is None else fields
        if not wanted:
            return {}
        batch_samples = batch[SAMPLE].cpu().numpy()
        rng, book = generator(self.seed, "negatives", self.step, int(batch_samples[0])), self.book.book
        own = np.searchsorted(self.rows, np.unique(batch_samples)).astype(np.int64)
        places = _others(own, len(self.rows), rng.random(self.count))
        samples = self.rows[places]
        views = rng.integers(book.n_views, size=self.count)
        asked: dict[str, Any] = {SAMPLE: torch.from_numpy(samples), VIEW: torch.from_numpy(views)}
        found: dict[str, Any] = {}
        if _NEGATIVES in wanted:
            said = self.book.targets({**asked, INPUT: batch[INPUT]} if INPUT in batch else asked, [self.field])
            found[_NEGATIVES] = said[self.field]
        if _LABELS in wanted:
            classes: Tensor = batch[LABEL]
            found[_LABELS] = torch.cat([classes, torch.from_numpy(self.labels[places]).to(classes)])
        return found

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
