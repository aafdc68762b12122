"""Cross-entropy with the true labels: the hard term."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bookkd.core.check import between
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.core.names import choose
from bookkd.losses._picked import log_probabilities_of
from bookkd.losses.claims import claims
from bookkd.losses.targets import computing_dtype

__all__ = ["LARGE", "check_labels", "check_mixed", "cross_entropy", "refuse_mixed", "share_of"]

LARGE = 2**24
"""Logits from which on a loss does without a tensor of their size: 64 MiB of float32."""


def check_labels(student: Tensor, labels: Tensor, partner_labels: Tensor | None, loss: str) -> None:
    """Refuse labels that do not fit the student's positions and classes; `loss` is its name, for the error.

    Raises:
        ConfigError: if shapes or dtypes do not fit.
        DataError: naming the first label that is no class.
    """
    n_classes = student.shape[-1]
    both = [labels] if partner_labels is None else [labels, partner_labels]
    for given in both:
        if given.shape != student.shape[:-1] or given.is_floating_point() or given.dtype == torch.bool:
            got = f"{given.dtype} of shape {list(given.shape)}"
            wanted = f"whole numbers of shape {list(student.shape[:-1])}"
            raise ConfigError(expected("labels", wanted, got, where=loss))
    stacked = torch.stack(both)
    wrong = (stacked >= n_classes) | ((stacked < 0) & (stacked != IGNORE_LABEL))
    # The only wait for the device: an index out of range would end the process there without a message.
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        value = int(stacked[tuple(place)])
        kind = "partner label" if place[0] else "label"
        raise DataError(
            expected(
                kind,
                f"0 to {n_classes - 1}, or {IGNORE_LABEL} where it is hidden",
                value,
                where=f"{loss}, position {place[1:]}",
                do="Check the labels and the number of classes of the network.",
            )
        )


def share_of(ratio: Tensor, labels: Tensor, dtype: torch.dtype, loss: str) -> Tensor:
    """Return the ratio of mixed views with the axes of the labels; `loss` is its name, for the error."""
    if list(ratio.shape) != list(labels.shape[: ratio.ndim]):
        got = f"shape {list(ratio.shape)}"
        raise ConfigError(expected("ratio", f"one for each sample of {list(labels.shape)}", got, where=loss))
    return ratio.to(dtype).reshape((*ratio.shape, *[1] * (labels.ndim - ratio.ndim)))


def check_mixed(partner_labels: Tensor | None, ratio: Tensor | None, loss: str) -> None:
    """Refuse one of the two entries of mixed views without the other; `loss` is its name, for the error."""
    if (partner_labels is None) != (ratio is None):
        raise ConfigError(expected("partner_labels", "given together with `ratio`", "only one of them", where=loss))


def refuse_mixed(partner_labels: Tensor | None, loss: str) -> None:
    """Refuse mixed views where a loss has to know the one true class; `loss` is its name, for the error."""
    if partner_labels is not None:
        do = "Make a book of views that are not mixed, or use another method."
        raise ConfigError(expected("views", "not mixed: each has one true class", "mixed views", where=loss, do=do))


@claims(zero_at_teacher=False, why_not="it looks at labels, not at a teacher")
def cross_entropy(
    student: Tensor,
    labels: Tensor,
    partner_labels: Tensor | None = None,
    ratio: Tensor | None = None,
    *,
    label_smoothing: float,
    smoothing_over: Literal["all", "others"] = "all",
) -> Tensor:
    r"""Cross-entropy of the student with the true labels.

    CE(y) = -(1 - e) log q_y - (e / K) sum_k log q_k, with q = softmax(student) and e the label smoothing; over the other
    classes alone -(1 - e) log q_y - (e / (K - 1)) sum_{k != y} log q_k;
    for a mixed view ratio CE(y) + (1 - ratio) CE(y'), with y' the partner's label.

    Args:
        student: Logits, shape [..., K].
        labels: Classes 0 to K - 1, or `IGNORE_LABEL`, integer, shape [...].
        partner_labels: Classes of the samples that the views were mixed with, as `labels`.
        ratio: Share of the sample itself in its mixed view, 0 to 1; shape [...] or its first axes.
        label_smoothing: Share e of the uniform distribution in the target, 0 to 1.
        smoothing_over: "all" classes, or the "others", so that the true one keeps 1 - e; the released code of teacher-free
            distillation and of Beta smoothing calls the second label smoothing.

    Returns:
        One value per position, shape [...]; 0 where the label, or the partner's, is hidden.

    Raises:
        DataError: if a label is no class; the check costs one wait for the device.
        ConfigError: if shapes do not match, only one of `partner_labels` and `ratio` is given, or an option is out of range.

    >>> cross_entropy(torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([1]), label_smoothing=0.0)
    tensor([0.4644])

    Source: Hinton et al. 2015 (arXiv 1503.02531), the hard term; Szegedy et al. 2016 (arXiv 1512.00567), section 7;
    Zhang et al. 2018 (arXiv 1710.09412) for mixed labels.
    """
    between(label_smoothing, 0, 1, "label_smoothing", where="cross_entropy")
    choose(smoothing_over, ("all", "others"), "smoothing_over", where="cross_entropy")
    check_mixed(partner_labels, ratio, "cross_entropy")
    check_labels(student, labels, partner_labels, "cross_entropy")
    if partner_labels is None and label_smoothing == 0 and student.numel() > LARGE:
        # One class of many: in one pass each way, without a tensor of the size of the logits in between.
        said = log_probabilities_of(
            student, labels.long().clamp_min(0).unsqueeze(-1), 1.0, computing_dtype(student.dtype)
        )
        return -said.squeeze(-1).masked_fill(labels == IGNORE_LABEL, 0)
    log_q = student.to(computing_dtype(student.dtype)).log_softmax(-1)

    def nll(classes: Tensor) -> Tensor:
        return -log_q.gather(-1, classes.long().clamp_min(0).unsqueeze(-1)).squeeze(-1)

    value, hidden = nll(labels), labels == IGNORE_LABEL
    if partner_labels is not None and ratio is not None:
        value = torch.lerp(nll(partner_labels), value, share_of(ratio, labels, value.dtype, "cross_entropy"))
        hidden = hidden | (partner_labels == IGNORE_LABEL)
    if label_smoothing > 0:
        # All classes less the true one; of mixed labels too, in which all is linear.
        others = (log_q.sum(-1) + value) / max(log_q.shape[-1] - 1, 1)
        rest = log_q.mean(-1) if smoothing_over == "all" else others
        value = (1 - label_smoothing) * value - label_smoothing * rest
    return value.masked_fill(hidden, 0)
