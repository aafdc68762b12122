"""Matching the teacher's softened distribution in the forward direction: what the teacher finds likely, the student must."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bookkd.core.check import positive
from bookkd.core.errors import ConfigError, FidelityError, expected
from bookkd.core.names import choose
from bookkd.losses._pair import drawn_pair, kl, log_pair, probabilities, scaled, weighted_sum
from bookkd.losses.claims import claims
from bookkd.losses.drawn import SampledTarget
from bookkd.losses.targets import Target, computing_dtype

__all__ = ["probability_cross_entropy", "soft_cross_entropy", "soft_target_kl", "softened_mse"]


@claims(t_squared=True, sparse=True, linear=True)
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
    On a sampled target p is the share w of each class among the draws. The gradient is that of the dense loss on average,
    since the term with the student is linear in w. The value is not: its expectation is above the dense value by the
    entropy of the teacher less that of the draws, a constant of the records. It is 0 where the student repeats the draws,
    and a student that equals the teacher has zero gradient on average only.

    Args:
        student: Logits, shape [..., K].
        teacher: Target of the same positions and classes.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2, which keeps the size of the gradient as T grows.
        class_reduction: "sum" over classes, the definition; "mean" divides it by K, as Tf-KD, TAKD and DeiT do.

    Returns:
        One value per position, shape [...].

    Raises:
        FidelityError: if a sparse or sampled target does not promise T.
        ConfigError: if shapes do not match or a value is out of range.

    >>> import torch
    >>> student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[2.0, 3.5, -1.0]])
    >>> soft_target_kl(student, teacher, temperature=4.0, t_squared=True, class_reduction="sum")
    tensor([0.6370])

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2, as a divergence instead of a cross-entropy, which changes
    the value by the teacher's entropy and no gradient. Tail bucket: Anshumann et al. 2025 (arXiv 2503.16870).
    """
    choose(class_reduction, ("sum", "mean"), "class_reduction", where="soft_target_kl")
    if isinstance(teacher, SampledTarget):
        log_q, weights = drawn_pair(student, teacher, temperature, "soft_target_kl")
        value = scaled(weighted_sum(weights, weights.log() - log_q), temperature, t_squared)
    else:
        log_q, log_p = log_pair(student, teacher, temperature, "soft_target_kl")
        value = scaled(kl(log_p, log_q), temperature, t_squared)
    return value / student.shape[-1] if class_reduction == "mean" else value


@claims(
    t_squared=True, sparse=True, linear=True, zero_at_teacher=False, why_not="its value there is the teacher's entropy"
)
def soft_cross_entropy(student: Tensor, teacher: Target | Tensor, *, temperature: float, t_squared: bool) -> Tensor:
    r"""Cross-entropy of the student under the softened teacher.

    T^2 CE(p, q) = -T^2 sum_k p_k log q_k = T^2 (KL(p || q) + H(p)): the gradient of `soft_target_kl`, another value.

    Args:
        student: Logits, shape [..., K].
        teacher: Target of the same positions and classes; a sparse one gives a sum over kept classes and tail bucket, a
            sampled one a value and a gradient that are the dense ones on average.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2; TextBrewer and PaddleSlim do not.

    Returns:
        One value per position, shape [...].

    Raises:
        FidelityError: if a sparse or sampled target does not promise T.
        ConfigError: if shapes do not match or a value is out of range.

    >>> import torch
    >>> student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[2.0, 3.5, -1.0]])
    >>> soft_cross_entropy(student, teacher, temperature=4.0, t_squared=False)
    tensor([1.0485])

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2.
    """
    if isinstance(teacher, SampledTarget):
        log_q, weights = drawn_pair(student, teacher, temperature, "soft_cross_entropy")
        return scaled(-weighted_sum(weights, log_q), temperature, t_squared)
    log_q, log_p = log_pair(student, teacher, temperature, "soft_cross_entropy")
    return scaled(-weighted_sum(log_p.exp(), log_q), temperature, t_squared)


@claims(t_squared=True, zero_at_teacher=False, why_not="its value there is the entropy of the given probabilities")
def probability_cross_entropy(
    student: Tensor, teacher_probabilities: Target | Tensor, *, temperature: float, t_squared: bool
) -> Tensor:
    r"""Cross-entropy of the student under given probabilities, which are used as they are.

    -sum_k t_k log q_k, with q = softmax(student / T): linear in t, so that an unbiased estimate of t, such as the
    counts of sampled classes divided by their number, gives an unbiased value and gradient. No divergence has this.

    Args:
        student: Logits, shape [..., K].
        teacher_probabilities: t, at the temperature they are for, not negative, shape [..., K]; need not add to 1.
        temperature: T of the student's side, above 0; the one at which t was drawn.
        t_squared: Whether to multiply by T^2.

    Returns:
        One value per position, shape [...].

    Raises:
        FidelityError: if a target of logits is given.
        ConfigError: if shapes do not match or the temperature is out of range.

    >>> import torch
    >>> counts = torch.tensor([[2.0, 1.0, 0.0]])
    >>> probability_cross_entropy(torch.tensor([[1.0, 2.0, 0.5]]), counts / 3, temperature=1.0, t_squared=False)
    tensor([1.1310])

    Source: Anshumann et al. 2025 (arXiv 2503.16870), random-sampling distillation.
    """
    positive(temperature, "temperature", where="probability_cross_entropy")
    if not isinstance(teacher_probabilities, Tensor):
        got, do = type(teacher_probabilities).__name__, "Use soft_cross_entropy, which takes targets."
        message = expected("teacher_probabilities", "a tensor", got, where="probability_cross_entropy", do=do)
        raise FidelityError(message)
    if teacher_probabilities.shape != student.shape or not teacher_probabilities.is_floating_point():
        got = f"{teacher_probabilities.dtype} of shape {list(teacher_probabilities.shape)}"
        wanted = f"floating, of the student's shape {list(student.shape)}"
        raise ConfigError(expected("teacher_probabilities", wanted, got, where="probability_cross_entropy"))
    dtype = computing_dtype(student.dtype, teacher_probabilities.dtype)
    log_q = (student.to(dtype) / temperature).log_softmax(-1)
    return scaled(-weighted_sum(teacher_probabilities.detach().to(dtype), log_q), temperature, t_squared)


@claims(t_squared=True)
def softened_mse(
    student: Tensor,
    teacher: Target | Tensor,
    *,
    temperature: float,
    t_squared: bool,
    class_reduction: Literal["sum", "mean"] = "mean",
) -> Tensor:
    r"""Mean squared difference of the softened probabilities: the default of KD_Lib under the name of distillation.

    T^2 (1 / K) sum_k (q_k - p_k)^2, with p = softmax(teacher / T) and q = softmax(student / T). With many classes it
    is thousands of times smaller than `soft_target_kl`; it exists to compare with results that used it. The sum over classes is the
    softmax-level distillation of speech, ||p - q||^2.

    Args:
        student: Logits, shape [..., K].
        teacher: Dense target of the same positions and classes.
        temperature: T, above 0.
        t_squared: Whether to multiply by T^2, as KD_Lib does.
        class_reduction: "mean" over classes, or their "sum".

    Returns:
        One value per position, shape [...].

    Raises:
        FidelityError: if the target is sparse: the squares of the classes left out cannot be recovered from their sum.
        ConfigError: if shapes do not match or a value is out of range.

    >>> import torch
    >>> student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[2.0, 3.5, -1.0]])
    >>> softened_mse(student, teacher, temperature=4.0, t_squared=True)
    tensor([0.1217])
    """
    choose(class_reduction, ("sum", "mean"), "class_reduction", where="softened_mse")
    reason = "the squares of the classes left out are unknown"
    q, p = probabilities(student, teacher, temperature, "softened_mse", reason)
    squares = (q - p).square()
    return scaled(squares.sum(-1) if class_reduction == "sum" else squares.mean(-1), temperature, t_squared)
