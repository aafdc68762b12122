"""Dense prediction: channels as maps of where, positions as relations, and targets that mistrust a wrong teacher."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bookkd.core.check import positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.core.names import choose
from bookkd.losses._features import feature_pair, per_sample
from bookkd.losses._pair import dense_only, kl, log_pair, scaled, weighted_sum
from bookkd.losses.claims import claims
from bookkd.losses.labels import check_labels, check_mixed, share_of
from bookkd.losses.reductions import product, unit
from bookkd.losses.targets import Target

__all__ = ["adaptive_cross_entropy", "csc", "cwd", "pairwise_similarity"]

_NOWHERE = -1e30
"""A score of no probability that can be subtracted."""


@claims(t_squared=True)
def cwd(
    student: Tensor,
    teacher: Target | Tensor,
    weights: Tensor | None = None,
    *,
    temperature: float,
    t_squared: bool,
    channels: Literal["first", "last"],
) -> Tensor:
    r"""Channel-wise distillation (CWD): each channel as a distribution over the positions of the image.

    T^2 mean_c KL(softmax_x(t_c / T) || softmax_x(s_c / T)). A constant added to a channel changes nothing.

    Args:
        student: Maps or logits, shape [batch, channels, *positions] or [batch, *positions, channels].
        teacher: Likewise; maps of another height and width are averaged to the smaller.
        weights: Of the positions, shape [batch, *positions]; those of weight 0 are left out of both distributions, unless all of an
            image are. None for all alike, as published.
        temperature: T, above 0; 4 in the published method.
        t_squared: Whether to multiply by T^2, as the published method does.
        channels: Whether channels are the "first" axis behind the batch, as in maps, or the "last", as in logits.

    Returns:
        One value per sample, shape [batch].

    Raises:
        FidelityError: for a target that is no tensor of every class.
        ConfigError: if the shapes do not fit or a value is out of range.

    >>> student = torch.tensor([[[0.0, 0.5, 1.0, 2.0], [0.5, 1.0, 0.5, 0.0]]])
    >>> teacher = torch.tensor([[[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 0.0, -1.0]]])
    >>> cwd(student, teacher, temperature=1.0, t_squared=True, channels="first")
    tensor([0.0665])

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021 (arXiv 2011.13256), equation 4.
    """
    positive(temperature, "temperature", where="cwd")
    choose(channels, ("first", "last"), "channels", where="cwd")
    if channels == "last":
        logits = getattr(teacher, "logits", teacher)
        student, teacher = student.movedim(-1, 1), logits.movedim(-1, 1) if isinstance(logits, Tensor) else teacher
    s, t = feature_pair(student, teacher, "cwd")
    scores = [x.flatten(2) / temperature for x in (_maps(s, "cwd"), t)]
    if weights is not None:
        if list(weights.shape) != [len(s), *s.shape[2:]]:
            wish, got = f"one for each position of {[len(s), *s.shape[2:]]}", f"shape {list(weights.shape)}"
            raise ConfigError(expected("weights", wish, got, where="cwd"))
        out = weights.flatten(1) <= 0
        out = (out & ~out.all(1, keepdim=True)).unsqueeze(1)
        # A number, and the same on both sides: their difference is 0, where that of two infinities would be none.
        scores = [x.masked_fill(out, _NOWHERE) for x in scores]
    log_q, log_p = (x.log_softmax(2) for x in scores)
    return scaled(kl(log_p, log_q).mean(1), temperature, t_squared)


@claims()
def csc(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Channel and spatial correlation (CSC), full form: products of all pairs of numbers of a map.

    ||u u' - v v'||_F^2 / D^2, with u and v the flattened maps of D numbers, each of norm 1. No D x D matrix is built: it equals
    2 (1 - cos^2(u, v)) / D^2, so it is blind to the sign of a map. The factorised form, which does not come down to one cosine, is
    `feature_mse` of `channel_gram` and of `spatial_gram`.

    Args:
        student: Maps, pooled to a small grid, shape [batch, channels, *positions].
        teacher: Likewise; maps of another height and width are averaged to the smaller.

    Returns:
        One value per sample, shape [batch].

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the shapes do not fit.

    >>> csc(torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]]), torch.tensor([[[[1.0, 1.0]], [[1.0, 2.0]]]]))
    tensor([0.0506])

    Source: Park and Heo, Sensors 2020, 20(16), 4616, reconstructed from its abstract: the published equations were not read.
    """
    s, t = feature_pair(student, teacher, "csc")
    u, v = unit(s.flatten(1), 1), unit(t.flatten(1), 1)
    # |u|^4 + |v|^4 - 2 (u'v)^2 without the cancellation.
    p, q = u.square().sum(1), v.square().sum(1)
    apart, sum_ = (u - v).square().sum(1), (u + v).square().sum(1)
    return (apart * sum_ + (p - q).square()) / 2 / u.shape[1] ** 2


@claims()
def pairwise_similarity(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Structured distillation (SKD), pair-wise: which regions of an image are alike.

    ||A_S - A_T||_F^2 / R^2, with A the products of the R positions, each a vector of norm 1 over the channels; the norm is taken
    without gradient, as in the released code. A rotation of the channels of one side, or a factor of a position, changes nothing.

    Args:
        student: Maps, pooled to a few regions by `max_pool`, shape [batch, c_S, *positions].
        teacher: Maps of the same positions; channels may differ.

    Returns:
        One value per sample, shape [batch].

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the shapes do not fit.

    >>> student, teacher = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]]), torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]])
    >>> pairwise_similarity(student, teacher)
    tensor([0.2222])

    Source: Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019 (arXiv 1903.04197), equation 3. Its
    code pools with a step that is half of an even size, which is `max_pool` to 2 x 2; of an odd size it leaves a thin third region.
    Its pixel-wise term is `soft_cross_entropy` at temperature 1.
    """
    s, t = feature_pair(student, teacher, "pairwise_similarity", "positions")

    def relations(maps: Tensor) -> Tensor:
        columns = _maps(maps, "pairwise_similarity").flatten(2)
        squares = columns.detach().square().sum(1, keepdim=True)
        directions = columns * (squares + 1e-12).rsqrt().masked_fill(squares == 0, 0)
        return product(directions.mT, directions)

    return per_sample((relations(s) - relations(t)).square())


@claims(zero_at_teacher=False, why_not="it looks at labels, and its value is a cross-entropy")
def adaptive_cross_entropy(
    student: Tensor,
    teacher: Target | Tensor,
    labels: Tensor,
    partner_labels: Tensor | None = None,
    ratio: Tensor | None = None,
    *,
    form: Literal["switch", "blend"],
) -> Tensor:
    r"""Adaptive cross-entropy (ACE): the teacher's distribution where it is right, the label where it is not.

    -sum_k q_k log p_S,k. "switch": q = p_T where argmax p_T = y, else onehot(y). "blend": q = w p_T + (1 - w) onehot(y), with
    w = p_T[y]. The gradient is p_S - q. For a mixed view q is ratio q(y) + (1 - ratio) q(y'), with y' the partner's label.

    Args:
        student: Logits, shape [..., K].
        teacher: Dense target of the same positions and classes. Of equally likely classes the lowest counts.
        labels: Classes 0 to K - 1, or `IGNORE_LABEL`, integer, shape [...].
        partner_labels: Classes of the samples that the views were mixed with, as `labels`.
        ratio: Share of the sample itself in its mixed view, 0 to 1; shape [...] or its first axes.
        form: "switch" or "blend".

    Returns:
        One value per position, shape [...]; 0 where the label, or the partner's, is hidden.

    Raises:
        FidelityError: if the target is sparse.
        DataError: if a label is no class; the check costs one wait for the device.
        ConfigError: if shapes do not match, or only one of `partner_labels` and `ratio` is given.

    >>> student, teacher = torch.tensor([[0.6, 0.3, 0.1], [0.3, 0.3, 0.4]]).log(), torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]]).log()
    >>> adaptive_cross_entropy(student, teacher, torch.tensor([0, 2]), form="switch")
    tensor([0.8286, 0.9163])

    Source: Park and Heo, Sensors 2020, 20(16), 4616, reconstructed from its abstract in both forms.
    """
    choose(form, ("switch", "blend"), "form", where="adaptive_cross_entropy")
    target = dense_only(teacher, "adaptive_cross_entropy", "the probabilities of the classes left out are unknown")
    log_q, log_p = log_pair(student, target, 1.0, "adaptive_cross_entropy")
    check_mixed(partner_labels, ratio, "adaptive_cross_entropy")
    check_labels(student, labels, partner_labels, "adaptive_cross_entropy")
    wanted, hidden = _adapted(log_p, labels, form), labels == IGNORE_LABEL
    if partner_labels is not None and ratio is not None:
        share = share_of(ratio, labels, log_p.dtype, "adaptive_cross_entropy").unsqueeze(-1)
        wanted = torch.lerp(_adapted(log_p, partner_labels, form), wanted, share)
        hidden = hidden | (partner_labels == IGNORE_LABEL)
    return -weighted_sum(wanted, log_q).masked_fill(hidden, 0)


def _adapted(log_p: Tensor, labels: Tensor, form: Literal["switch", "blend"]) -> Tensor:
    """Return what is taught of labels: the teacher's distribution as far as it is right, the label for the rest."""
    truth = labels.long().clamp_min(0).unsqueeze(-1)
    own = log_p.gather(-1, truth)
    if form == "blend":
        share = own.exp()
    else:
        # Above all classes before it, and below none behind: the lowest of equals, on every device.
        above = (log_p > own) | ((log_p == own) & (torch.arange(log_p.shape[-1], device=log_p.device) < truth))
        share = (~above.any(-1, keepdim=True)).to(log_p.dtype)
    wanted = share * log_p.exp()
    return wanted.scatter_add(-1, truth, 1 - share)


def _maps(features: Tensor, loss: str) -> Tensor:
    if features.ndim < 3:
        wish, got = "maps [batch, channels, *positions]", f"shape {list(features.shape)}"
        raise ConfigError(expected("student", wish, got, where=loss))
    return features
