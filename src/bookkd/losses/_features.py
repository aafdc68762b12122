"""The step that losses on features share: two tensors become a pair of one kind, in the computing dtype."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from bookkd.core.errors import ConfigError, FidelityError, expected
from bookkd.losses.drawn import ClassTarget, SampledTarget
from bookkd.losses.reductions import same_size
from bookkd.losses.targets import DenseTarget, Target, computing_dtype

__all__ = ["feature_pair", "per_sample", "squared", "total"]

Alike = Literal["shape", "positions", "rows", "first rows"]


def feature_pair(
    student: Tensor,
    teacher: Target | Tensor,
    loss: str,
    alike: Alike = "shape",
    *,
    mutual: bool = False,
    laid: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the features of both sides in the computing dtype, the teacher's without gradient.

    Args:
        student: Features, shape [batch, ...].
        teacher: Likewise; a `DenseTarget` is taken for its tensor.
        loss: Its name, for errors.
        alike: What has to agree: the whole "shape"; the "positions", so that channels may differ; the "rows" of the batch; or the
            "first rows", behind which the teacher may have others. Maps of other heights and widths are averaged to the smaller,
            except where rows alone matter.
        mutual: Whether the second side keeps its gradient.
        laid: Whether maps of one shape lie in memory as the student's.

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the shapes do not fit.
    """
    if isinstance(teacher, DenseTarget):
        teacher = teacher.logits
    if isinstance(teacher, SampledTarget | ClassTarget):
        raise teacher.refuse(loss)
    if not isinstance(teacher, Tensor):
        do = "Make the book with the field features/LAYER and a codec that keeps every value."
        raise FidelityError(expected("teacher", "a tensor of features", type(teacher).__name__, where=loss, do=do))
    for name, given in (("student", student), ("teacher", teacher)):
        if not given.is_floating_point() or given.ndim < 2:
            got = f"{given.dtype} of shape {list(given.shape)}"
            raise ConfigError(expected(name, "floating features [batch, ...]", got, where=loss))
    if student.device != teacher.device:
        wish, do = f"on the student's device {student.device}", "Move one of them."
        raise ConfigError(expected("teacher", wish, str(teacher.device), where=loss, do=do))
    dtype = computing_dtype(student.dtype, teacher.dtype)
    s, t = student.to(dtype), teacher.to(dtype)
    t = t if mutual else t.detach()
    if alike in ("shape", "positions") and s.ndim == t.ndim == 4:
        s, t = same_size(s, t)
    if alike == "shape" and laid:
        t = _laid_as(t, s)
    fits = {
        "shape": s.shape == t.shape,
        "positions": _positions(s) == _positions(t),
        "rows": len(s) == len(t),
        "first rows": len(s) <= len(t),
    }
    if not fits[alike]:
        raise ConfigError(_unlike(student, teacher, loss, alike))
    return s, t


def per_sample(values: Tensor) -> Tensor:
    """Return the mean over all but the first axis, shape [batch].

    Of a sum autograd writes no tensor of the values' size, of a mean it does.
    """
    return total(values) / values.shape[1:].numel()


def total(values: Tensor) -> Tensor:
    """Return the sum over all but the first axis, shape [batch]."""
    return values.sum(tuple(range(1, values.ndim)))


def squared(values: Tensor, target: Tensor | None = None) -> Tensor:
    """Return (values - target)^2, or values^2: one pass over maps each way, where a difference and its square are three and four."""
    return mse_loss(values, values.new_zeros(()).expand(values.shape) if target is None else target, reduction="none")


def _laid_as(t: Tensor, s: Tensor) -> Tensor:
    """Return maps with channels where the student's have them in memory: each step on two layouts would cost more than one copy."""
    last = torch.channels_last
    mine = s.ndim == 4 and s.is_contiguous(memory_format=last) and not s.is_contiguous()
    return t.contiguous(memory_format=last) if mine and t.ndim == 4 else t


def _positions(features: Tensor) -> list[int]:
    return [len(features), *features.shape[2:]]


def _unlike(student: Tensor, teacher: Tensor, loss: str, alike: Alike) -> str:
    got, there = f"shape {list(student.shape)}", list(teacher.shape)
    wish, do = {
        "shape": (f"of the teacher's shape {there}", "Put a connector between them, or pool both to one size."),
        "positions": (f"of the teacher's batch and positions, as in {there}", "Pool both to one size."),
        "rows": (f"of as many rows as the teacher's {there}", "Give both sides the same batch."),
        "first rows": (f"of no more rows than the teacher's {there}", "Put those of the batch first."),
    }[alike]
    return expected("student", wish, got, where=loss, do=do)
