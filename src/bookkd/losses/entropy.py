"""How spread out a distribution is: of the student as a loss, of the teacher as a figure to log beside it."""

from __future__ import annotations

from torch import Tensor

from bookkd.core.check import positive
from bookkd.losses._pair import log_pair, weighted_sum
from bookkd.losses.claims import claims
from bookkd.losses.targets import Target, computing_dtype

__all__ = ["student_entropy", "teacher_entropy"]


@claims(zero_at_teacher=False, why_not="it looks at no teacher")
def student_entropy(student: Tensor, *, temperature: float) -> Tensor:
    r"""Entropy of the softened student, in nats.

    H(q) = -sum_k q_k log q_k, with q = softmax(student / T); with a negative weight it is the penalty of confident
    output distributions, with weight 0 a figure in the log.

    Args:
        student: Logits, shape [..., K].
        temperature: T, above 0.

    Returns:
        One value per position, shape [...], 0 to log K.

    Raises:
        ConfigError: if the temperature is out of range.

    >>> import torch
    >>> student_entropy(torch.tensor([[1.0, 2.0, 0.5]]), temperature=4.0)
    tensor([1.0861])

    Source: Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions" (arXiv 1701.06548).
    """
    positive(temperature, "temperature", where="student_entropy")
    log_q = (student.to(computing_dtype(student.dtype)) / temperature).log_softmax(-1)
    return -weighted_sum(log_q.exp(), log_q)


@claims(sparse=True, zero_at_teacher=False, why_not="it does not depend on the student")
def teacher_entropy(student: Tensor, teacher: Target | Tensor, *, temperature: float) -> Tensor:
    r"""Entropy of the softened teacher, in nats: constant in the student, for logs alone (weight 0).

    H(p) = -sum_k p_k log p_k at temperature T; of a sparse target over the kept classes and one tail bucket.

    Args:
        student: Logits, shape [..., K]; only its shape counts.
        teacher: Target of the same positions and classes.
        temperature: T, above 0.

    Returns:
        One value per position, shape [...], without gradient.

    Raises:
        FidelityError: if a sparse target does not promise T.
        ConfigError: if shapes do not match or the temperature is out of range.

    >>> import torch
    >>> teacher_entropy(torch.zeros(1, 3), torch.tensor([[2.0, 3.5, -1.0]]), temperature=4.0)
    tensor([1.0087])
    """
    _, log_p = log_pair(student.detach(), teacher, temperature, "teacher_entropy")
    return -weighted_sum(log_p.exp(), log_p)
