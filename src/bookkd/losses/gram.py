"""Products of whole batches of probabilities: which classes go together, and which samples are alike."""

from __future__ import annotations

from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.losses._pair import probabilities
from bookkd.losses.claims import claims
from bookkd.losses.reductions import product
from bookkd.losses.targets import Target

__all__ = ["batch_gram", "class_gram"]


@claims(scope="batch")
def class_gram(student: Tensor, teacher: Target | Tensor, *, temperature: float, views: int) -> Tensor:
    r"""Squared difference of the products of classes over a batch.

    ||P' P - Q' Q||_F^2 / K, with P and Q the probabilities of teacher and student at temperature T, [rows, K]. It grows with
    the square of the rows, and does not change if the teacher's rows are permuted alone: it says nothing of single samples.

    Args:
        student: Logits, shape [rows, K].
        teacher: Dense target of the same rows and classes.
        temperature: T, above 0.
        views: Views of one sample that stand next to each other: each view is a batch of its own, and the mean over them is
            returned. 1 takes all rows as one batch.

    Returns:
        A scalar, at least 0.

    Raises:
        FidelityError: if the target is sparse.
        ConfigError: if shapes do not match, the rows are no multiple of `views`, or a value is out of range.

    >>> import torch
    >>> student = torch.tensor([[1.0, 2.0, 0.5], [0.2, -0.3, 1.5], [1.2, 0.1, -0.7]])
    >>> teacher = torch.tensor([[2.0, 3.5, -1.0], [0.0, 0.5, 2.5], [2.2, 0.4, 0.3]])
    >>> class_gram(student, teacher, temperature=1.0, views=1)
    tensor(0.0413)

    Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, class level, as in the released code.
    """
    q, p = _by_view(student, teacher, temperature, views, "class_gram")
    return _distance(q.mT, p.mT) / student.shape[-1]


@claims(scope="batch")
def batch_gram(student: Tensor, teacher: Target | Tensor, *, temperature: float, views: int) -> Tensor:
    r"""Squared difference of the products of samples within a batch.

    ||P P' - Q Q'||_F^2 / rows, with P and Q the probabilities of teacher and student at temperature T, [rows, K]. It
    does not change if the teacher's classes are permuted alone: it says nothing of single classes.

    Args:
        student: As in `class_gram`.
        teacher: As in `class_gram`.
        temperature: As in `class_gram`.
        views: As in `class_gram`.

    Returns:
        A scalar, at least 0.

    Raises:
        FidelityError: As `class_gram`.
        ConfigError: As `class_gram`.

    >>> import torch
    >>> student = torch.tensor([[1.0, 2.0, 0.5], [0.2, -0.3, 1.5], [1.2, 0.1, -0.7]])
    >>> teacher = torch.tensor([[2.0, 3.5, -1.0], [0.0, 0.5, 2.5], [2.2, 0.4, 0.3]])
    >>> batch_gram(student, teacher, temperature=1.0, views=1)
    tensor(0.0409)

    Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, batch level, as in the released code.
    """
    q, p = _by_view(student, teacher, temperature, views, "batch_gram")
    return _distance(q, p) / q.shape[1]


def _by_view(
    student: Tensor, teacher: Target | Tensor, temperature: float, views: int, loss: str
) -> tuple[Tensor, Tensor]:
    """Return the probabilities of student and teacher, each [views, rows of a view, classes]."""
    at_least(views, 1, "views", where=loss)
    q, p = probabilities(student, teacher, temperature, loss)
    if student.ndim != 2 or len(student) == 0 or len(student) % views:
        wish = f"[rows, classes], the rows a multiple of {views} views"
        raise ConfigError(expected("student", wish, f"shape {list(student.shape)}", where=loss))
    shape = (len(student) // views, views, -1)
    return q.reshape(shape).transpose(0, 1), p.reshape(shape).transpose(0, 1)


def _distance(q: Tensor, p: Tensor) -> Tensor:
    """Return ||p p' - q q'||_F^2, the mean over the first axis."""
    return (product(p, p.mT) - product(q, q.mT)).square().sum((-2, -1)).mean()
