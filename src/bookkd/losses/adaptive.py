"""Labels smoothed by what an earlier checkpoint says, each as strongly as the student is sure of itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bookkd.core.check import between
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.losses.claims import claims
from bookkd.losses.entropy import student_entropy
from bookkd.losses.labels import cross_entropy
from bookkd.losses.soft import soft_cross_entropy
from bookkd.losses.targets import Target

__all__ = ["adaptive_smoothing", "smoothing_strength"]


@claims(zero_at_teacher=False, why_not="it looks at no teacher")
def smoothing_strength(student: Tensor, *, alpha: float | Tensor | None, largest: float) -> Tensor:
    r"""How much of each label is given away: the surer the student, the more.

    a = min(1 - H(p) / log K, largest), with p = softmax(student) over all K classes, masked ones counted too; or a constant. For logs (weight 0), and
    inside of `adaptive_smoothing`.

    Args:
        student: Logits, shape [..., K].
        alpha: The constant, 0 to 1, or a tensor of the values themselves, shape [...]; None for the strength above.
        largest: Most that is given away, 0 to 1; 1 sets no bound.

    Returns:
        One value per position, shape [...], 0 to 1, without gradient.

    Raises:
        ConfigError: if a number is out of range, a tensor of another shape, or there are fewer than two classes.

    >>> p = torch.tensor([[0.7, 0.2, 0.1], [0.98, 0.01, 0.01]])
    >>> smoothing_strength(p.log(), alpha=None, largest=1.0)
    tensor([0.2702, 0.8981])

    Source: Lee, Cheung, Zhang, EMNLP 2022 (arXiv 2210.13459); that it comes from the entropy is certain, the formula reconstructed.
    """
    where = "smoothing_strength"
    between(largest, 0, 1, "largest", where=where)
    if student.shape[-1] < 2:
        raise ConfigError(expected("student", "of at least two classes", f"shape {list(student.shape)}", where=where))
    if isinstance(alpha, Tensor):
        if alpha.shape != student.shape[:-1] or not bool(((alpha >= 0) & (alpha <= 1)).all()):
            wish = f"numbers from 0 to 1 of shape {list(student.shape[:-1])}"
            got = f"shape {list(alpha.shape)}" if alpha.shape != student.shape[:-1] else "others"
            raise ConfigError(expected("alpha", wish, got, where=where))
        return alpha.detach()
    if alpha is not None:
        constant = between(alpha, 0, 1, "alpha", where=where)
        return student.new_full(student.shape[:-1], constant, dtype=torch.promote_types(student.dtype, torch.float32))
    entropy = student_entropy(student.detach(), temperature=1.0)
    return (1 - entropy / math.log(student.shape[-1])).clamp(0, largest)


@claims(
    sparse=True, linear=True, zero_at_teacher=False, why_not="the label pulls on, and the teacher's entropy remains"
)
def adaptive_smoothing(
    student: Tensor,
    teacher: Target | Tensor,
    labels: Tensor,
    partner_labels: Tensor | None = None,
    ratio: Tensor | None = None,
    *,
    alpha: float | Tensor | None,
    largest: float,
) -> Tensor:
    r"""Cross-entropy with labels, of which a share of each one's own is given to the teacher's distribution.

    (1 - a) CE(y, p) + a CE(phi, p), with p = softmax(student), phi = softmax(teacher) and a from `smoothing_strength`, taken as
    constant: the gradient is p - (1 - a) onehot(y) - a phi.

    Args:
        student: Logits, shape [..., K].
        teacher: What an earlier checkpoint of the student says; a sparse one is summed over kept classes and tail bucket.
        labels: Classes 0 to K - 1, or `IGNORE_LABEL`, integer, shape [...].
        partner_labels: Of mixed views, as in `cross_entropy`.
        ratio: Of mixed views, as in `cross_entropy`.
        alpha: Constant share, 0 to 1, or a tensor of shares, shape [...]; None for each position's own.
        largest: Most that is given away, 0 to 1.

    Returns:
        One value per position, shape [...]; 0 where the label is hidden.

    Raises:
        DataError: if a label is no class.
        FidelityError: if a sparse or sampled target does not promise temperature 1.
        ConfigError: if shapes do not match or a number is out of range.

    >>> p, phi = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.5, 0.3, 0.2]])
    >>> adaptive_smoothing(p.log(), phi.log(), torch.tensor([0]), alpha=None, largest=1.0)
    tensor([0.5633])

    Source: as `smoothing_strength`; reconstructed from its abstract.
    """
    share = smoothing_strength(student, alpha=alpha, largest=largest)
    hard = cross_entropy(student, labels, partner_labels, ratio, label_smoothing=0.0)
    soft = soft_cross_entropy(student, teacher, temperature=1.0, t_squared=False)
    hidden = labels == IGNORE_LABEL
    if partner_labels is not None:
        hidden = hidden | (partner_labels == IGNORE_LABEL)
    return ((1 - share) * hard + share * soft).masked_fill(hidden, 0)
