"""What a teacher's answers say of the views that they were given: whether they make a good book, and which to trust."""

from __future__ import annotations

from torch import Tensor

from bookkd.core.errors import ConfigError, FidelityError, expected
from bookkd.losses._pair import dense_only, kl, log_pair, scaled
from bookkd.losses.claims import claims
from bookkd.losses.reductions import unit
from bookkd.losses.targets import DenseTarget, Target, computing_dtype

__all__ = ["agreed_kl", "agreement_weight", "teacher_deviation"]


def teacher_deviation(probabilities: Tensor) -> Tensor:
    r"""Standard deviation of the teacher's mean probabilities (T. stddev): the lower, the better the views are to distil with.

    mean_c std_g(u_gc), unbiased, with u_g the mean of the probabilities of group g. It depends on the classes in a group, and on how
    many rows one has (about as 1 / sqrt(rows)): compare at one group size, of views of the same samples.

    Args:
        probabilities: softmax of the teacher at T = 1, shape [groups, rows, classes]; or the groups' means, [groups, classes]. At
            least two groups; 640 rows each in the published score.

    Returns:
        A scalar, at least 0.

    Raises:
        ConfigError: if there are fewer than two groups.

    >>> import torch
    >>> teacher_deviation(torch.tensor([[0.2, 0.5, 0.3], [0.25, 0.45, 0.3], [0.15, 0.5, 0.35]]))
    tensor(0.0359)

    Source: Wang, Lohit, Jones and Fu, "What Makes a 'Good' Data Augmentation in Knowledge Distillation", NeurIPS 2022 (arXiv
    2012.02909), and its released code.
    """
    if probabilities.ndim not in (2, 3) or len(probabilities) < 2 or not probabilities.is_floating_point():
        got = f"{probabilities.dtype} of shape {list(probabilities.shape)}"
        wish = "floating, [groups, rows, classes] or [groups, classes], at least 2 groups"
        raise ConfigError(expected("probabilities", wish, got, where="teacher_deviation"))
    wide = probabilities.to(computing_dtype(probabilities.dtype))
    means = wide.mean(1) if wide.ndim == 3 else wide
    return means.std(0).mean()


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
