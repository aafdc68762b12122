"""Correlation in place of equality: over the classes of a position, and over the rows of a batch, class by class."""

from __future__ import annotations

import torch
from torch import Tensor

from bookkd.core.errors import ConfigError, expected
from bookkd.losses._pair import probabilities, scaled
from bookkd.losses.claims import claims
from bookkd.losses.targets import Target

__all__ = ["correlation_inter", "correlation_intra"]

_EPS = 1e-8  # of the released code; a vector without spread correlates with nothing


@claims(t_squared=True)
def correlation_inter(student: Tensor, teacher: Target | Tensor, *, temperature: float, t_squared: bool) -> Tensor:
    r"""One minus the correlation of student and teacher over the classes of each position.

    T^2 (1 - rho(q, p)), with rho(a, b) = <a - mean a, b - mean b> / (||a - mean a|| ||b - mean b|| + 1e-8): any positive affine
    change of the teacher's probabilities is free.

    Args:
        student: Logits, shape [..., K].
        teacher: Dense target of the same positions and classes.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2.

    Returns:
        One value per position, shape [...], 0 to 2 (times T^2); 1 where a side is uniform. At the teacher it is 0 up to 1e-8
        over the squared norm.

    Raises:
        FidelityError: if the target is sparse.
        ConfigError: if shapes do not match or the temperature is out of range.

    >>> student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[2.0, 3.5, -1.0]])
    >>> correlation_inter(student, teacher, temperature=1.0, t_squared=True)
    tensor([0.0004])

    Source: Huang et al. 2022, DIST (arXiv 2205.10536), inter-class relation, and its released code.
    """
    q, p = probabilities(student, teacher, temperature, "correlation_inter")
    return scaled(1 - _correlation(q, p, -1), temperature, t_squared)


@claims(scope="batch", t_squared=True)
def correlation_intra(student: Tensor, teacher: Target | Tensor, *, temperature: float, t_squared: bool) -> Tensor:
    r"""One minus the mean correlation of student and teacher over the rows of a batch, class by class.

    T^2 (1 - mean_k rho(q_:k, p_:k)), rho as in `correlation_inter`: which samples are more of a class than others.

    Args:
        student: Logits, shape [rows, K]; with two rows every correlation is 1 or -1 and has no gradient.
        teacher: Dense target of the same rows and classes.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2.

    Returns:
        A scalar, 0 to 2 (times T^2). A class whose probabilities hardly differ over the batch (norms of less than 1e-4 on both
        sides) counts as uncorrelated, because of the 1e-8.

    Raises:
        FidelityError: if the target is sparse.
        ConfigError: if there are fewer than two rows, shapes do not match, or the temperature is out of range.

    >>> student = torch.tensor([[1.0, 2.0, 0.5], [0.2, -0.3, 1.5], [1.2, 0.1, -0.7]])
    >>> teacher = torch.tensor([[2.0, 3.5, -1.0], [0.0, 0.5, 2.5], [2.2, 0.4, 0.3]])
    >>> correlation_intra(student, teacher, temperature=1.0, t_squared=True)
    tensor(0.0119)

    Source: Huang et al. 2022, DIST (arXiv 2205.10536), intra-class relation, and its released code.
    """
    if student.ndim != 2 or len(student) < 2:
        do = "One row has nothing to correlate with: use larger batches."
        got, where = f"shape {list(student.shape)}", "correlation_intra"
        raise ConfigError(expected("student", "[rows, classes] of at least two rows", got, where=where, do=do))
    q, p = probabilities(student, teacher, temperature, "correlation_intra")
    return scaled(1 - _correlation(q, p, 0).mean(), temperature, t_squared)


def _correlation(a: Tensor, b: Tensor, axis: int) -> Tensor:
    a, b = a - a.mean(axis, keepdim=True), b - b.mean(axis, keepdim=True)
    # vector_norm has gradient 0 where the norm is 0; the square root of a sum of squares has NaN.
    norms: Tensor = torch.linalg.vector_norm(a, dim=axis) * torch.linalg.vector_norm(b, dim=axis)
    return (a * b).sum(axis) / (norms + _EPS)
