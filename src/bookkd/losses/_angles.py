"""Angles of all triples of a batch on two sides, compared a few samples at a time, with their gradient in the same pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from bookkd.losses.reductions import inverse_norm, product, unit

__all__ = ["angles_apart"]

_CACHED = 2**18
"""Numbers that a processor takes at a time: 1 MiB of float32 stays in its cache while it is worked on."""
_KERNEL = 2**24
"""Numbers that another device takes at a time: 64 MiB of float32, enough to keep it busy."""


def angles_apart(s: Tensor, t: Tensor) -> Tensor:
    r"""Return the mean over all triples of smooth_l1(e_s,ij . e_s,ik, e_t,ij . e_t,ik), e_ij = (f_j - f_i) / ||f_j - f_i||.

    Autograd would write and keep several tensors of N^3 cosines and of N^2 d differences on each side. This works out the loss
    of a few samples i at once, and their gradient beside it: with D the differences of the cosines at i and c = min(max(D, -1), 1),
    the loss is sum (c D - c^2 / 2), and its gradient 2 c e with respect to the directions e. Kept is one tensor of the
    features' size.

    Args:
        s: Features, [N, d].
        t: Others of the same samples, [N, d_t]; they have no gradient.

    Returns:
        A scalar. It can be differentiated again and again; a second derivative is worked out plainly, in memory of N^3.
    """
    found: Tensor = _Angles.apply(s, t)
    return found


def _plainly(s: Tensor, t: Tensor) -> Tensor:
    """Return the same, in steps that autograd knows."""

    def angles(features: Tensor) -> Tensor:
        towards = unit(features.unsqueeze(0) - features.unsqueeze(1), 2)
        return product(towards, towards.mT)

    return smooth_l1_loss(angles(s), angles(t))


class _Angles(torch.autograd.Function):
    """See `angles_apart`."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor) -> Tensor:
        total, gradient = s.new_zeros(()), torch.zeros_like(s) if ctx.needs_input_grad[0] else None
        # It would round cosines to 16 bits, of which differences leave few.
        with torch.autocast(s.device.type, enabled=False):
            for part in _parts(s, t):
                towards = s.unsqueeze(0) - s[part].unsqueeze(1)
                norm = inverse_norm(towards, 2)
                towards *= norm
                others = unit(t.unsqueeze(0) - t[part].unsqueeze(1), 2)
                apart = torch.baddbmm(others @ others.mT, towards, towards.mT, beta=-1)
                clipped = apart.clamp(-1, 1)
                total += (clipped * apart.sub_(clipped, alpha=0.5)).sum()
                if gradient is not None:
                    slope = clipped @ towards
                    slope -= towards * (slope * towards).sum(2, keepdim=True)
                    slope *= 2 * norm
                    gradient += slope.sum(0)
                    gradient[part] -= slope.sum(1)
        triples = len(s) ** 3
        ctx.save_for_backward(s, t, gradient if gradient is None else gradient.div_(triples))
        return total / triples

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        s, t, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient will be asked for
            (again,) = torch.autograd.grad(_plainly(s, t), s, outer, create_graph=True)
            return again, None
        return gradient * outer, None


def _parts(s: Tensor, t: Tensor) -> Iterator[slice]:
    """Yield the samples to take at a time."""
    widest = max(len(s), s.shape[1], t.shape[1])
    rows = max(1, (_CACHED if s.device.type == "cpu" else _KERNEL) // (len(s) * widest))
    return (slice(start, start + rows) for start in range(0, len(s), rows))
