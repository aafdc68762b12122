"""Rows of the losses on numbers: student and teacher are mean and variance of each position.

References: scipy's normal distribution, torch's divergence of two, plain numpy. Worked numbers by hand.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from bookkd.losses import gaussian_kl, gaussian_nll, mean_matching, squared_error
from bookkd.testing.losses import LossCase, Worked

ROWS = 6
HALF_LOG_TWO_PI = math.log(2 * math.pi) / 2


def normals(generator):
    """Means of a few units, variances from 0.1 to 3."""
    means = 2 * torch.randn(ROWS, generator=generator, dtype=torch.float64)
    variances = 0.1 + 3 * torch.rand(ROWS, generator=generator, dtype=torch.float64)
    return torch.stack([means, variances], -1)


def make_pair(generator):
    return normals(generator), normals(generator)


def make_labels(generator):
    labels = 2 * torch.randn(ROWS, generator=generator, dtype=torch.float64)
    labels[2] = float("nan")
    return normals(generator), labels


def make_mixed(generator):
    student, labels = make_labels(generator)
    partners = labels.flip(0).roll(1)
    return student, labels, partners, torch.rand(ROWS, generator=generator, dtype=torch.float64)


def far(given):
    """Means of +-10,000 that are as sure as 0.0001 and as unsure as 10,000."""
    variance = torch.where(given[..., 1] > given[..., 1].mean(), 1e4, 1e-4)
    return torch.stack([given[..., 0].sign() * 1e4, variance.to(given)], -1)


def mixed(labels, partners, ratio):
    return labels if partners is None else ratio * labels + (1 - ratio) * partners


def ref_squared(student, labels, partners=None, ratio=None):
    wanted = mixed(labels, partners, ratio)
    return np.where(np.isnan(wanted), 0.0, np.square(student[:, 0] - wanted))


def ref_nll(student, labels, partners=None, ratio=None):
    wanted = mixed(labels, partners, ratio)
    value = -norm.logpdf(wanted, student[:, 0], np.sqrt(student[:, 1])) - HALF_LOG_TWO_PI
    return np.where(np.isnan(wanted), 0.0, value)


def ref_mean(student, teacher):
    return np.square(student[:, 0] - teacher[:, 0])


def ref_kl(student, teacher):
    teacher, student = (Normal(torch.tensor(x[:, 0]), torch.tensor(x[:, 1]).sqrt()) for x in (teacher, student))
    return kl_divergence(teacher, student).numpy()


def from_labels(name, loss, make, reference, *worked):
    why = "it looks at labels"
    more = {"at_teacher": "moves", "why": why, "shift_invariant": False, "wild": far, "ruled_out": False}
    return LossCase(name, loss, {}, make, reference, worked, **more)


def from_teacher(name, loss, reference, *worked):
    more = {"from_logits": lambda given: (given,), "shift_invariant": False, "wild": far, "ruled_out": False}
    return LossCase(name, loss, {}, make_pair, reference, worked, **more)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


REGRESSION = (
    from_labels(
        "squared_error",
        squared_error,
        make_labels,
        ref_squared,
        Worked((1.0, 4.0), (number(1.5),), {}, 0.25, (-1.0, 0.0)),
        Worked((1.0,), (number(1.5),), {}, 0.25, (-1.0,)),
    ),
    from_labels("squared_error/mixed", squared_error, make_mixed, ref_squared),
    # (log 4 + 9 / 4) / 2; the slopes are (m - y) / s and (1 / s - (m - y)^2 / s^2) / 2.
    from_labels(
        "gaussian_nll",
        gaussian_nll,
        make_labels,
        ref_nll,
        Worked((1.0, 4.0), (number(4.0),), {}, math.log(2) + 1.125, (-0.75, 0.125 - 9 / 32)),
        Worked((1.0,), (number(4.0),), {}, 4.5, (-3.0,)),
    ),
    from_labels("gaussian_nll/mixed", gaussian_nll, make_mixed, ref_nll),
    from_teacher(
        "mean_matching",
        mean_matching,
        ref_mean,
        Worked((1.0, 4.0), (number([1.5, 0.1]),), {}, 0.25, (-1.0, 0.0)),
        Worked((1.0,), (number([1.5]),), {}, 0.25, (-1.0,)),
    ),
    # KL(N(0, 1) || N(1, 4)) = log 2 + 2 / 8 - 1 / 2, and with the teacher's variance 4 for the student's: 9 / 8.
    from_teacher(
        "gaussian_kl",
        gaussian_kl,
        ref_kl,
        Worked((1.0, 4.0), (number([0.0, 1.0]),), {}, math.log(2) - 0.25, (0.25, 0.125 - 1 / 16)),
        Worked((1.0,), (number([4.0, 4.0]),), {}, 1.125, (-0.75,)),
    ),
)
