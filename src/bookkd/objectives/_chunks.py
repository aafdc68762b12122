"""A loss of many positions over many classes, worked out a few positions at a time, so that its memory is that of the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bookkd.core.errors import ConfigError, expected
from bookkd.losses import Target
from bookkd.losses.targets import computing_dtype

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
    wanted = student.requires_grad and torch.is_grad_enabled()
    found: Tensor = _ByChunks.apply(student, evaluate, rows, wanted)
    return found


def part_of(values: Mapping[str, Any], rows: slice, count: int) -> dict[str, Any]:
    """Return some positions of every entry that has one value for each of `count` positions; the others stay."""
    return {name: _part(value, rows, count) for name, value in values.items()}


def _part(value: Any, rows: slice, count: int) -> Any:
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == count else value
    if hasattr(value, "positions") and tuple(value.positions) == (count,):
        target: Target = value
        return target.rows(rows)
    return value


class _ByChunks(torch.autograd.Function):
    """Values, and the gradient of each with respect to its own row."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, evaluate: Evaluate, rows: int, wanted: bool) -> Tensor:
        # Half a precision is kept whole until the outer gradient, with the scale of mixed precision in it, has met it.
        gradient = torch.empty_like(student, dtype=computing_dtype(student.dtype)) if wanted else None
        values = []
        for start in range(0, len(student), rows):
            part = slice(start, min(start + rows, len(student)))
            with torch.set_grad_enabled(wanted):
                piece = student.detach()[part].to(computing_dtype(student.dtype)).requires_grad_(wanted)
                value = evaluate(piece, part)
                if gradient is not None:
                    (gradient[part],) = torch.autograd.grad(value.sum(), piece)
            values.append(value.detach())
        ctx.gradient, ctx.dtype = gradient, student.dtype
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            do = "Add the losses up before, or work the loss out again: a large one keeps its gradient for one pass."
            raise ConfigError(expected("backward", "called once for a loss of many classes", "a second time", do=do))
        # In place: the step asks once, and a second tensor of this size is what chunks are there to save.
        return gradient.mul_(outer.unsqueeze(-1).to(gradient.dtype)).to(ctx.dtype), None, None, None
