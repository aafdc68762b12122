"""Divergences on the k largest classes that forget the tail: biased, and here only to compare with results that used them."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bookkd.core.check import positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose
from bookkd.losses._pair import check_student, kl, scaled
from bookkd.losses._picked import log_probabilities_of
from bookkd.losses.claims import claims
from bookkd.losses.drawn import ClassTarget, SampledTarget
from bookkd.losses.targets import SparseTarget, Target, computing_dtype

__all__ = ["truncated_kl"]


@claims(
    t_squared=True,
    sparse=True,
    zero_at_teacher=False,
    why_not="the forgotten tail pulls the kept probabilities up to t / M, M being the kept mass of the teacher; "
    "only with both sides renormalised is it zero there, and then the tail is free",
)
def truncated_kl(
    student: Tensor,
    teacher: Target | Tensor,
    *,
    temperature: float,
    t_squared: bool,
    renormalise: Literal["none", "teacher", "both"],
) -> Tensor:
    r"""Divergence over the kept classes K alone: a biased stand-in for `soft_target_kl`, which has a tail bucket.

    With M and P the masses that teacher t and student q give to K:
    "none": sum_K t_i log(t_i / q_i), gradient M q - t, may be negative;
    "teacher": sum_K (t_i / M) log((t_i / M) / q_i), gradient q - t / M, the same minimiser: q = t / M, too high;
    "both": sum_K (t_i / M) log((t_i / M) / (q_i / P)), gradient 0 outside K, which leaves the student's tail free.

    Args:
        student: Logits, shape [..., K].
        teacher: Sparse target of the same positions and classes.
        temperature: T, above 0; "none" needs one that the target promises.
        t_squared: Whether to multiply by T^2.
        renormalise: Whose probabilities are divided by their sum over K.

    Returns:
        One value per position, shape [...].

    Raises:
        FidelityError: if "none" is asked at a temperature that is not promised, or for draws or classes alone.
        ConfigError: if the target is dense, shapes do not match or a value is out of range.

    >>> import torch
    >>> target = SparseTarget.from_logits(torch.tensor([[2.0, 3.5, -1.0]]), 2, (1.0,))
    >>> student = torch.tensor([[1.0, 2.0, 0.5]])
    >>> truncated_kl(student, target, temperature=1.0, t_squared=True, renormalise="none")
    tensor([0.1612])

    Source: Anshumann et al. 2025 (arXiv 2503.16870), equation 2 and appendix.
    """
    where = "truncated_kl"
    positive(temperature, "temperature", where=where)
    choose(renormalise, ("none", "teacher", "both"), "renormalise", where=where)
    if isinstance(teacher, SampledTarget | ClassTarget):
        raise teacher.refuse(where)
    if not isinstance(teacher, SparseTarget):
        do = "Use soft_target_kl for dense targets."
        raise ConfigError(expected("teacher", "a sparse target", type(teacher).__name__, where=where, do=do))
    check_student(student, teacher, where)
    if renormalise == "none":
        log_t = teacher.kept_log_probabilities(temperature)
    else:
        log_t = teacher.renormalised_log_probabilities(temperature)
    dtype = computing_dtype(student.dtype, log_t.dtype)
    if renormalise == "both":
        log_q = (student.gather(-1, teacher.indices).to(dtype) / temperature).log_softmax(-1)
    else:
        log_q = log_probabilities_of(student, teacher.indices, temperature, dtype)
    return scaled(kl(log_t.to(dtype), log_q), temperature, t_squared)
