"""Matching the teacher's softened distribution, forwards: the terms that are linear in the teacher."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bookkd.core.names import choose
from bookkd.losses._pair import kl, log_pair, scaled
from bookkd.losses.claims import claims
from bookkd.losses.targets import Target

__all__ = ["soft_target_kl"]


@claims(t_squared=True, sparse=True)
def soft_target_kl(
    student: Tensor,
    teacher: Target | Tensor,
    *,
    temperature: float,
    t_squared: bool,
    class_reduction: Literal["sum", "mean"],
) -> Tensor:
    r"""Kullback-Leibler divergence of the student from the teacher, both softened.

    T^2 KL(p || q) = T^2 sum_k p_k (log p_k - log q_k), with p = softmax(teacher / T) and q = softmax(student / T).
    On a sparse target the sum runs over the kept classes and one tail bucket, (1 - M) log((1 - M) / (1 - P)), where
    M and P are the masses that teacher and student give to the kept classes: never more than the dense value, and 0
    with zero gradient where the student equals the teacher.

    Args:
        student: Logits, shape [..., K].
        teacher: Target of the same positions and classes.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2, which keeps the size of the gradient as T grows.
        class_reduction: "sum" over classes, the definition; "mean" divides it by K, as Tf-KD, TAKD and DeiT do.

    Returns:
        One value per position, shape [...].

    Raises:
        FidelityError: if a sparse target does not promise T.
        ConfigError: if shapes do not match or a value is out of range.

    >>> import torch
    >>> student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[2.0, 3.5, -1.0]])
    >>> soft_target_kl(student, teacher, temperature=4.0, t_squared=True, class_reduction="sum")
    tensor([0.6370])

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2, as a divergence instead of a cross-entropy, which changes
    the value by the teacher's entropy and no gradient. Tail bucket: Anshumann et al. 2025 (arXiv 2503.16870).
    """
    choose(class_reduction, ("sum", "mean"), "class_reduction", where="soft_target_kl")
    log_q, log_p = log_pair(student, teacher, temperature, "soft_target_kl")
    value = scaled(kl(log_p, log_q), temperature, t_squared)
    return value / student.shape[-1] if class_reduction == "mean" else value
