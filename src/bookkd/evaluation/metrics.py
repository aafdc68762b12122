"""Accuracy, probability scores, calibration and agreement with the teacher, each with a bootstrap interval.

Every metric here is a function of sums over samples: of one contribution a sample (accuracy, NLL, Brier, agreement,
KL), of confidence gaps by bin (ECE), or of hits, cases and guesses by class (recall, F1). The same function gives the
value and its replicates, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import DataError, TeacherOutputError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.evaluation.intervals import (
    Floats,
    Interval,
    interval_of,
    interval_where_known,
    resample,
    unbiased_interval,
)
from bookkd.evaluation.measures import bin_of, check_matrix, check_names

__all__ = ["Evaluation", "evaluate"]

_MEANS = ("accuracy", "top5", "nll", "brier", "agreement", "teacher_kl")


@dataclass(frozen=True)
class Evaluation:
    """How good the predictions on one set of samples are.

    Args:
        metrics: By name: `accuracy`, `top5`, `nll` (nats), `brier` (0..2), `ece`, `balanced_accuracy`, `macro_f1`, and with a
            teacher `agreement` and `teacher_kl` (nats).
        per_class_recall: One a class; None for a class without samples.
        class_names: One a class, or empty.
        n: Number of samples.
        bins: Bins of the ECE.
        replicates: Bootstrap replicates behind the intervals.
        level: Share of them inside.
    """

    metrics: dict[str, Interval]
    per_class_recall: tuple[Interval | None, ...]
    class_names: tuple[str, ...]
    n: int
    bins: int
    replicates: int
    level: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a result file."""
        return {
            "metrics": {name: interval.to_json() for name, interval in self.metrics.items()},
            "per_class_recall": [None if each is None else each.to_json() for each in self.per_class_recall],
            "class_names": list(self.class_names),
            "n": self.n,
            "bins": self.bins,
            "replicates": self.replicates,
            "level": self.level,
        }


def evaluate(
    logits: Tensor,
    labels: Tensor,
    *,
    teacher_logits: Tensor | None = None,
    class_names: Sequence[str] = (),
    bins: int = 15,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Evaluation:
    """Measure predictions against labels, and against a teacher's if given.

    With p = softmax(logits), y the label and c = argmax p:

        nll = mean(-log p_y)                   brier = mean(sum_k (p_k - [k = y])^2)
        ece = sum_b |sum_{i in b} (p_c - [c = y])| / n, over equal bins (l, u] of p_c
        balanced_accuracy = mean recall of the classes that occur
        macro_f1 = mean F1 of the classes that occur or are predicted
        agreement = mean([c = teacher's c])    teacher_kl = mean(KL(teacher || student)) at temperature 1

    Of equal logits the lowest class counts as the prediction. The interval of `ece` is moved down by the mean excess of its
    replicates: |.| makes every resample look worse calibrated than the sample it was drawn from.

    Args:
        logits: Student's logits [n, classes], finite.
        labels: Classes [n], 0 to classes - 1.
        teacher_logits: Teacher's logits on the same samples [n, classes].
        class_names: One a class, or empty.
        bins: Bins of the ECE.
        replicates: Bootstrap replicates; 0 for values alone, as during training, with both ends of an interval at the value.
        seed: Seed of the bootstrap.
        level: Share of the replicates inside an interval.

    Returns:
        All metrics; `top5` counts the first min(5, classes).

    Raises:
        DataError: shapes that do not fit, no samples, labels out of range, or logits that are not finite.
        TeacherOutputError: a teacher of another width or with logits that are not finite.

    >>> result = evaluate(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    >>> result.metrics["accuracy"].value
    0.5

    Source: M. Naeini, G. Cooper, M. Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015
    (ECE); G. Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950 (the sum over all classes).
    """
    at_least(bins, 1, "bins", where="evaluation")
    _check(logits, labels, teacher_logits, class_names)
    logits = logits.detach().to("cpu", torch.float64)
    truth = labels.detach().cpu().numpy().astype(np.int64)
    teacher = None if teacher_logits is None else teacher_logits.detach().to("cpu", torch.float64)
    names, means = _per_sample(logits, truth, teacher)
    predicted = logits.numpy().argmax(axis=1)
    sums = _Sums(means, _gaps(logits, truth, predicted, bins), truth, predicted, logits.shape[1])
    values = sums(np.ones((1, len(truth))))[0]
    found = resample(sums, len(truth), replicates=replicates, seed=seed)
    metrics = {
        name: interval_of(values[column], found[:, column], level=level)
        for column, name in enumerate((*names, "balanced_accuracy", "macro_f1"))
    }
    metrics["ece"] = unbiased_interval(values[sums.ece], found[:, sums.ece], level=level)
    recall = tuple(
        interval_where_known(value, column, level=level)
        for value, column in zip(values[sums.ece + 1 :], found[:, sums.ece + 1 :].T, strict=True)
    )
    return Evaluation(metrics, recall, tuple(class_names), len(truth), bins, replicates, level)


class _Groups:
    """Sums of counts over groups of samples, in O(samples) whatever the number of groups."""

    def __init__(self, keys: npt.NDArray[np.int64], n_groups: int, chosen: npt.NDArray[np.bool_] | None = None) -> None:
        members = np.arange(len(keys)) if chosen is None else np.flatnonzero(chosen)
        self.order = members[np.argsort(keys[members], kind="stable")]
        self.present, self.starts = np.unique(keys[self.order], return_index=True)
        self.n_groups = n_groups

    def __call__(self, counts: Floats) -> Floats:
        out = np.zeros((len(counts), self.n_groups))
        if len(self.order):
            out[:, self.present] = np.add.reduceat(counts[:, self.order], self.starts, axis=1)
        return out


class _Sums:
    """The statistic behind `evaluate`: counts [r, n] -> [means, balanced accuracy, macro F1, ECE, recall of each class].

    A recall is NaN where the class got no count.
    """

    def __init__(
        self,
        means: Floats,
        gaps: Floats,
        truth: npt.NDArray[np.int64],
        predicted: npt.NDArray[np.int64],
        n_classes: int,
    ) -> None:
        self.columns = np.concatenate([means, gaps], axis=1)
        self.n_means = means.shape[1]
        self.ece = self.n_means + 2
        self.cases = _Groups(truth, n_classes)
        self.guesses = _Groups(predicted, n_classes)
        self.hits = _Groups(truth, n_classes, truth == predicted)

    def __call__(self, counts: Floats) -> Floats:
        sums = counts @ self.columns / counts.shape[1]
        cases, guesses, hits = self.cases(counts), self.guesses(counts), self.hits(counts)
        occurs = cases > 0
        recall = np.divide(hits, cases, out=np.zeros_like(hits), where=occurs)
        balanced = recall.sum(axis=1) / occurs.sum(axis=1)
        either = cases + guesses
        f1 = np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0)
        macro = f1.sum(axis=1) / (either > 0).sum(axis=1)
        ece = np.abs(sums[:, self.n_means :]).sum(axis=1)
        recall[~occurs] = np.nan
        return np.column_stack([sums[:, : self.n_means], balanced, macro, ece, recall])


def _per_sample(logits: Tensor, truth: npt.NDArray[np.int64], teacher: Tensor | None) -> tuple[list[str], Floats]:
    """Return the names of the metrics that are means, and each sample's part in them, [n, m]."""
    rows = torch.arange(len(truth))
    label = torch.from_numpy(truth)
    log_p = torch.log_softmax(logits, dim=1)
    p = log_p.exp()
    own = logits[rows, label][:, None]
    lower = torch.arange(logits.shape[1])[None] < label[:, None]
    rank = ((logits > own) | ((logits == own) & lower)).sum(dim=1)
    p_label = p[rows, label]
    parts = {
        "accuracy": (rank == 0).double(),
        "top5": (rank < 5).double(),
        "nll": -log_p[rows, label],
        # sum_k (p_k - y_k)^2 without the one-hot matrix.
        "brier": p.square().sum(dim=1) - p_label.square() + (1 - p_label).square(),
    }
    if teacher is not None:
        log_t = torch.log_softmax(teacher, dim=1)
        same = logits.numpy().argmax(axis=1) == teacher.numpy().argmax(axis=1)
        parts["agreement"] = torch.from_numpy(same).double()
        parts["teacher_kl"] = (log_t.exp() * (log_t - log_p)).sum(dim=1).clamp_min(0)
    return list(parts), torch.stack(list(parts.values()), dim=1).numpy()


def _gaps(logits: Tensor, truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], bins: int) -> Floats:
    """Return confidence less correctness of each sample in the column of its bin, [n, bins]."""
    confidence = torch.softmax(logits, dim=1).max(dim=1).values.numpy()
    gaps = np.zeros((len(truth), bins))
    gaps[np.arange(len(truth)), bin_of(confidence, bins)] = confidence - (predicted == truth)
    return gaps


def _check(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, class_names: Sequence[str]) -> None:
    check_matrix(logits, "logits", None, DataError, columns="classes")
    n, n_classes = logits.shape
    if labels.shape != (n,) or labels.is_floating_point() or labels.dtype == torch.bool:
        got = f"{labels.dtype} {tuple(labels.shape)}"
        raise DataError(expected("labels", f"{n} whole numbers, one a row of logits", got, where="evaluation"))
    outside = ((labels < 0) | (labels >= n_classes)).nonzero().flatten().tolist()
    if outside:
        where = f"evaluation, sample {outside[0]}"
        label = int(labels[outside[0]])
        do = "Evaluate on samples whose class is known." if label == IGNORE_LABEL else "Check the data set's classes."
        raise DataError(expected("label", f"between 0 and {n_classes - 1}", label, where=where, do=do))
    if teacher_logits is not None:
        check_matrix(teacher_logits, "teacher_logits", logits.shape, TeacherOutputError)
    check_names(class_names, n_classes, "class_names")
