"""Numbers instead of classes: a position is (sample, output), and its last axis holds the mean, or mean and variance.

A student or teacher that gives a variance says a normal distribution; one that does not says its mean alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bookkd.core.errors import ConfigError, DataError, FidelityError, expected
from bookkd.losses.claims import claims
from bookkd.losses.labels import share_of
from bookkd.losses.targets import DenseTarget, Target, as_target, computing_dtype

__all__ = ["as_normal", "gaussian_kl", "gaussian_nll", "mean_matching", "squared_error"]

_LABELS = "it looks at labels, not at a teacher"


def as_normal(mean: Tensor, variance: Tensor | None = None) -> Tensor:
    """Return mean, and variance where it is given, on a new last axis, as the losses of this family take them.

    Args:
        mean: Shape [...].
        variance: Above 0, shape [...].

    Returns:
        Shape [..., 1] or [..., 2].

    >>> as_normal(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.1]))
    tensor([[1.0000, 0.5000],
            [2.0000, 0.1000]])
    """
    return mean.unsqueeze(-1) if variance is None else torch.stack([mean, variance], -1)


@claims(zero_at_teacher=False, why_not=_LABELS)
def squared_error(
    student: Tensor, labels: Tensor, partner_labels: Tensor | None = None, ratio: Tensor | None = None
) -> Tensor:
    r"""Squared difference between the student's mean and the label.

    (m - y)^2; for a mixed view y stands for ratio y + (1 - ratio) y', with y' the partner's label. A variance is not looked at.

    Args:
        student: Mean, or mean and variance, see `as_normal`, shape [..., 1] or [..., 2].
        labels: y, floating, NaN where hidden, shape [...].
        partner_labels: Labels of the samples that the views were mixed with, as `labels`.
        ratio: Share of the sample itself in its mixed view, 0 to 1; shape [...] or its first axes.

    Returns:
        One value per position, shape [...]; 0 where the label, or the partner's, is hidden.

    Raises:
        ConfigError: if shapes or dtypes do not match, or only one of `partner_labels` and `ratio` is given.

    >>> squared_error(as_normal(torch.tensor([1.0, 2.0])), torch.tensor([1.5, float("nan")]))
    tensor([0.2500, 0.0000])
    """
    mean, _ = _student(student, "squared_error")
    wanted, hidden = _labels(mean, labels, partner_labels, ratio, "squared_error")
    return (mean - wanted).square().masked_fill(hidden, 0)


@claims(zero_at_teacher=False, why_not=_LABELS)
def gaussian_nll(
    student: Tensor, labels: Tensor, partner_labels: Tensor | None = None, ratio: Tensor | None = None
) -> Tensor:
    r"""Negative log-likelihood of the label under the student's normal distribution, up to a constant.

    (log s + (m - y)^2 / s) / 2, without log(2 pi) / 2, as `torch.nn.GaussianNLLLoss`; a student without variance has s = 1.

    Args:
        student: Mean, or mean m and variance s, see `as_normal`, shape [..., 1] or [..., 2].
        labels: y, as for `squared_error`.
        partner_labels: As for `squared_error`.
        ratio: As for `squared_error`.

    Returns:
        One value per position, shape [...]; 0 where the label, or the partner's, is hidden.

    Raises:
        DataError: if a variance is not above 0; the check costs one wait for the device.
        ConfigError: if shapes or dtypes do not match, or only one of `partner_labels` and `ratio` is given.

    >>> gaussian_nll(as_normal(torch.tensor([1.0]), torch.tensor([0.25])), torch.tensor([1.5]))
    tensor([-0.1931])

    Source: Nix and Weigend, "Estimating the Mean and Variance of the Target Probability Distribution", ICNN 1994.
    """
    mean, variance = _student(student, "gaussian_nll")
    wanted, hidden = _labels(mean, labels, partner_labels, ratio, "gaussian_nll")
    error = (mean - wanted).square()
    value = error / 2 if variance is None else (variance.log() + error / variance) / 2
    return value.masked_fill(hidden, 0)


@claims()
def mean_matching(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Squared difference between the means of student and teacher.

    (m - n)^2, with n the teacher's mean. Variances are not looked at.

    Args:
        student: Mean, or mean and variance, see `as_normal`, shape [..., 1] or [..., 2].
        teacher: Likewise, of the same positions.

    Returns:
        One value per position, shape [...].

    Raises:
        ConfigError: if shapes do not match.
        FidelityError: if the teacher is a target of classes.

    >>> mean_matching(as_normal(torch.tensor([1.0, 2.0])), as_normal(torch.tensor([1.5, 2.0])))
    tensor([0.2500, 0.0000])
    """
    mean, _ = _student(student, "mean_matching")
    other, _ = _teacher(mean, teacher, "mean_matching")
    return (mean - other).square()


@claims()
def gaussian_kl(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Kullback-Leibler divergence of the student's normal distribution from the teacher's.

    KL(N(n, t) || N(m, s)) = (t / s - 1 - log(t / s) + (m - n)^2 / s) / 2, with the teacher's mean n and variance t. A student
    without variance takes the teacher's: what is left is (m - n)^2 / (2 t), so that what the teacher is unsure of counts less.

    Args:
        student: Mean, or mean m and variance s, see `as_normal`, shape [..., 1] or [..., 2].
        teacher: Mean and variance, of the same positions, shape [..., 2].

    Returns:
        One value per position, shape [...].

    Raises:
        DataError: if a variance is not above 0; the check costs one wait for the device.
        ConfigError: if shapes do not match, or the teacher gives no variance.
        FidelityError: if the teacher is a target of classes.

    >>> teacher = as_normal(torch.tensor([0.0]), torch.tensor([1.0]))
    >>> gaussian_kl(as_normal(torch.tensor([1.0]), torch.tensor([4.0])), teacher), gaussian_kl(torch.tensor([[1.0]]), teacher)
    (tensor([0.4431]), tensor([0.5000]))

    Source: the closed form; Kullback, "Information Theory and Statistics", 1959, chapter 9.
    """
    mean, own = _student(student, "gaussian_kl")
    other, variance = _teacher(mean, teacher, "gaussian_kl")
    if variance is None:
        do = "Use mean_matching, or a teacher that gives its variance."
        raise ConfigError(
            expected("teacher", "mean and variance [..., 2]", "the mean alone", where="gaussian_kl", do=do)
        )
    if own is None:
        return (mean - other).square() / (2 * variance)
    share = variance / own
    return (share - 1 - share.log() + (mean - other).square() / own) / 2


def _parts(given: Tensor, what: str, loss: str) -> tuple[Tensor, Tensor | None]:
    """Return mean and variance, if it is there, in the computing dtype."""
    if not given.is_floating_point() or given.ndim == 0 or given.shape[-1] not in (1, 2):
        got, do = f"{given.dtype} of shape {list(given.shape)}", "Pass them through as_normal."
        raise ConfigError(
            expected(what, "floating, mean or mean and variance on the last axis", got, where=loss, do=do)
        )
    wide = given.to(computing_dtype(given.dtype))
    return wide[..., 0], wide[..., 1] if given.shape[-1] == 2 else None


def _student(student: Tensor, loss: str) -> tuple[Tensor, Tensor | None]:
    mean, variance = _parts(student, "student", loss)
    if loss.startswith("gaussian"):
        _check_variance(variance, "student", loss)
    return mean, variance


def _teacher(mean: Tensor, teacher: Target | Tensor, loss: str) -> tuple[Tensor, Tensor | None]:
    target = as_target(teacher)
    if not isinstance(target, DenseTarget):
        raise FidelityError(expected("teacher", "a mean for each output", type(target).__name__, where=loss))
    other, variance = _parts(target.logits.detach(), "teacher", loss)
    if other.shape != mean.shape:
        got = f"shape {list(mean.shape)}"
        raise ConfigError(expected("student", f"of the teacher's positions {list(other.shape)}", got, where=loss))
    if loss.startswith("gaussian"):
        _check_variance(variance, "teacher", loss)
    return other, variance


def _check_variance(variance: Tensor | None, what: str, loss: str) -> None:
    if variance is not None and bool((wrong := ~(variance > 0)).any()):
        do = "End the head with softplus and add a small number."
        where = f"{loss}, {what}"
        raise DataError(expected("variance", "above 0", variance[wrong][0].item(), where=where, do=do))


def _labels(
    mean: Tensor, labels: Tensor, partner_labels: Tensor | None, ratio: Tensor | None, loss: str
) -> tuple[Tensor, Tensor]:
    """Return labels, mixed where the views are, 0 where they are hidden, and where that is."""
    if (partner_labels is None) != (ratio is None):
        raise ConfigError(expected("partner_labels", "given together with `ratio`", "only one of them", where=loss))
    for given in (labels,) if partner_labels is None else (labels, partner_labels):
        if given.shape != mean.shape or not given.is_floating_point():
            got = f"{given.dtype} of shape {list(given.shape)}"
            do = "Return labels as floats; NaN hides one."
            raise ConfigError(expected("labels", f"floating, of shape {list(mean.shape)}", got, where=loss, do=do))
    wanted = labels.to(mean.dtype)
    if partner_labels is not None and ratio is not None:
        wanted = torch.lerp(partner_labels.to(mean.dtype), wanted, share_of(ratio, labels, mean.dtype, loss))
    hidden = wanted.isnan()
    return wanted.masked_fill(hidden, 0), hidden
