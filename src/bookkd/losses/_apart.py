"""Sums of squared distances of two maps, worked out a few samples at a time, with what their gradient needs in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Write", "squares_apart"]

Write = Callable[[Tensor, Tensor, Tensor, slice], object]
"""`write(out, student, teacher, rows)` fills `out`, some rows, with how far the student is from where it should be."""

_CACHED = 2**17
"""Numbers that are taken at a time: some tensors of 512 KiB of float32 stay in a processor's cache together."""


def squares_apart(write: Write, s: Tensor, t: Tensor) -> Tensor:
    r"""Return sum over all but the batch of d(s, t)^2, for distances whose derivative with respect to s is 1, or 0 where they are 0.

    Autograd would write and keep several tensors of the maps' size, most of whose time goes into memory that is given out anew. Kept is
    d alone, and the gradient is 2 d.

    Args:
        write: Fills in d.
        s: Features, [batch, ...].
        t: Of that shape, in whatever order in memory; they have no gradient.

    Returns:
        [batch]. It can be differentiated again and again.
    """
    found: Tensor = _Squares.apply(s, t, write)
    return found


class _Squares(torch.autograd.Function):
    """See `squares_apart`."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor, write: Write) -> Tensor:
        apart, found = torch.empty_like(s), s.new_zeros(len(s))
        axes = tuple(range(1, s.ndim))
        rows = len(s) if s.device.type != "cpu" else max(1, _CACHED // max(1, s[:1].numel()))
        for start in range(0, len(s), max(1, rows)):
            part = slice(start, start + rows)
            write(apart[part], s[part], t[part], part)
            torch.sum(apart[part].square(), axes, out=found[part])
        ctx.save_for_backward(s, apart)
        return found

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        s, apart = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient will be asked for
            apart = apart + torch.where(apart != 0, s - s.detach(), 0)
        return apart * (2 * outer).reshape(-1, *(1 for _ in s.shape[1:])), None, None
