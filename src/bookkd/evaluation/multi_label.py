"""Several labels a sample: ranking of each class, decisions at a half, probability scores and calibration, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import DataError, TeacherOutputError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.evaluation.intervals import Floats
from bookkd.evaluation.measures import Measures, bin_of, check_matrix, check_names, mean_where_known, measured

__all__ = ["evaluate_multi_label"]


def evaluate_multi_label(
    logits: Tensor,
    labels: Tensor,
    *,
    teacher_logits: Tensor | None = None,
    class_names: Sequence[str] = (),
    bins: int = 15,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Measures:
    """Measure predictions of which classes are present, and compare them with a teacher's if given.

    With p = sigmoid(logits), y the labels, and c = [p > 1/2], over the (sample, class) pairs whose label is known:

        map = mean over classes with a present label of AP = sum_k (R_k - R_(k-1)) P_k over the distinct scores
        auroc = mean over classes with both labels of the share of (present, absent) pairs in the right order, ties half
        micro_f1, macro_f1 = F1 of c over all pairs; mean F1 of the classes that occur or are predicted
        subset_accuracy = share of samples whose known labels are all right     hamming_loss = mean([c != y])
        nll = mean(-log p if y else -log(1 - p))    brier = mean((p - y)^2)
        ece = sum_b |sum_{pairs in b} (p - y)| / pairs, over equal bins (l, u] of p
        agreement = mean([c = teacher's c])     teacher_kl = mean of the binary KL(teacher || student), over all pairs

    The interval of `ece` is moved down by the mean excess of its replicates, as in `evaluate`.

    Args:
        logits: Student's logits [n, classes], finite.
        labels: 1 where a class is present, 0 where not, `IGNORE_LABEL` or NaN where not known, [n, classes].
        teacher_logits: Teacher's logits on the same samples [n, classes].
        class_names: One a class, or empty.
        bins: Bins of the ECE.
        replicates: Bootstrap replicates over samples; 0 for values alone, as during training.
        seed: Seed of the bootstrap.
        level: Share of the replicates inside an interval.

    Returns:
        All metrics, and `average_precision`, `auroc` and `f1` of each class.

    Raises:
        DataError: shapes that do not fit, labels of other values, a sample without a known label, no present label at all,
            or logits that are not finite.
        TeacherOutputError: a teacher of another width or with logits that are not finite.

    >>> result = evaluate_multi_label(torch.tensor([[2.0, -1.0], [-1.0, -0.5]]), torch.tensor([[1, 0], [0, 1]]))
    >>> {name: result.metrics[name].value for name in ("map", "hamming_loss", "subset_accuracy")}
    {'map': 1.0, 'hamming_loss': 0.25, 'subset_accuracy': 0.5}

    Source: Everingham et al., "The Pascal Visual Object Classes Challenge", 2010, for the mean over classes; the AP is that of
    scikit-learn, without interpolation.
    """
    at_least(bins, 1, "bins", where="evaluation")
    check_matrix(logits, "logits", None, DataError)
    check_names(class_names, logits.shape[1], "class_names")
    present, known = _checked_labels(labels, logits)
    if teacher_logits is not None:
        check_matrix(teacher_logits, "teacher_logits", logits.shape, TeacherOutputError)
    z = logits.detach().to("cpu", torch.float64)
    statistic = _Statistic(z, present, known, teacher_logits, bins)
    shown = {"class_names": class_names, "replicates": replicates, "seed": seed, "level": level, "absolute": ("ece",)}
    return measured(statistic, len(z), **shown)  # type: ignore[arg-type]


class _Statistic:
    """Counts [r, n] -> every metric."""

    def __init__(
        self,
        z: Tensor,
        present: npt.NDArray[np.bool_],
        known: npt.NDArray[np.bool_],
        teacher: Tensor | None,
        bins: int,
    ) -> None:
        scores, positive = z.numpy(), z.numpy() > 0
        self.ranks = [_Ranks(scores[known[:, c], c], present[known[:, c], c], known[:, c]) for c in range(z.shape[1])]
        self.decided = [(known & a & b).astype(float) for a, b in _outcomes(positive, present)]
        self.pairs = known.sum(axis=1).astype(float)[:, None]
        p = torch.sigmoid(z).numpy()
        nll = np.logaddexp(0, np.where(present, -scores, scores))
        wrong = (positive != present) & known
        self.sums = np.column_stack([np.where(known, part, 0).sum(axis=1) for part in (wrong, nll, (p - present) ** 2)])
        self.right = (~wrong.any(axis=1)).astype(float)[:, None]
        self.gaps = _gaps(p, present, known, bins)
        self.teacher = None if teacher is None else _against(z, teacher.detach().to("cpu", torch.float64))

    def __call__(self, counts: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        n, pairs = counts.shape[1], counts @ self.pairs
        average, auroc = (np.stack(found, axis=1) for found in zip(*(rank(counts) for rank in self.ranks), strict=True))
        hits, missed, false = (counts @ part for part in self.decided)
        f1 = _f1(hits, missed, false)
        hamming, nll, brier = (counts @ self.sums / pairs).T
        found = {
            "map": mean_where_known(average),
            "auroc": mean_where_known(auroc),
            "micro_f1": np.nan_to_num(_f1(*(part.sum(axis=1) for part in (hits, missed, false)))),
            "macro_f1": np.nan_to_num(mean_where_known(f1)),
            "subset_accuracy": (counts @ self.right)[:, 0] / n,
            "hamming_loss": hamming,
            "nll": nll,
            "brier": brier,
            "ece": np.abs(counts @ self.gaps).sum(axis=1) / pairs[:, 0],
        }
        if self.teacher is not None:
            found["agreement"], found["teacher_kl"] = (counts @ self.teacher / n).T
        return found, {"average_precision": average, "auroc": auroc, "f1": f1}


class _Ranks:
    """Average precision and area under the ROC curve of one class, for weights of its samples."""

    def __init__(self, scores: Floats, present: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> None:
        order = np.argsort(-scores, kind="stable")
        self.members = np.flatnonzero(known)[order]
        self.present = present[order].astype(float)
        # Samples of equal score are one step.
        self.ends = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)

    def __call__(self, counts: Floats) -> tuple[Floats, Floats]:
        if not len(self.members):
            return np.full(len(counts), np.nan), np.full(len(counts), np.nan)
        weights = counts[:, self.members]
        every = np.cumsum(weights, axis=1)[:, self.ends]
        present = np.cumsum(weights * self.present, axis=1)[:, self.ends]
        before = np.concatenate([np.zeros((len(counts), 1)), present[:, :-1]], axis=1)
        absent = np.diff(every - present, axis=1, prepend=0)
        precision = np.divide(present, every, out=np.zeros_like(present), where=every > 0)
        n_present, n_absent = present[:, -1], every[:, -1] - present[:, -1]
        return (
            _ratio(((present - before) * precision).sum(axis=1), n_present),
            _ratio((absent * (present + before)).sum(axis=1) / 2, n_present * n_absent),
        )


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _f1(hits: Floats, missed: Floats, false: Floats) -> Floats:
    return _ratio(2 * hits, 2 * hits + missed + false)


def _outcomes(
    positive: npt.NDArray[np.bool_], present: npt.NDArray[np.bool_]
) -> tuple[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]], ...]:
    """Return the pairs whose conjunctions are hits, missed and false ones."""
    return (positive, present), (~positive, present), (positive, ~present)


def _gaps(p: Floats, present: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_], bins: int) -> Floats:
    """Return the sum of p - y of each sample's known pairs in the column of their bin, [n, bins]."""
    cells = np.arange(len(p))[:, None] * bins + bin_of(p, bins)
    gaps = np.bincount(cells[known], weights=(p - present)[known], minlength=len(p) * bins)
    return gaps.astype(np.float64).reshape(len(p), bins)


def _against(z: Tensor, teacher: Tensor) -> Floats:
    """Return mean agreement and divergence of each sample, [n, 2]."""
    same = ((z > 0) == (teacher > 0)).double().mean(dim=1)
    t = torch.sigmoid(teacher)
    log = torch.nn.functional.logsigmoid
    kl = t * (log(teacher) - log(z)) + (1 - t) * (log(-teacher) - log(-z))
    return torch.stack([same, kl.clamp_min(0).mean(dim=1)], dim=1).numpy()


def _checked_labels(labels: Tensor, logits: Tensor) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return where a class is present and where its label is known."""
    if labels.shape != logits.shape:
        got = f"shape {tuple(labels.shape)}"
        raise DataError(expected("labels", f"{tuple(logits.shape)}, one a logit", got, where="evaluation"))
    found = labels.detach().cpu().to(torch.float64).numpy()
    known = ~(np.isnan(found) | (found == IGNORE_LABEL))
    wrong = np.argwhere(known & ~np.isin(found, (0, 1)))
    if len(wrong):
        sample, place = wrong[0].tolist()
        wish, where = "0, 1, or -1 where not known", f"evaluation, sample {sample}, class {place}"
        raise DataError(expected("label", wish, float(found[sample, place]), where=where))
    blank = np.flatnonzero(~known.any(axis=1))
    if len(blank):
        do = "Evaluate on samples of which a label is known."
        where = f"evaluation, sample {blank[0]}"
        raise DataError(expected("labels", "known for one class of a sample at least", "none", where=where, do=do))
    present = known & (found == 1)
    if not present.any():
        raise DataError(expected("labels", "present for one class and sample at least", "none", where="evaluation"))
    return present, known
