"""A divergence that trusts the teacher more where it is right, and features spread by class."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bookkd.core.check import positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.core.names import choose
from bookkd.losses._pair import kl, log_pair, scaled, weighted_sum
from bookkd.losses.claims import claims
from bookkd.losses.labels import check_labels, refuse_mixed
from bookkd.losses.reductions import product, unit
from bookkd.losses.targets import Target, as_target, computing_dtype, likeliest

__all__ = ["intra_class_variance", "orthogonal_projection", "selective_kl"]


@claims(
    t_squared=True, sparse=True, zero_at_teacher=False, why_not="in the form of the released code it is no divergence"
)
def selective_kl(
    student: Tensor,
    teacher: Target | Tensor,
    labels: Tensor,
    partner_labels: Tensor | None = None,
    *,
    temperature: float,
    t_squared: bool,
    factor: float,
    form: Literal["code", "clean"],
) -> Tensor:
    r"""Selective distillation: where the teacher is right, its word counts twice.

    With w = factor (1 + [argmax p = y]): "clean" is w T^2 KL(p || q). "code" is what the released code does, which multiplies both
    p and log q by w: T^2 sum_k w p_k (log(w p_k) - w log q_k). Its gradient is w^2 that of the divergence, 4 times as much for right
    as for wrong, and its value at the teacher is not 0.

    Args:
        student: Logits, shape [..., K].
        teacher: Target of the same positions and classes; a sparse one counts the classes left out as one.
        labels: Classes 0 to K - 1, or `IGNORE_LABEL`, which no teacher is right about, integer, shape [...].
        partner_labels: Must be absent: a mixed view has two true classes.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2.
        factor: Above 0; the published schedule multiplies it by 0.9 every 30 epochs.
        form: "code" or "clean".

    Returns:
        One value per position, shape [...].

    Raises:
        FidelityError: if a sparse target does not promise T.
        DataError: if a label is no class; the check costs one wait for the device.
        ConfigError: if shapes do not match, a value is out of range, or the views are mixed.

    >>> student, teacher = torch.tensor([[1.5, 0.5, 0.3]]), torch.tensor([[2.0, 1.0, 0.1]])
    >>> hyper = {"temperature": 1.0, "t_squared": True, "factor": 1.0}
    >>> [selective_kl(student, teacher, torch.tensor([0]), form=form, **hyper) for form in ("code", "clean")]
    [tensor([3.1847]), tensor([0.0525])]

    Source: Gou et al., "Channel-Correlation-Based Selective Knowledge Distillation", IEEE TCDS 2023, and its released code; the
    clean form is reconstructed from the abstract.
    """
    choose(form, ("code", "clean"), "form", where="selective_kl")
    positive(factor, "factor", where="selective_kl")
    refuse_mixed(partner_labels, "selective_kl")
    target = as_target(teacher)
    log_q, log_p = log_pair(student, target, temperature, "selective_kl")
    check_labels(student, labels, None, "selective_kl")
    weight = factor * (1 + (likeliest(target) == labels).to(log_q.dtype))
    if form == "clean":
        return scaled(weight * kl(log_p, log_q), temperature, t_squared)
    each = weight.unsqueeze(-1)
    value = weight * weighted_sum(log_p.exp(), each.log() + log_p - each * log_q)
    return scaled(value, temperature, t_squared)


@claims(scope="batch", zero_at_teacher=False, why_not="it looks at no teacher")
def intra_class_variance(
    student: Tensor, labels: Tensor, partner_labels: Tensor | None = None, *, form: Literal["code", "class"]
) -> Tensor:
    r"""Intra-class variance (ICV), in both readings of it.

    "class" (reconstructed), as it is named: sum_k ||var_n f_n||_2 over the samples n of class k, one unbiased variance a feature; a class of fewer
    than two samples gives nothing. "code", as it was released: sum_k ||(var_d f_n,d)_n||_2, the unbiased variance over the features
    of each one sample, which penalises uneven vectors and grows with the batch. Both are sums over classes.

    Args:
        student: Features of a batch, shape [N, d], d at least 2 for "code".
        labels: Classes, or `IGNORE_LABEL`, which is left out, integer, shape [N].
        partner_labels: Must be absent: a mixed view has two classes.
        form: "code" or "class".

    Returns:
        A scalar, at least 0.

    Raises:
        ConfigError: if shapes do not match, or the views are mixed.

    >>> features = torch.tensor([[1.0, 2, 3], [2, 2, 2], [0, 1, 5], [3, 1, 2]])
    >>> [intra_class_variance(features, torch.tensor([0, 0, 1, 1]), form=form) for form in ("code", "class")]
    [tensor(8.0711), tensor(7.0711)]

    Source: Wang, Rhodes and Feng, "Class Specialized Knowledge Distillation", ACCV 2022, and its released code.
    """
    choose(form, ("code", "class"), "form", where="intra_class_variance")
    features, same = _by_class(student, labels, partner_labels, "intra_class_variance")
    counts = same.sum(1)
    # The first sample of each class stands for it: no wait for the device to know which classes there are.
    first = same.cumsum(1).diagonal().eq(1) & (counts > 0)
    alike = same.to(features.dtype)
    if form == "code":
        if features.shape[1] < 2:
            wish, got = "at least 2 features", f"shape {list(student.shape)}"
            raise ConfigError(expected("student", wish, got, where="intra_class_variance"))
        squares = product(alike, features.var(1).square().unsqueeze(1)).squeeze(1)
    else:
        size = counts.clamp_min(1).to(features.dtype).unsqueeze(1)
        apart = features - product(alike, features) / size
        squares = (product(alike, apart.square()) / (size - 1).clamp_min(1)).square().sum(1)
        first = first & (counts > 1)
    there = first & (squares > 0)  # the root has no gradient at 0
    return squares.masked_fill(~there, 1).sqrt().masked_fill(~there, 0).sum()


@claims(scope="batch", zero_at_teacher=False, why_not="it looks at no teacher")
def orthogonal_projection(student: Tensor, labels: Tensor, partner_labels: Tensor | None = None) -> Tensor:
    r"""Orthogonal projection loss (OPL): features of one class together, those of different classes apart.

    (1 - s) + d / 2, with s the mean cosine of pairs of one class, and d that of pairs of two; sums are divided by count + 1e-6.

    Args:
        student: Features of a batch, shape [N, d].
        labels: Classes, or `IGNORE_LABEL`, which is left out, integer, shape [N].
        partner_labels: Must be absent: a mixed view has two classes.

    Returns:
        A scalar, -0.5 to 2.5.

    Raises:
        ConfigError: if shapes do not match, or the views are mixed.

    >>> features = torch.tensor([[1.0, 2, 3], [2, 2, 2], [0, 1, 5], [3, 1, 2]])
    >>> orthogonal_projection(features, torch.tensor([0, 0, 1, 1]))
    tensor(0.6591)

    Source: Ranasinghe et al., "Orthogonal Projection Loss", ICCV 2021 (arXiv 2103.14021), without the absolute value, as the released
    code of CSKD has it.
    """
    features, same = _by_class(student, labels, partner_labels, "orthogonal_projection")
    directions = unit(features, 1)
    cosines = product(directions, directions.mT)
    known = same.diagonal()
    other = ~same & known.unsqueeze(0) & known.unsqueeze(1)
    same = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    means = [cosines.masked_fill(~pairs, 0).sum() / (pairs.sum().to(cosines.dtype) + 1e-6) for pairs in (same, other)]
    return 1 - means[0] + means[1] / 2


def _by_class(student: Tensor, labels: Tensor, partner_labels: Tensor | None, loss: str) -> tuple[Tensor, Tensor]:
    """Return the features in the computing dtype, and which pairs of them are known to be of one class, bool [N, N]."""
    refuse_mixed(partner_labels, loss)
    if student.ndim != 2 or not student.is_floating_point():
        got = f"{student.dtype} of shape {list(student.shape)}"
        raise ConfigError(expected("student", "floating features [N, d]", got, where=loss))
    if labels.shape != student.shape[:1] or labels.is_floating_point():
        got = f"{labels.dtype} of shape {list(labels.shape)}"
        raise ConfigError(expected("labels", f"whole numbers of shape {list(student.shape[:1])}", got, where=loss))
    known = labels != IGNORE_LABEL
    same = (labels.unsqueeze(0) == labels.unsqueeze(1)) & known.unsqueeze(0) & known.unsqueeze(1)
    return student.to(computing_dtype(student.dtype)), same
