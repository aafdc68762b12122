"""The step that all divergences share: logits and a target become two matching rows of log-probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bookkd.core.check import positive
from bookkd.core.errors import ConfigError, FidelityError, expected
from bookkd.losses._picked import log_probabilities_of, picked
from bookkd.losses.drawn import ClassTarget, SampledTarget
from bookkd.losses.targets import FullTarget, SparseTarget, Target, as_target, computing_dtype

__all__ = [
    "check_student", "dense_only", "drawn_pair", "kl", "log_pair", "mixture", "probabilities", "scaled", "weighted_sum",
]  # fmt: skip


def check_student(student: Tensor, target: Target, loss: str) -> None:
    """Refuse a student whose positions or classes are not those of the target.

    Args:
        student: Logits, shape [..., classes].
        target: What the teacher says.
        loss: Name of the loss, for the error.

    Raises:
        ConfigError: naming both shapes.
    """
    wanted = [*target.positions, target.n_classes]
    if list(student.shape) != wanted:
        raise ConfigError(
            expected(
                "student",
                f"of the teacher's shape {wanted}",
                f"shape {list(student.shape)}",
                where=loss,
                do="Give student and teacher the same classes, on the last axis.",
            )
        )
    if not student.is_floating_point():
        raise ConfigError(expected("student", "floating logits", str(student.dtype), where=loss))


def dense_only(teacher: Target | Tensor, loss: str, reason: str) -> FullTarget:
    """Return a target that knows every class, or refuse a sparse one.

    Raises:
        FidelityError: with the reason why the loss cannot honour a sparse target.
    """
    target = as_target(teacher)
    if isinstance(target, SampledTarget | ClassTarget):
        raise target.refuse(loss)
    if isinstance(target, SparseTarget):
        raise FidelityError(
            expected(
                "teacher",
                "dense logits",
                f"the {target.k} largest of {target.n_classes}",
                where=f"{loss}: {reason}",
                do="Use soft_target_kl, or make the book with the codec dense or int8.",
            )
        )
    return target


def log_pair(student: Tensor, teacher: Target | Tensor, temperature: float, loss: str) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of student and teacher over the same outcomes at one temperature.

    For a dense target the outcomes are the classes. For a sparse one they are the k kept classes and, last, "any
    other class" (the tail bucket); with k = classes there is no such bucket. Merging outcomes can only lower a
    divergence, and keeps it 0 exactly where the merged distributions agree.

    Args:
        student: Logits, shape [..., classes].
        teacher: Target of the same positions and classes.
        temperature: Divides both sides' logits; above 0.
        loss: Name of the loss, for errors.

    Returns:
        Two tensors of shape [..., outcomes] in the computing dtype; the teacher's carries no gradient.

    Raises:
        FidelityError: for draws and for classes alone, or if a sparse target does not promise the temperature.
    """
    positive(temperature, "temperature", where=loss)
    target = as_target(teacher)
    if isinstance(target, SampledTarget | ClassTarget):
        raise target.refuse(loss)
    check_student(student, target, loss)
    dtype = computing_dtype(student.dtype, target.dtype)
    if not isinstance(target, SparseTarget):
        logits = student.to(dtype) / temperature
        return logits.log_softmax(-1), target.log_probabilities(temperature).to(dtype)
    log_t = target.kept_log_probabilities(temperature).to(dtype)
    if target.k == target.n_classes:
        kept = student.gather(-1, target.indices).to(dtype) / temperature
        return kept.log_softmax(-1), log_t
    # 1 - P cancels where the student is sure; the log-sum-exp of the others does not.
    outcomes = picked(student, target.indices, temperature, dtype, apart=True)
    log_tail = target.log_tail(temperature).to(dtype).unsqueeze(-1)
    return outcomes.log_softmax(-1), torch.cat([log_t, log_tail], -1)


def drawn_pair(student: Tensor, target: SampledTarget, temperature: float, loss: str) -> tuple[Tensor, Tensor]:
    """Return the student's log-probabilities of the classes that were drawn, and their weights, both [..., k].

    Raises:
        FidelityError: at another temperature than that of the draws.
    """
    positive(temperature, "temperature", where=loss)
    target.check_temperature(temperature, loss)
    check_student(student, target, loss)
    dtype = computing_dtype(student.dtype, target.dtype)
    log_q = log_probabilities_of(student, target.classes, temperature, dtype)
    return log_q, target.weights.detach().to(dtype)


def probabilities(
    student: Tensor,
    teacher: Target | Tensor,
    temperature: float,
    loss: str,
    reason: str = "the probabilities of the classes left out are unknown",
) -> tuple[Tensor, Tensor]:
    """Return the probabilities of student and teacher over all classes; arguments as `log_pair` and `dense_only`."""
    log_q, log_p = log_pair(student, dense_only(teacher, loss, reason), temperature, loss)
    return log_q.exp(), log_p.exp()


def weighted_sum(weight: Tensor, value: Tensor) -> Tensor:
    """Return sum(weight * value) over the last axis, with 0 times infinity taken as 0.

    The value is masked before the product, since a mask behind it would still send NaN backwards.
    """
    return (weight * value.masked_fill(weight == 0, 0)).sum(-1)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Return KL(a || b) = sum a (log a - log b) over the last axis; 0 log 0 is 0."""
    return weighted_sum(log_a.exp(), log_a - log_b)


def mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """Return log(share a + (1 - share) b), for 0 < share < 1.

    Outcomes that both rule out stay at -inf; they pass through logaddexp as a finite number, whose gradient exists.
    """
    neither = (log_a == -math.inf) & (log_b == -math.inf)
    a = log_a.masked_fill(neither, 0) + math.log(share)
    b = log_b.masked_fill(neither, 0) + math.log1p(-share)
    return torch.logaddexp(a, b).masked_fill(neither, -math.inf)


def scaled(value: Tensor, temperature: float, t_squared: bool) -> Tensor:
    """Return T^2 value, or the value."""
    return value * temperature**2 if t_squared else value
