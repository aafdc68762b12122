"""How unsure, and how differently sure, a network is over samples: what self-distillation is said to feed on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.errors import DataError, expected
from bookkd.core.fields import IGNORE_LABEL

__all__ = ["Diversity", "diversity", "pairwise_kl", "vasicek_entropy"]


@dataclass(frozen=True)
class Diversity:
    """Predictive uncertainty and the diversity of confidences.

    Args:
        uncertainty: U = mean entropy of p(x), in nats.
        confidence_diversity: Differential entropy of the confidences c(x) = p(x)_y, in nats, by Vasicek's estimator;
            compare values of one number of samples alone. -inf where all are equal; below 0 for confidences in a heap.
        confidence_variance: Variance of c(x).
        n: Samples whose label is known.
    """

    uncertainty: float
    confidence_diversity: float
    confidence_variance: float
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """Return plain values; an infinite one as None."""
        return {name: None if math.isinf(value) else value for name, value in asdict(self).items()}


def diversity(logits: Tensor, labels: Tensor) -> Diversity:
    """Measure U, the differential entropy and the variance of c(x) = softmax(logits)_y.

    Args:
        logits: [n, classes].
        labels: Classes [n]; samples with `IGNORE_LABEL` are left out.

    Raises:
        DataError: if fewer than two labels are known.

    >>> found = diversity(torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 0]))
    >>> round(found.uncertainty, 4), found.n
    (0.5469, 3)

    Source: Zhang and Sabuncu, NeurIPS 2020 (arXiv 2006.05065), "predictive uncertainty" and "confidence diversity"; the
    estimator is our choice.
    """
    known = labels != IGNORE_LABEL
    if int(known.sum()) < 2:
        raise DataError(expected("labels", "known for two samples at least", int(known.sum()), where="diversity"))
    log_p = logits[known].double().log_softmax(-1)
    entropy = -(log_p.exp() * log_p.clamp_min(torch.finfo(torch.float64).min)).sum(-1)
    confidence = log_p.gather(-1, labels[known].long().unsqueeze(-1)).squeeze(-1).exp().numpy()
    return Diversity(
        uncertainty=float(entropy.mean()),
        confidence_diversity=vasicek_entropy(confidence),
        confidence_variance=float(confidence.var()),
        n=len(confidence),
    )


def pairwise_kl(members: Sequence[Tensor]) -> float:
    """Return how far several networks are apart: the mean over ordered pairs of the mean over rows of KL(p_i || p_j), in nats.

    Args:
        members: Logits of each network, all [rows, classes].

    Raises:
        DataError: for fewer than two networks, no rows, or other shapes.

    >>> round(pairwise_kl([torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.5, -0.5]])]), 4)
    0.2439
    """
    shapes = {tuple(member.shape) for member in members}
    if len(members) < 2 or len(shapes) > 1 or members[0].ndim != 2 or not len(members[0]):
        got = f"{len(members)} of shape {', '.join(map(str, sorted(shapes)))}"
        raise DataError(expected("members", "two at least, of one shape [rows, classes]", got, where="pairwise_kl"))
    log_p = torch.stack([member.double().log_softmax(-1) for member in members])
    apart = [
        float((one.exp() * (one - other).masked_fill(one == -math.inf, 0)).sum(-1).mean())
        for i, one in enumerate(log_p)
        for j, other in enumerate(log_p)
        if i != j
    ]
    return sum(apart) / len(apart)


def vasicek_entropy(values: npt.ArrayLike) -> float:
    """Estimate the differential entropy of the distribution that `values` were drawn from.

    H = mean_i log(n (x_(i+m) - x_(i-m)) / (2 m)), with x sorted, its ends repeated, and m = floor(sqrt(n) + 1/2).

    Args:
        values: At least two numbers, shape [n].

    Returns:
        Nats; -inf where 2 m + 1 neighbours are equal.

    >>> round(vasicek_entropy(np.linspace(0, 1, 1001)), 2)
    -0.02

    Source: O. Vasicek, "A Test for Normality Based on Sample Entropy", 1976.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    m = min(int(math.sqrt(n) + 0.5), (n - 1) // 2 or 1)
    padded = np.concatenate([np.full(m, ordered[0]), ordered, np.full(m, ordered[-1])])
    with np.errstate(divide="ignore"):
        return float(np.log(n / (2 * m) * (padded[2 * m :] - padded[: -2 * m])).mean())
