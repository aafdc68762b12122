"""The heavy part of encoding on the teacher's device: a processor needs more time for it than an accelerator for the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.book.codecs.base import Array
from bookkd.book.codecs.heavy import InNumpy, Largest, log_tail, parts_of, worked_out_by

__all__ = ["OnDevice", "encoding_on"]

_VALUES = 2**23
"""Logits that are sent at a time: 64 MiB of float64, and some three times as much while it is worked on."""
_FAINT = -600.0
"""A log mass below this comes from a sum that float64 cannot add up relative to the largest class."""


class OnDevice:
    """The heavy part of `top_k` and `sampled` in torch, in float64.

    Which classes are the largest, and their values, are to the bit what numpy finds. Sums of exponentials are added up in
    another order: a log tail mass may differ in its last bit, and a draw may fall on the next class where its uniform number is
    within about 1e-13 of the step between the two.

    Args:
        device: One that has float64.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._exactly = InNumpy()

    def largest(self, rows: Array, k: int, temperatures: Sequence[float], always: Sequence[int] = ()) -> Largest:
        """See `bookkd.book.codecs.heavy.Heavy`."""
        if not len(rows) or rows.dtype.kind != "f":  # whole numbers are no teacher's, and not all torch's
            return self._exactly.largest(rows, k, temperatures, always)
        parts = parts_of(len(rows), rows.shape[1], _VALUES)
        found = [self._largest(rows[part], k, temperatures, list(always)) for part in parts]
        return Largest(*map(np.concatenate, zip(*found, strict=True)))

    def draw(self, rows: Array, temperature: float, uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """See `bookkd.book.codecs.heavy.Heavy`."""
        out = np.empty(uniforms.shape, dtype=np.int64)
        for part in parts_of(len(rows), rows.shape[1], _VALUES):
            steps = self._sent(rows[part]).double() / temperature
            steps = (steps - steps.amax(1, keepdim=True)).exp_()
            shares = steps.clone()
            torch.cumsum(steps, 1, out=steps)
            total = steps[:, -1:].clone()
            found = torch.searchsorted(steps, self._sent(uniforms[part]) * total, right=True)
            found = torch.minimum(found, torch.searchsorted(steps, total)).sort(1).values
            out[part] = found.cpu().numpy()
            # A sum in parallel may rise by its rounding at a class that adds nothing, which no draw may be.
            wrong = (shares.gather(1, found) == 0).any(1).cpu().numpy()
            if wrong.any():
                out[part][wrong] = self._exactly.draw(rows[part][wrong], temperature, uniforms[part][wrong])
        return out

    def _largest(
        self, rows: Array, k: int, temperatures: Sequence[float], always: list[int]
    ) -> tuple[Array, Array, Array]:
        values = self._sent(rows)
        ranked = values
        if always:
            ranked = values.clone()
            ranked[:, always] = torch.inf
        least = ranked.topk(k, dim=1).values[:, -1:]
        kept, equal = ranked > least, ranked == least
        # Of equal values the lower classes, which `topk` does not promise.
        kept |= equal & (equal.cumsum(1) <= k - kept.sum(1, keepdim=True))
        classes = kept.nonzero()[:, 1].reshape(len(values), k)
        chosen = values.gather(1, classes).double()
        order = chosen.argsort(dim=1, descending=True, stable=True)
        classes, chosen = classes.gather(1, order), chosen.gather(1, order)
        tails = np.empty((len(rows), len(temperatures)))
        for column, temperature in enumerate(temperatures):
            shares = ((values.double() - chosen[:, :1]) / temperature).exp_()
            everything = shares.sum(1)
            left = shares.scatter_(1, classes, 0.0).sum(1)
            tails[:, column] = (left.log() - everything.log()).cpu().numpy()
        here, top = classes.cpu().numpy(), chosen.cpu().numpy()
        faint = (tails < _FAINT).any(1)
        if faint.any():
            exact = [log_tail(rows[faint], top[faint, :1], here[faint], temperature) for temperature in temperatures]
            tails[faint] = np.stack(exact, 1)
        return here, top, tails

    def _sent(self, rows: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self.device)


def encoding_on(device: torch.device | str) -> AbstractContextManager[None]:
    """Return a context in which codecs have their heavy part done on a device, if that has more power than the processor.

    Not on Apple's, which have no float64.
    """
    where = torch.device(device)
    return nullcontext() if where.type in ("cpu", "mps", "meta") else worked_out_by(OnDevice(where))
