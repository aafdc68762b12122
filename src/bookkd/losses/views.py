"""What a teacher's answers say of the views that they were given: which to trust."""

from __future__ import annotations

from torch import Tensor

from bookkd.core.errors import ConfigError, FidelityError, expected
from bookkd.losses._pair import dense_only, kl, log_pair, scaled
from bookkd.losses.claims import claims
from bookkd.losses.reductions import unit
from bookkd.losses.targets import DenseTarget, Target, computing_dtype

__all__ = ["agreed_kl", "agreement_weight"]


def agreement_weight(teacher: Tensor, other: Tensor) -> Tensor:
    r"""Weight of a view by how far the teacher says of it what it said of the plain one: 1 + cos of the raw logits.

    It is not the same after a constant is added to all logits, unlike softmax: centre the logits of both alike, or of neither.

    Args:
        teacher: Logits of one view, shape [..., classes].
        other: Logits of another view of the same samples.

    Returns:
        Shape [...], 0 to 2, without gradient.

    Raises:
        ConfigError: if the shapes differ.

    >>> import torch
    >>> agreement_weight(torch.tensor([2.0, 1.0, 0.1]), torch.tensor([1.0, 1.5, -0.5]))
    tensor(1.8239)

    Source: "What Role Does Data Augmentation Play in Knowledge Distillation?", ACCV 2022, and its released code (CCD).
    """
    if teacher.shape != other.shape:
        got = f"shape {list(other.shape)}"
        raise ConfigError(expected("other", f"of shape {list(teacher.shape)}", got, where="agreement_weight"))
    dtype = computing_dtype(teacher.dtype, other.dtype)
    a, b = unit(teacher.detach().to(dtype), -1), unit(other.detach().to(dtype), -1)
    return 1 + (a * b).sum(-1)


@claims(scope="batch", t_squared=True)
def agreed_kl(student: Tensor, teacher: Target | Tensor, *, temperature: float, t_squared: bool) -> Tensor:
    r"""KL of two views of each sample, the second weighted by how far the teacher says of both the same.

    T^2 / 2 (mean_n KL(p_n || q_n) + mean_n w_n KL(p'_n || q'_n)), with p and q the probabilities of teacher and student at T and w_n =
    1 + cos(v_n, v'_n) of the teacher's raw logits (`agreement_weight`).

    Args:
        student: Logits, shape [rows, K]; both views of a sample stand next to each other, first the one that is not weighted.
        teacher: Dense target of the same rows and classes, of one teacher; -inf for a class that is ruled out has no part in the cosine.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2.

    Returns:
        A scalar, at least 0.

    Raises:
        FidelityError: if the target is sparse, or several teachers combined, which have no raw logits.
        ConfigError: if shapes do not match, the rows are odd, or the temperature is out of range.

    >>> import torch
    >>> student = torch.tensor([[1.5, 0.5, 0.3], [0.8, 1.0, 0.2]])
    >>> teacher = torch.tensor([[2.0, 1.0, 0.1], [1.0, 1.5, -0.5]])
    >>> agreed_kl(student, teacher, temperature=4.0, t_squared=False)
    tensor(0.0081)

    Source: "What Role Does Data Augmentation Play in Knowledge Distillation?", ACCV 2022, and its released code (CCD).
    """
    target = dense_only(teacher, "agreed_kl", "the weight of a view is a cosine of all logits")
    if not isinstance(target, DenseTarget):
        do = "Read one book, or use soft_target_kl."
        wish = "the logits of one teacher"
        raise FidelityError(expected("teacher", wish, type(target).__name__, where="agreed_kl", do=do))
    log_q, log_p = log_pair(student, target, temperature, "agreed_kl")
    if student.ndim != 2 or len(student) == 0 or len(student) % 2:
        got = f"shape {list(student.shape)}"
        raise ConfigError(expected("student", "[rows, classes], two rows a sample", got, where="agreed_kl"))
    said = target.logits.masked_fill(target.logits.isinf(), 0)
    apart = scaled(kl(log_p, log_q), temperature, t_squared)
    return (apart[::2] + agreement_weight(said[::2], said[1::2]).to(apart.dtype) * apart[1::2]).mean() / 2
