"""What measures of sequences share: figures of each sequence, gathered batch by batch, with a teacher for all batches or for none."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import TeacherOutputError, expected
from bookkd.evaluation.intervals import Floats

__all__ = ["SequenceSums"]


class SequenceSums:
    """Gathers figures of sequences; `bins` are those of the calibration error."""

    def __init__(self, bins: int) -> None:
        self.bins = at_least(bins, 1, "bins", where=type(self).__name__)
        self._sums: dict[str, list[Floats]] = {}
        self._compared: bool | None = None

    def _compare(self, logits: Tensor, teacher: Tensor | None) -> None:
        """Refuse a teacher of another shape, and one that is there for some batches and for others not."""
        if teacher is not None and teacher.shape != logits.shape:
            raise TeacherOutputError(expected("teacher", f"of shape {tuple(logits.shape)}", tuple(teacher.shape)))
        if self._compared not in (None, teacher is not None):
            where = type(self).__name__
            raise TeacherOutputError(expected("teacher", "given for all batches or for none", "some", where=where))
        self._compared = teacher is not None

    def _gather(self, name: str, values: Floats) -> None:
        self._sums.setdefault(name, []).append(np.asarray(values, dtype=np.float64))

    def _gathered(self) -> dict[str, Floats]:
        """Return every figure of all sequences."""
        return {name: np.concatenate(parts) for name, parts in self._sums.items()}
