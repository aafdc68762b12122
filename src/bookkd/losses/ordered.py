"""Distributions over other classes than the student's, compared by size alone: first with first, second with second."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from bookkd.core.check import positive
from bookkd.core.errors import ConfigError, expected
from bookkd.losses._picked import picked
from bookkd.losses.claims import claims
from bookkd.losses.drawn import ClassTarget, SampledTarget
from bookkd.losses.targets import SparseTarget, Target, as_target, computing_dtype

__all__ = ["uld"]

_ULPS = 64


@claims(sparse=True, other_classes=True)
def uld(student: Tensor, teacher: Target | Tensor, *, temperature: float) -> Tensor:
    r"""Distance of two distributions whose classes have nothing to do with one another.

    sum_i |p_(i) - q_(i)|, with p = softmax(teacher / T) and q = softmax(student / T), each sorted from the largest on, the shorter one
    filled up with zeros: the least L1 distance over all ways to name the student's classes after the teacher's.
    On a sparse target of k classes the sum runs over the k largest of each side, and one bucket |m - n| of what both have beside:
    never more than the dense value, and less by at most 2 min(m, n), where the k are the teacher's largest. With classes that a
    book keeps whatever their size (`TopK(always=...)`), it is within 2 (m + n) of it.
    Differences of rounding count as none: their signs are no direction.

    Args:
        student: Logits, shape [..., K].
        teacher: Target of the same positions, of any number of classes.
        temperature: T, above 0.

    Returns:
        One value per position, 0 to 2, shape [...].

    Raises:
        FidelityError: for draws and classes alone, or if a sparse target does not promise T.
        ConfigError: if positions do not match or the temperature is out of range.

    >>> teacher = torch.tensor([[0.6, 0.3, 0.1]]).log()
    >>> uld(torch.tensor([[0.1, 0.2, 0.5, 0.2]]).log(), teacher, temperature=1.0)
    tensor([0.4000])

    Source: Boizard et al. 2024 (arXiv 2402.12030), equation of the universal logit distillation loss.
    """
    positive(temperature, "temperature", where="uld")
    target = as_target(teacher)
    if isinstance(target, SampledTarget | ClassTarget):
        raise target.refuse("uld")
    if not student.is_floating_point() or student.shape[:-1] != target.positions:
        got = f"{student.dtype} of shape {list(student.shape)}"
        wish = f"floating logits at the teacher's positions {list(target.positions)}"
        raise ConfigError(expected("student", wish, got, where="uld"))
    dtype = computing_dtype(student.dtype, target.dtype)
    if not isinstance(target, SparseTarget):
        p, q = target.log_probabilities(temperature).to(dtype).exp(), (student.to(dtype) / temperature).softmax(-1)
        return _apart(p.sort(-1, descending=True).values, q.sort(-1, descending=True).values)
    p = target.kept_log_probabilities(temperature).to(dtype).exp().sort(-1, descending=True).values
    rest = target.log_tail(temperature).to(dtype).exp()
    classes = student.detach().topk(min(target.k, student.shape[-1]), dim=-1).indices
    if classes.shape[-1] == student.shape[-1]:
        q = (student.gather(-1, classes).to(dtype) / temperature).softmax(-1)
    else:
        found = picked(student, classes, temperature, dtype, apart=True).softmax(-1)
        q, rest = found[..., :-1], rest - found[..., -1]
    value = _apart(p, q)
    return value + rest.abs().masked_fill(rest.detach().abs() <= _ULPS * torch.finfo(dtype).eps, 0)


def _apart(p: Tensor, q: Tensor) -> Tensor:
    """Return sum |p - q| over the last axis, of which the shorter ends in zeros; what is less than rounding is left out."""
    width = max(p.shape[-1], q.shape[-1])
    p, q = (pad(each, (0, width - each.shape[-1])) for each in (p, q))
    apart = (p - q).abs()
    rounding = _ULPS * torch.finfo(q.dtype).eps * torch.maximum(p, q.detach())
    return apart.masked_fill(apart.detach() <= rounding, 0).sum(-1)
