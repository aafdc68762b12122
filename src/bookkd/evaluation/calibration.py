"""Reliability before and after temperature scaling, and who takes which class for which."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import DataError, expected
from bookkd.evaluation.measures import bin_of

__all__ = ["calibration", "confusion", "fit_temperature", "reliability"]

_GOLDEN = (math.sqrt(5) - 1) / 2


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the T that makes the mean of -log softmax(logits / T)_y least: temperature scaling.

    The mean is convex in 1 / T; golden section between T = 0.05 and 20, to a relative 1e-6.

    Args:
        logits: [n, classes], of samples that nothing else is reported on.
        labels: Classes [n].

    Raises:
        DataError: if there is no sample, or logits are not finite.

    >>> round(fit_temperature(torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0, 1])), 3)
    2.885

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv 1706.04599), section 4.2.
    """
    if not len(labels) or not bool(torch.isfinite(logits).all()):
        raise DataError(
            expected("logits", "finite, of one sample at least", list(logits.shape), where="temperature scaling")
        )
    exact, classes = logits.detach().double().cpu(), labels.detach().long().cpu()

    def nll(log_inverse: float) -> float:
        return float(torch.nn.functional.cross_entropy(exact * math.exp(log_inverse), classes))

    low, high = -math.log(20.0), math.log(20.0)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = nll(left), nll(right)
    while high - low > 1e-6:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = nll(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = nll(right)
    return math.exp(-(low + high) / 2)


def reliability(logits: Tensor, labels: Tensor, *, bins: int = 15) -> list[dict[str, float | int | None]]:
    """Return confidence and accuracy by bins (low, high] of the confidence in the predicted class.

    Args:
        logits: [n, classes].
        labels: Classes [n].
        bins: Number of bins of equal width.

    Returns:
        For each bin `low`, `high`, `count`, and `confidence` and `accuracy` (None in an empty bin).
    """
    at_least(bins, 1, "bins", where="reliability")
    p = logits.detach().double().cpu().softmax(-1).numpy()
    top, right = p.max(axis=1), p.argmax(axis=1) == labels.cpu().numpy()
    place = bin_of(top, bins)
    found: list[dict[str, float | int | None]] = []
    for bin_ in range(bins):
        inside = place == bin_
        count = int(inside.sum())
        found.append(
            {
                "low": bin_ / bins,
                "high": (bin_ + 1) / bins,
                "count": count,
                "confidence": float(top[inside].mean()) if count else None,
                "accuracy": float(right[inside].mean()) if count else None,
            }
        )
    return found


def calibration(
    logits: Tensor, labels: Tensor, *, held_out: tuple[Tensor, Tensor], fitted_on: str, bins: int = 15
) -> dict[str, Any]:
    """Measure reliability before and after scaling by a temperature that was fitted on other samples.

    Args:
        logits: [n, classes], of the samples that are reported on.
        labels: Their classes [n].
        held_out: Logits and classes of the other samples.
        fitted_on: What the other samples are, in a word.
        bins: Of the reliability and the ECE.

    Returns:
        `temperature`, `fitted_on`, `before`, `after` (see `reliability`), `nll_after`, `ece_after`.
    """
    temperature = fit_temperature(*held_out)
    scaled = logits.detach().double().cpu() / temperature
    after = reliability(scaled, labels, bins=bins)
    gaps = [
        bin_["count"] * abs(bin_["confidence"] - bin_["accuracy"])  # type: ignore[operator]
        for bin_ in after
        if bin_["count"]
    ]
    return {
        "temperature": temperature,
        "fitted_on": fitted_on,
        "before": reliability(logits, labels, bins=bins),
        "after": after,
        "nll_after": float(torch.nn.functional.cross_entropy(scaled, labels.long().cpu())),
        "ece_after": sum(gaps) / len(labels),
    }


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """Return counts: row i, column j are samples of class i that are taken for class j.

    >>> confusion(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1]))
    [[1, 0], [1, 1]]
    """
    n_classes = logits.shape[-1]
    pairs = labels.long().cpu() * n_classes + logits.cpu().argmax(-1)
    counts: list[list[int]] = torch.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes).tolist()
    return counts
