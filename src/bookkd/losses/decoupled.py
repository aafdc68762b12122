"""Decoupled distillation: how sure of the true class, and how the rest is divided, as two terms with weights of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from bookkd.core.check import finite
from bookkd.core.fields import IGNORE_LABEL
from bookkd.losses._pair import dense_only, kl, log_pair, scaled, weighted_sum
from bookkd.losses.claims import claims
from bookkd.losses.labels import check_labels, refuse_mixed
from bookkd.losses.targets import Target

__all__ = ["decoupled_kl"]

_NAME = "decoupled_kl"


@claims(t_squared=True)
def decoupled_kl(
    student: Tensor,
    teacher: Target | Tensor,
    labels: Tensor,
    partner_labels: Tensor | None = None,
    *,
    alpha: float,
    beta: float,
    temperature: float,
    t_squared: bool,
) -> Tensor:
    r"""Weighted sum of the divergence in the true class and the divergence among all others.

    T^2 (alpha TCKD + beta NCKD), with TCKD = KL((p_y, 1 - p_y) || (q_y, 1 - q_y)) and NCKD = KL(p^ || q^), where p^ and q^ are
    p and q over the classes other than y, brought to sum 1. KL(p || q) = TCKD + (1 - p_y) NCKD: where the teacher is sure,
    plain distillation all but hides the second term.

    Args:
        student: Logits, shape [..., K].
        teacher: Dense target of the same positions and classes.
        labels: Classes 0 to K - 1, or `IGNORE_LABEL`, integer, shape [...].
        partner_labels: Must be absent: a mixed view has two true classes.
        alpha: Weight of TCKD.
        beta: Weight of NCKD, which is 0 with two classes.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2.

    Returns:
        One value per position, shape [...]; 0 where the label is hidden.

    Raises:
        FidelityError: if the target is sparse: the second term lives in the tail.
        DataError: if a label is no class; the check costs one wait for the device.
        ConfigError: if shapes do not match, a value is out of range, or the views are mixed.

    >>> student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[2.0, 3.5, -1.0]])
    >>> decoupled_kl(student, teacher, torch.tensor([1]), alpha=1.0, beta=8.0, temperature=4.0, t_squared=True)
    tensor([6.0606])

    Source: Zhao et al. 2022 (arXiv 2203.08679), section 3. The released code subtracts 1000 from the true class's logit
    and takes the logarithm of a sum, which fail where logits are large; here both stay in log-probabilities.
    """
    finite(alpha, "alpha", where=_NAME)
    finite(beta, "beta", where=_NAME)
    refuse_mixed(partner_labels, _NAME)
    target = dense_only(teacher, _NAME, "how the other classes share their mass is unknown")
    log_q, log_p = log_pair(student, target, temperature, _NAME)
    check_labels(student, labels, None, _NAME)
    places = labels.long().clamp_min(0).unsqueeze(-1)
    value = alpha * _true_class(log_q, log_p, places) + beta * _other_classes(log_q, log_p, places)
    return scaled(value, temperature, t_squared).masked_fill(labels == IGNORE_LABEL, 0)


def _true_class(log_q: Tensor, log_p: Tensor, places: Tensor) -> Tensor:
    return kl(_in_two(log_p, places), _in_two(log_q, places))


def _in_two(log_p: Tensor, places: Tensor) -> Tensor:
    """Return log (p_y, 1 - p_y); 1 - p_y is summed over the other classes, since the difference cancels."""
    rest = _without(log_p, places).logsumexp(-1, keepdim=True)
    return torch.cat([log_p.gather(-1, places), rest], -1)


def _other_classes(log_q: Tensor, log_p: Tensor, places: Tensor) -> Tensor:
    log_p, log_q = (_without(given, places).log_softmax(-1) for given in (log_p, log_q))
    # Where the teacher rules out every other class, the true one would get the whole weight.
    return weighted_sum(log_p.exp().scatter(-1, places, 0), log_p - log_q)


def _without(log_p: Tensor, places: Tensor) -> Tensor:
    """Return `log_p` with the true class set very low; -inf would make the gradient NaN where nothing else is left."""
    return log_p.scatter(-1, places, torch.finfo(log_p.dtype).min / 4)
