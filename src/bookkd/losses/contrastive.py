"""Contrast: the student's embedding of a sample has to be told from others by the teacher's of the same sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bookkd.core.check import at_least, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.losses._features import feature_pair
from bookkd.losses.claims import claims
from bookkd.losses.reductions import product, unit
from bookkd.losses.targets import Target

__all__ = ["crd"]

_EPS = 1e-7  # of the released code


@claims(
    scope="batch",
    mutual=True,
    zero_at_teacher=False,
    why_not="it tells samples apart, which equal sides do not do best",
)
def crd(
    student: Tensor,
    teacher: Target | Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    population: int,
    normaliser: float | None,
) -> Tensor:
    r"""One side of contrastive representation distillation (CRD): noise-contrastive estimation with given negatives.

    -(1/N) sum_i [ log p_0 / (p_0 + K Pn + e) + sum_{k=1..K} log K Pn / (p_k + K Pn + e) ], with p = exp(cos(u_i, v) / temperature) / Z,
    v_0 the teacher's embedding of sample i and v_1 ... v_K those of its negatives, Pn = 1 / population and e = 1e-7. The negatives of
    a sample are all other rows of `teacher`, shared within the batch; of its own class none is. There is no memory bank.
    The whole loss is this one plus that with the sides changed: `student` is then the teacher's embedding.

    Args:
        student: Embeddings of a batch, of any norm above 0, shape [N, d].
        teacher: Embeddings of the same samples, and behind them of others if wished, shape [M, d], M at least N. An embedding that is
            trained keeps its gradient.
        labels: The class of every row of the teacher, `IGNORE_LABEL` where it is hidden, int64, shape [M]; None where every other row
            is a negative.
        temperature: Above 0; 0.07 in the published method.
        population: Samples that negatives come from, at least 1.
        normaliser: Z; None for the mean of the exponentials in this batch times the population, without gradient. The published
            method takes it from the first batch and keeps it.

    Returns:
        A scalar.

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if shapes do not match or a value is out of range.

    >>> u, v = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.5], [0.0, 1.0], [-1.0, 0.2]])
    >>> crd(u, v, temperature=0.5, population=4, normaliser=10.0)
    tensor(1.2237)

    Source: Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020 (arXiv 1910.10699), and its released code,
    where negatives come from a memory of averages; ours are the book's own.
    """
    positive(temperature, "temperature", where="crd")
    at_least(population, 1, "population", where="crd")
    u, v = feature_pair(student, teacher, "crd", "first rows", mutual=True)
    if u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[1]:
        got = f"shapes {list(u.shape)} and {list(v.shape)}"
        do = "Embed both sides by connectors of one width."
        raise ConfigError(expected("student", "[N, d], and the teacher [M, d]", got, where="crd", do=do))
    own = torch.eye(len(u), len(v), dtype=torch.bool, device=u.device)
    negative = ~own if labels is None else ~own & _of_others(labels, len(u), len(v))
    close = product(unit(u, 1), unit(v, 1).mT) / temperature
    if normaliser is None:
        counted = own | negative
        log_z = close.detach().masked_fill(~counted, -math.inf).flatten().logsumexp(0)
        log_z = log_z - counted.sum().to(close.dtype).log() + math.log(population)
    else:
        log_z = close.new_tensor(math.log(positive(normaliser, "normaliser", where="crd")))
    log_p = close - log_z
    # K Pn, of each row; logarithms, since the exponentials of a small temperature leave float32.
    noise = negative.sum(1, keepdim=True).to(close.dtype) / population
    log_all = (noise + _EPS).log()
    told = -softplus(log_all - log_p)
    missed = noise.clamp_min(torch.finfo(noise.dtype).tiny).log() - torch.logaddexp(log_p, log_all)
    return -(told.masked_fill(~own, 0) + missed.masked_fill(~negative, 0)).sum() / max(len(u), 1)


def _of_others(labels: Tensor, n: int, m: int) -> Tensor:
    """Return which rows are of another class, or of none that is known, bool [n, m]."""
    if labels.shape != (m,) or labels.is_floating_point():
        got = f"{labels.dtype} of shape {list(labels.shape)}"
        raise ConfigError(
            expected("labels", f"whole numbers of shape [{m}], one a row of the teacher", got, where="crd")
        )
    return (labels[:n, None] != labels[None, :]) | (labels == IGNORE_LABEL)
