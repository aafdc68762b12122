"""Reverse, mixed and skewed divergences: not linear in the teacher, so never to be used with sampled targets."""

from __future__ import annotations

from torch import Tensor

from bookkd.core.check import between
from bookkd.core.errors import ConfigError, expected
from bookkd.core.schedules import may_be
from bookkd.losses._pair import kl, log_pair, mixture, scaled
from bookkd.losses.claims import claims
from bookkd.losses.targets import Target

__all__ = ["generalised_jsd", "reverse_kl", "skew_kl", "skew_reverse_kl"]


@claims(t_squared=True, sparse=True, full_support=True)
def reverse_kl(student: Tensor, teacher: Target | Tensor, *, temperature: float, t_squared: bool) -> Tensor:
    r"""Kullback-Leibler divergence of the teacher from the student: the student must not say what the teacher would not.

    T^2 KL(q || p) = T^2 sum_k q_k (log q_k - log p_k), with p = softmax(teacher / T) and q = softmax(student / T); on a
    sparse target over the kept classes and one tail bucket.

    Args:
        student: Logits, shape [..., K].
        teacher: Target of the same positions and classes. A class that it rules out (-inf) must be ruled out by the
            student too: the divergence is infinite there, by its definition, and has no gradient.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2.

    Returns:
        One value per position, shape [...].

    Raises:
        FidelityError: if a sparse target does not promise T.
        ConfigError: if shapes do not match or the temperature is out of range.

    >>> import torch
    >>> student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[2.0, 3.5, -1.0]])
    >>> reverse_kl(student, teacher, temperature=1.0, t_squared=True)
    tensor([0.2824])

    Source: Gu et al. 2024, MiniLLM (arXiv 2306.08543), per position on given text, without sampling from the student.
    """
    log_q, log_p = log_pair(student, teacher, temperature, "reverse_kl")
    return scaled(kl(log_q, log_p), temperature, t_squared)


@claims(t_squared=True, sparse=True, full_support=lambda hyper: may_be(hyper.get("beta", 0), 1))
def generalised_jsd(
    student: Tensor, teacher: Target | Tensor, *, beta: float, temperature: float, t_squared: bool
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence between teacher and student.

    JSD_b = b KL(p || m) + (1 - b) KL(q || m), with m = b p + (1 - b) q; b = 0 stands for KL(p || q) and b = 1 for
    KL(q || p), which are the limits of JSD_b / b and JSD_b / (1 - b): the plain limits are 0.

    Args:
        student: Logits, shape [..., K].
        teacher: Target of the same positions and classes; a sparse one gives the kept classes and one tail bucket.
        beta: Weight b of the teacher in the mixture, 0 to 1. DistiLLM's lambda is 1 - b.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2.

    Returns:
        One value per position, shape [...].

    Raises:
        FidelityError: if a sparse target does not promise T.
        ConfigError: if shapes do not match or a value is out of range.

    >>> import torch
    >>> student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[2.0, 3.5, -1.0]])
    >>> generalised_jsd(student, teacher, beta=0.5, temperature=1.0, t_squared=True)
    tensor([0.0420])

    Source: Agarwal et al. 2024, GKD (arXiv 2306.13649), equation 1.
    """
    between(beta, 0, 1, "beta", where="generalised_jsd")
    log_q, log_p = log_pair(student, teacher, temperature, "generalised_jsd")
    if beta == 0:
        value = kl(log_p, log_q)
    elif beta == 1:
        value = kl(log_q, log_p)
    else:
        log_m = mixture(log_p, log_q, beta)
        value = beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)
    return scaled(value, temperature, t_squared)


@claims(t_squared=True, sparse=True)
def skew_kl(student: Tensor, teacher: Target | Tensor, *, alpha: float, temperature: float, t_squared: bool) -> Tensor:
    r"""Kullback-Leibler divergence of a student that is helped by the teacher.

    T^2 KL(p || a p + (1 - a) q): bounded by T^2 log(1 / a), so that no single class can dominate.

    Args:
        student: Logits, shape [..., K].
        teacher: Target of the same positions and classes; a sparse one gives the kept classes and one tail bucket.
        alpha: Share a of the teacher in the mixture, 0 to below 1; 0 gives `soft_target_kl`.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2.

    Returns:
        One value per position, shape [...].

    Raises:
        FidelityError: if a sparse target does not promise T.
        ConfigError: if shapes do not match or a value is out of range.

    >>> import torch
    >>> student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[2.0, 3.5, -1.0]])
    >>> skew_kl(student, teacher, alpha=0.1, temperature=1.0, t_squared=True)
    tensor([0.1183])

    Source: Ko et al. 2024, DistiLLM (arXiv 2402.03898), whose code leaves out the teacher's entropy and so reports
    cross-entropies.
    """
    log_q, log_p = log_pair(student, teacher, temperature, "skew_kl")
    return scaled(_skew(log_p, log_q, alpha, "skew_kl"), temperature, t_squared)


@claims(t_squared=True, sparse=True, full_support=lambda hyper: may_be(hyper.get("alpha", 1), 0))
def skew_reverse_kl(
    student: Tensor, teacher: Target | Tensor, *, alpha: float, temperature: float, t_squared: bool
) -> Tensor:
    r"""Reverse divergence against a teacher that is softened by the student.

    T^2 KL(q || (1 - a) p + a q).

    Args:
        student: Logits, shape [..., K].
        teacher: Target of the same positions and classes; a sparse one gives the kept classes and one tail bucket.
        alpha: Share a of the student in the mixture, 0 to below 1; 0 gives `reverse_kl`.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2.

    Returns:
        One value per position, shape [...].

    Raises:
        FidelityError: if a sparse target does not promise T.
        ConfigError: if shapes do not match or a value is out of range.

    >>> import torch
    >>> student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[2.0, 3.5, -1.0]])
    >>> skew_reverse_kl(student, teacher, alpha=0.1, temperature=1.0, t_squared=True)
    tensor([0.1642])

    Source: Ko et al. 2024, DistiLLM (arXiv 2402.03898).
    """
    log_q, log_p = log_pair(student, teacher, temperature, "skew_reverse_kl")
    return scaled(_skew(log_q, log_p, alpha, "skew_reverse_kl"), temperature, t_squared)


def _skew(log_a: Tensor, log_b: Tensor, alpha: float, loss: str) -> Tensor:
    between(alpha, 0, 1, "alpha", where=loss)
    if alpha == 1:
        raise ConfigError(expected("alpha", "below 1, where the divergence is 0 for every student", alpha, where=loss))
    return kl(log_a, mixture(log_a, log_b, alpha) if alpha > 0 else log_b)
