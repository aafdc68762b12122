"""Losses on numbers: against torch's own, what a missing variance means, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.testing import assert_close

from bookkd.core.errors import ConfigError, DataError, FidelityError
from bookkd.losses import (
    CombinedTarget,
    DenseTarget,
    as_normal,
    gaussian_kl,
    gaussian_nll,
    mean_matching,
    squared_error,
)

generator = torch.Generator().manual_seed(5)
MEAN, OTHER, LABELS = 2 * torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
VARIANCE, WIDE = 0.1 + torch.rand(2, 4, 2, generator=generator, dtype=torch.float64)
ALONE, STUDENT, TEACHER = as_normal(MEAN), as_normal(MEAN, VARIANCE), as_normal(OTHER, WIDE)
NAN = float("nan")


def test_they_are_torchs():
    assert_close(squared_error(ALONE, LABELS), torch.nn.functional.mse_loss(MEAN, LABELS, reduction="none"))
    theirs = torch.nn.functional.gaussian_nll_loss(MEAN, LABELS, VARIANCE, reduction="none")
    assert_close(gaussian_nll(STUDENT, LABELS), theirs)
    assert_close(mean_matching(ALONE, as_normal(OTHER)), torch.nn.functional.mse_loss(MEAN, OTHER, reduction="none"))


def test_the_divergence_is_the_integral():
    def part(x):
        return norm.pdf(x, 0.3, 0.5) * (norm.logpdf(x, 0.3, 0.5) - norm.logpdf(x, -0.4, 1.2))

    one, other = torch.tensor([-0.4, 1.2**2], dtype=torch.float64), torch.tensor([0.3, 0.25], dtype=torch.float64)
    assert float(gaussian_kl(one, other)) == pytest.approx(quad(part, -8, 8)[0], rel=1e-9)


def test_a_student_without_variance_takes_the_teachers():
    assert_close(gaussian_kl(ALONE, TEACHER), gaussian_kl(as_normal(MEAN, WIDE), TEACHER))
    assert_close(gaussian_kl(ALONE, TEACHER), (MEAN - OTHER).square() / (2 * WIDE))
    # What the teacher is unsure of counts less, in the gradient too.
    student = torch.zeros(2, 1, requires_grad=True)
    gaussian_kl(student, as_normal(torch.ones(2), torch.tensor([0.1, 10.0]))).sum().backward()
    assert_close(student.grad, torch.tensor([[-10.0], [-0.1]]))


def test_a_student_without_variance_has_variance_1_for_labels():
    assert_close(gaussian_nll(ALONE, LABELS), squared_error(ALONE, LABELS) / 2)
    assert_close(gaussian_nll(as_normal(MEAN, torch.ones_like(MEAN)), LABELS), squared_error(STUDENT, LABELS) / 2)


@pytest.mark.parametrize("loss", [squared_error, gaussian_nll])
def test_hidden_labels_send_nothing_back(loss):
    student = STUDENT[:, 0].clone().requires_grad_()
    labels = torch.tensor([NAN, 1.0, NAN, 0.0], dtype=torch.float64)
    value = loss(student, labels)
    assert value[[0, 2]].tolist() == [0, 0]
    value.sum().backward()
    assert student.grad[[0, 2]].abs().sum() == 0
    assert (student.grad[[1, 3], 0] != 0).all()
    mixed = loss(student, LABELS[:, 0], labels, torch.full((4,), 0.5))
    assert mixed[[0, 2]].tolist() == [0, 0]


def test_mixed_labels_count_with_the_ratio():
    ratio = torch.tensor([0.25, 1.0, 0.0, 0.5], dtype=torch.float64)
    both = ratio[:, None] * LABELS + (1 - ratio[:, None]) * OTHER
    assert_close(squared_error(ALONE, LABELS, OTHER, ratio), (MEAN - both).square())
    assert_close(gaussian_nll(STUDENT, LABELS, OTHER, ratio), gaussian_nll(STUDENT, both))


NEGATIVE = as_normal(MEAN, -VARIANCE)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: squared_error(MEAN, LABELS[:, :1]),
            ConfigError,
            r"`labels` to be floating, of shape \[4\], got torch.float64 of shape \[4, 1\]",
        ),
        (
            lambda: squared_error(torch.zeros(4, 3), torch.zeros(4)),
            ConfigError,
            r"`student` to be floating, mean or mean and variance on the last axis, got .*\[4, 3\] .*through as_normal",
        ),
        (
            lambda: squared_error(ALONE, LABELS.long()),
            ConfigError,
            r"floating, of shape \[4, 2\], got torch.int64 .*\(squared_error\)\. Return labels as floats; NaN hides one",
        ),
        (
            lambda: squared_error(ALONE, LABELS, LABELS),
            ConfigError,
            r"`partner_labels` to be given together with `ratio`",
        ),
        (
            lambda: gaussian_nll(ALONE, LABELS, LABELS, torch.ones(3)),
            ConfigError,
            r"`ratio` to be one for each sample of \[4, 2\], got shape \[3\] \(gaussian_nll\)",
        ),
        (
            lambda: gaussian_nll(NEGATIVE, LABELS),
            DataError,
            r"`variance` to be above 0, got -0\.\d+ \(gaussian_nll, student\)\. End the head with softplus",
        ),
        (lambda: gaussian_nll(as_normal(MEAN, VARIANCE * NAN), LABELS), DataError, r"above 0, got nan"),
        (lambda: gaussian_kl(STUDENT, NEGATIVE), DataError, r"above 0, got -0\.\d+ \(gaussian_kl, teacher\)"),
        (
            lambda: gaussian_kl(STUDENT, ALONE),
            ConfigError,
            r"`teacher` to be mean and variance \[\.\.\., 2\], got the mean alone .*Use mean_matching",
        ),
        (
            lambda: mean_matching(ALONE, as_normal(OTHER[:2])),
            ConfigError,
            r"of the teacher's positions \[2, 2\], got shape \[4, 2\]",
        ),
        (
            lambda: mean_matching(ALONE, CombinedTarget.of([DenseTarget(ALONE), DenseTarget(ALONE)])),
            FidelityError,
            r"`teacher` to be a mean for each output, got 'CombinedTarget'",
        ),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_tiny_variances_stay_exact():
    # Around the teacher t / s - 1 - log(t / s) cancels; half of (t / s - 1)^2 is left.
    teacher = as_normal(torch.zeros(1, dtype=torch.float64), torch.full((1,), 1e-12, dtype=torch.float64))
    student = as_normal(torch.zeros(1, dtype=torch.float64), torch.full((1,), 1e-12 * (1 + 1e-4), dtype=torch.float64))
    assert float(gaussian_kl(student, teacher)) == pytest.approx(1e-8 / 4, rel=1e-3)
    assert math.isfinite(float(gaussian_nll(student, torch.zeros(1, dtype=torch.float64))))
