"""A few classes of many: their logits and the log-sum-exp of the others, in one pass forwards and one backwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["log_probabilities_of", "picked"]

_CACHED = 2**18
"""Logits that a processor takes at a time: 1 MiB of float32 stays in its cache while it is worked on."""
_KERNEL = 2**24
"""Logits that another device takes at a time: enough to keep it busy."""


def picked(student: Tensor, classes: Tensor, temperature: float, dtype: torch.dtype, *, apart: bool) -> Tensor:
    r"""Return the logits of some classes at one temperature and, last, the log-sum-exp of the others or of all.

    z_c = student_c / T for c in C, and log sum_j exp(z_j) over j not in C (`apart`), or over every class.

    All that a loss on a few classes can know of the student is in these numbers. Autograd would write a tensor of the size of
    the logits for each step from them to here and back; this reads the logits once each way and writes their gradient once,
    a few positions at a time. Nothing but the logits themselves is kept in between.

    Args:
        student: Logits, shape [..., K].
        classes: C, int64, shape [..., k]; without repeats within a position where `apart`, and fewer than K then.
        temperature: T.
        dtype: The dtype to compute in.
        apart: Whether the last number leaves out the classes.

    Returns:
        Shape [..., k + 1], in `dtype`. It can be differentiated again and again.
    """
    found: Tensor = _Picked.apply(student, classes, temperature, dtype, apart)
    return found


def log_probabilities_of(student: Tensor, classes: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """Return log softmax(student / T) of some classes, which may repeat, shape [..., k]; arguments as `picked`."""
    found = picked(student, classes, temperature, dtype, apart=False)
    return found[..., :-1] - found[..., -1:]


def _plainly(student: Tensor, classes: Tensor, temperature: float, dtype: torch.dtype, apart: bool) -> Tensor:
    """Return the same, in steps that autograd knows."""
    logits = student.to(dtype) / temperature
    others = logits.scatter(-1, classes, _low(dtype)) if apart else logits
    return torch.cat([logits.gather(-1, classes), others.logsumexp(-1, keepdim=True)], -1)


def _low(dtype: torch.dtype) -> float:
    """Return what stands for -inf: the gradient of log-sum-exp is NaN where the student rules out every other class."""
    return torch.finfo(dtype).min / 4


class _Picked(torch.autograd.Function):
    """See `picked`."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, classes: Tensor, temperature: float, dtype: torch.dtype, apart: bool
    ) -> Tensor:
        flat, chosen = _rows(student), _rows(classes)
        others = flat.new_empty((len(flat), 1), dtype=dtype)
        for part in _parts(flat):
            piece = _divided(flat[part].to(dtype), temperature)
            if apart:
                piece = piece.scatter(-1, chosen[part], _low(dtype))
            others[part] = piece.logsumexp(-1, keepdim=True)
        others = others.reshape(*student.shape[:-1], 1)
        ctx.save_for_backward(student, classes, others)
        ctx.options = (temperature, dtype, apart)
        return torch.cat([_divided(student.gather(-1, classes).to(dtype), temperature), others], -1)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        student, classes, others = ctx.saved_tensors
        temperature, dtype, apart = ctx.options
        if torch.is_grad_enabled():  # a gradient of this gradient will be asked for
            value = _plainly(student, classes, temperature, dtype, apart)
            (again,) = torch.autograd.grad(value, student, outer, create_graph=True)
            return again, None, None, None, None
        gradient = torch.empty_like(student, memory_format=torch.contiguous_format)
        flat, chosen, last, into = _rows(student), _rows(classes), _rows(others), _rows(gradient)
        slope = _divided(_rows(outer), temperature)
        for part in _parts(flat):
            # Written where it stays, unless the student's dtype is narrower than that of the loss.
            piece = into[part] if into.dtype == dtype else flat.new_empty(flat[part].shape, dtype=dtype)
            piece.copy_(flat[part])
            _divided(piece, temperature, in_place=True).sub_(last[part]).exp_().mul_(slope[part, -1:])
            if apart:
                # What stood there may be infinite, and is no share of the others.
                piece.scatter_(-1, chosen[part], slope[part, :-1])
            else:
                piece.scatter_add_(-1, chosen[part], slope[part, :-1])
            if piece.dtype != into.dtype:
                into[part] = piece
        return gradient, None, None, None, None


def _rows(given: Tensor) -> Tensor:
    """Return [positions, last axis]; without positions, too, where -1 would say nothing."""
    return given.reshape(given.shape[:-1].numel(), given.shape[-1])


def _divided(logits: Tensor, temperature: float, *, in_place: bool = False) -> Tensor:
    if temperature == 1:
        return logits
    return logits.div_(temperature) if in_place else logits / temperature


def _parts(flat: Tensor) -> Iterator[slice]:
    """Yield the positions to take at a time."""
    rows = max(1, (_CACHED if flat.device.type == "cpu" else _KERNEL) // flat.shape[1])
    return (slice(start, start + rows) for start in range(0, len(flat), rows))
