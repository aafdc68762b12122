"""A loss of many positions over many classes, worked out a few positions at a time, so that its memory is that of the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bookkd.losses import Target

__all__ = ["by_chunks", "part_of", "rows_of_chunk"]

_WHOLE = 2**24
"""Logits that a loss takes at once: 64 MiB of float32, of which a divergence holds some five."""
_CHUNK = 2**22

Evaluate = Callable[[Tensor, slice], Tensor]
"""From the logits of some positions, and which they are, to one value each."""


def rows_of_chunk(student: Tensor) -> int | None:
    """Return how many positions [positions, classes] to take at a time; None where all fit."""
    if student.ndim != 2 or student.numel() <= _WHOLE:
        return None
    return max(1, _CHUNK // student.shape[1])


def by_chunks(evaluate: Evaluate, student: Tensor, rows: int) -> Tensor:
    """Return one value for each position, shape [positions], with gradient.

    The gradient of a pointwise loss with respect to the logits of a position is that of its own value alone. It is worked out
    together with the value, and kept in place of what autograd would keep: one tensor of the size of the logits, and the
    temporaries of one chunk.

    Args:
        evaluate: The loss; pointwise.
        student: Logits [positions, classes].
        rows: Positions of a chunk.
    """
    found: Tensor = _ByChunks.apply(student, evaluate, rows)
    return found


def part_of(values: Mapping[str, Any], rows: slice, count: int) -> dict[str, Any]:
    """Return some positions of every entry that has one value for each of `count` positions; the others stay."""
    index = torch.arange(rows.start, rows.stop)
    return {name: _part(value, rows, index, count) for name, value in values.items()}


def _part(value: Any, rows: slice, index: Tensor, count: int) -> Any:
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == count else value
    if hasattr(value, "positions") and tuple(value.positions) == (count,):
        target: Target = value
        return target.rows(index)
    return value


class _ByChunks(torch.autograd.Function):
    """Values, and the gradient of each with respect to its own row."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, evaluate: Evaluate, rows: int) -> Tensor:
        wanted = student.requires_grad
        gradient = torch.empty_like(student) if wanted else None
        values = []
        for start in range(0, len(student), rows):
            part = slice(start, min(start + rows, len(student)))
            with torch.set_grad_enabled(wanted):
                piece = student.detach()[part].requires_grad_(wanted)
                value = evaluate(piece, part)
                if gradient is not None and not value.requires_grad:
                    gradient[part] = 0  # a figure for the log
                elif gradient is not None:
                    (gradient[part],) = torch.autograd.grad(value.sum(), piece)
            values.append(value.detach())
        ctx.gradient = gradient
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("The gradient of a loss by chunks was asked for a second time.")
        # In place: the step asks once, and a second tensor of this size is what chunks are there to save.
        return gradient.mul_(outer.unsqueeze(-1).to(gradient.dtype)), None, None
