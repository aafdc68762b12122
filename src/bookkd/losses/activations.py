"""Pre-activation maps: what the teacher's ReLU would let through decides what the student has to match."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bookkd.core.check import positive
from bookkd.core.errors import ConfigError, expected
from bookkd.losses._apart import squares_apart
from bookkd.losses._features import feature_pair
from bookkd.losses.claims import claims
from bookkd.losses.targets import Target, computing_dtype

__all__ = ["activation_boundary", "overhaul", "overhaul_margins"]


@claims(zero_at_teacher=False, why_not="inside the margin a student that equals the teacher is still pushed outwards")
def activation_boundary(student: Tensor, teacher: Target | Tensor, *, margin: float) -> Tensor:
    r"""Activation boundary transfer (AB): each unit on the teacher's side of zero, by a margin.

    Sum over all but the batch of (s + m)^2 where s > -m and t <= 0, of (s - m)^2 where s <= m and t > 0, and of 0 elsewhere. Only
    the teacher's signs are looked at: one bit each would do.

    Args:
        student: Features before the activation, shape [batch, ...].
        teacher: Likewise; maps of another height and width are averaged to the smaller.
        margin: m, above 0.

    Returns:
        One value per sample, shape [batch]; a sum, which grows with the features, as in the released code.

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the shapes do not fit or the margin is out of range.

    >>> student, teacher = torch.tensor([[-2.0, -0.5, 0.3, 1.7]]), torch.tensor([[-1.0, 0.4, -0.2, 2.0]])
    >>> activation_boundary(student, teacher, margin=1.0)
    tensor([3.9400])

    Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries", AAAI 2019 (arXiv 1811.03233), equation 4.
    """
    positive(margin, "margin", where="activation_boundary")
    s, t = feature_pair(student, teacher, "activation_boundary", laid=False)

    def apart(mine: Tensor, theirs: Tensor, _: slice) -> Tensor:
        # How far the unit still is from its side of the margin. A product with a sign is a fraction of what a choice costs.
        side = torch.empty_like(mine).copy_(theirs).gt_(0).mul_(-2).add_(1)
        return side * (side * mine).add_(margin).relu_()

    return squares_apart(apart, s, t)


@claims()
def overhaul(student: Tensor, teacher: Target | Tensor, teacher_margins: Tensor | None = None) -> Tensor:
    r"""Distance of the overhaul of feature distillation (OFD): values that the teacher's ReLU cuts off need not be met.

    With u = max(t, m), the teacher behind its margin: sum over all but the batch of (s - u)^2 where s > u or u > 0, and of 0
    elsewhere. So a negative value of the teacher is an upper bound, and below the margin m of its channel even that is lax.

    Args:
        student: Features before the activation, shape [batch, channels, ...].
        teacher: Likewise; maps of another height and width are averaged to the smaller.
        teacher_margins: m of each channel, at most 0, see `overhaul_margins`, shape [channels], or [batch, channels]; None where the
            teacher's features are max(t, m) already.

    Returns:
        One value per sample, shape [batch]; a sum, which grows with the features, as in the released code.

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the shapes do not fit.

    >>> student, teacher = torch.tensor([[[-2.0, -0.5, 0.3, 1.7]]]), torch.tensor([[[-1.0, 0.4, -0.2, 2.0]]])
    >>> overhaul(student, teacher, torch.tensor([-0.6]))
    tensor([1.1500])

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019 (arXiv 1904.01866), equation 4, and its code.
    """
    s, t = feature_pair(student, teacher, "overhaul", laid=False)
    margins = None
    if teacher_margins is not None:
        got = list(teacher_margins.shape)
        if got not in ([s.shape[1]], list(s.shape[:2])):
            wish = f"one for each of {s.shape[1]} channels"
            raise ConfigError(expected("teacher_margins", wish, f"shape {got}", where="overhaul"))
        given = teacher_margins.detach().to(t.dtype).expand(s.shape[:2])
        margins = given.reshape(*s.shape[:2], *(1 for _ in s.shape[2:]))

    def apart(mine: Tensor, theirs: Tensor, rows: slice) -> Tensor:
        behind = torch.empty_like(mine).copy_(theirs)
        if margins is not None:
            torch.maximum(behind, margins[rows], out=behind)
        # As a choice, and not as a product, where either side may be infinite.
        allowed = (behind <= 0).logical_and_(mine <= behind)
        return (mine - behind).masked_fill_(allowed, 0)

    return squares_apart(apart, s, t)


def overhaul_margins(mean: Tensor, deviation: Tensor) -> Tensor:
    r"""Margins of `overhaul` for the channels behind a batch normalisation: what a negative value is on average.

    m = E[x | x < 0] = b - s phi(b / s) / Phi(-b / s) for x from Normal(b, s), phi and Phi its standard density and distribution;
    -3 s where Phi(-b / s) <= 0.001, as in the released code.

    Args:
        mean: b, the shift of the normalisation, shape [channels].
        deviation: s, the magnitude of its scale, at least 0, shape [channels].

    Returns:
        Shape [channels], at most 0, in float32 or wider.

    Raises:
        ConfigError: if the shapes differ.

    >>> overhaul_margins(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 1.0]))
    tensor([-0.7979, -3.0000])

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019 (arXiv 1904.01866), equation 3, and its code.
    """
    if mean.shape != deviation.shape:
        got = f"shape {list(deviation.shape)}"
        raise ConfigError(expected("deviation", f"of shape {list(mean.shape)}", got, where="overhaul_margins"))
    wide = computing_dtype(mean.dtype, deviation.dtype)
    b, s = mean.detach().cpu().double(), deviation.detach().cpu().double().abs()  # some devices have no float64
    z = b / s.clamp_min(torch.finfo(torch.float64).tiny)
    below = torch.special.ndtr(-z)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    usual = b - s * density / below.clamp_min(0.001)
    return torch.where(below > 0.001, usual, -3 * s).to(mean.device, wide)
