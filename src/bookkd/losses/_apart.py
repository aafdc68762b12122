"""Sums of squared distances of two maps, worked out a few samples at a time, with what their gradient needs in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bookkd.losses._features import total

__all__ = ["Apart", "squares_apart"]

Apart = Callable[[Tensor, Tensor, slice], Tensor]
"""`apart(student, teacher, rows)` returns how far some rows of the student are from where they should be, d."""

_CACHED = 2**17
"""Numbers that a processor takes at a time: some tensors of 512 KiB of float32 stay in its cache together."""


def squares_apart(apart: Apart, s: Tensor, t: Tensor) -> Tensor:
    """Return sum over all but the batch of d(s, t)^2.

    The derivative of d with respect to s has to be 1, or 0 where d is 0, so that the gradient is 2 d. Autograd would write and keep
    several tensors of the maps' size, most of whose time goes into memory that is given out anew. Kept are s and d.

    Args:
        apart: Gives d, in steps that autograd knows.
        s: Features, [batch, ...].
        t: Of that shape, in whatever order in memory; they have no gradient.

    Returns:
        [batch]. It can be differentiated again and again.
    """
    found: Tensor = _Squares.apply(s, t, apart)[0]
    return found


class _Squares(torch.autograd.Function):
    """See `squares_apart`."""

    @staticmethod
    def forward(s: Tensor, t: Tensor, apart: Apart) -> tuple[Tensor, Tensor]:
        distances, found = torch.empty_like(s), s.new_zeros(len(s))
        rows = max(1, len(s) if s.device.type != "cpu" else _CACHED // max(1, s[:1].numel()))
        for start in range(0, len(s), rows):
            part = slice(start, start + rows)
            few = apart(s[part], t[part], part)
            distances[part] = few
            found[part] = total(few.square())
        return found, distances

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        s, t, ctx.apart = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # none of the distances' size
        ctx.save_for_backward(s, t, output[1])

    @staticmethod
    def backward(ctx: Any, outer: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
        if outer is None:  # nothing asks for it
            return None, None, None
        s, t, distances = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient will be asked for
            distances = ctx.apart(s, t, slice(None))
        return distances * (2 * outer).reshape(-1, *(1 for _ in s.shape[1:])), None, None
