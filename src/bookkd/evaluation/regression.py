"""Numbers instead of classes: errors, explained variance, correlation and likelihood, with intervals.

Every metric is a function of sums over samples (of y, y^2, m, m^2, y m, |y - m|, ...), so that one function gives the value and
its replicates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bookkd.core.errors import DataError, TeacherOutputError, expected
from bookkd.evaluation.intervals import Floats
from bookkd.evaluation.measures import Measures, check_matrix, check_names, mean_where_known, measured

__all__ = ["evaluate_regression"]

# Of a sum of squares: what is left of it by rounding where all values are equal.
_NOTHING = 1e-12


def evaluate_regression(
    mean: Tensor,
    labels: Tensor,
    *,
    variance: Tensor | None = None,
    teacher_mean: Tensor | None = None,
    teacher_variance: Tensor | None = None,
    output_names: Sequence[str] = (),
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Measures:
    """Measure predicted numbers, and compare them with a teacher's if given.

    With m the means, s the variances and y the labels, for each output over the samples whose label is known:

        rmse = sqrt(mean((m - y)^2))    mae = mean(|m - y|)     r2 = 1 - sum((m - y)^2) / sum((y - mean y)^2)
        correlation = Pearson's, of m and y     nll = mean(log(2 pi s) + (m - y)^2 / s) / 2
        teacher_rmse = sqrt(mean((m - teacher's m)^2))      teacher_kl = mean(KL(teacher || student)) of normal distributions

    and over several outputs the mean of each. Where all labels are equal `r2` is 1 if they are met exactly, else 0; where labels
    or predictions are all equal `correlation` is 0.

    Args:
        mean: Student's means [n, outputs], finite.
        labels: Floating [n, outputs], or [n] for one output; NaN where not known.
        variance: Student's variances [n, outputs], above 0.
        teacher_mean: Teacher's means on the same samples [n, outputs].
        teacher_variance: Teacher's variances; for `teacher_kl` both must give theirs.
        output_names: One an output, or empty.
        replicates: Bootstrap replicates over samples; 0 for values alone, as during training.
        seed: Seed of the bootstrap.
        level: Share of the replicates inside an interval.

    Returns:
        All metrics, and `rmse`, `mae`, `r2` and `correlation` of each output.

    Raises:
        DataError: shapes that do not fit, a sample or output without a known label, means that are not finite, or variances not
            above 0.
        TeacherOutputError: the same of a teacher.

    >>> result = evaluate_regression(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 3.0, 5.0]))
    >>> {name: round(result.metrics[name].value, 4) for name in ("rmse", "mae", "r2", "correlation")}
    {'rmse': 0.8165, 'mae': 0.6667, 'r2': 0.75, 'correlation': 0.982}
    """
    check_matrix(mean, "mean", None, DataError)
    check_names(output_names, mean.shape[1], "output_names")
    wanted = _checked_labels(labels, mean)
    _check_variance(variance, "variance", mean, DataError)
    if teacher_mean is not None:
        check_matrix(teacher_mean, "teacher_mean", mean.shape, TeacherOutputError)
    _check_variance(teacher_variance, "teacher_variance", mean, TeacherOutputError)
    statistic = _Statistic(_exact(mean), wanted, variance, teacher_mean, teacher_variance)
    shown = {"class_names": output_names, "replicates": replicates, "seed": seed, "level": level}
    return measured(statistic, len(mean), **shown)  # type: ignore[arg-type]


def _exact(given: Tensor) -> Floats:
    found: Floats = given.detach().to("cpu", torch.float64).numpy()
    return found


class _Statistic:
    """Counts [r, n] -> every metric."""

    def __init__(
        self,
        mean: Floats,
        labels: Floats,
        variance: Tensor | None,
        teacher_mean: Tensor | None,
        teacher_variance: Tensor | None,
    ) -> None:
        known = ~np.isnan(labels)
        self.known = known.astype(float)
        error = np.where(known, mean - labels, 0)
        # Centred, so that sums of squares do not cancel.
        m = np.where(known, mean - np.nanmean(np.where(known, mean, np.nan), axis=0), 0)
        y = np.where(known, labels - np.nanmean(labels, axis=0), 0)
        self.parts = {"error": error**2, "absolute": np.abs(error), "m": m, "mm": m**2, "y": y, "yy": y**2, "my": m * y}
        if variance is not None:
            s = _exact(variance)
            self.parts["nll"] = np.where(known, (np.log(2 * math.pi * s) + error**2 / s) / 2, 0)
        self.against: dict[str, Floats] = {}
        if teacher_mean is not None:
            self.against["gap"] = (mean - _exact(teacher_mean)) ** 2
            if variance is not None and teacher_variance is not None:
                share = _exact(teacher_variance) / _exact(variance)
                self.against["kl"] = (share - 1 - np.log(share) + self.against["gap"] / _exact(variance)) / 2

    def __call__(self, counts: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        n, total = counts.shape[1], counts @ self.known
        sums = {name: counts @ part for name, part in self.parts.items()}
        defined = total > 0
        some = np.where(defined, total, 1)
        r2, correlation = _explained(sums, some)
        each = {
            "rmse": np.sqrt(sums["error"] / some),
            "mae": sums["absolute"] / some,
            "r2": r2,
            "correlation": correlation,
        }
        each = {name: np.where(defined, values, np.nan) for name, values in each.items()}
        found = {name: mean_where_known(values) for name, values in each.items()}
        if "nll" in sums:
            found["nll"] = mean_where_known(np.where(defined, sums["nll"] / some, np.nan))
        if self.against:
            found["teacher_rmse"] = np.sqrt(counts @ self.against["gap"] / n).mean(axis=1)
        if "kl" in self.against:
            found["teacher_kl"] = (counts @ self.against["kl"] / n).mean(axis=1)
        return found, each


def _explained(sums: dict[str, Floats], total: Floats) -> tuple[Floats, Floats]:
    """Return r2 and correlation of each output, both [r, outputs]."""
    yy, mm = sums["yy"] - sums["y"] ** 2 / total, sums["mm"] - sums["m"] ** 2 / total
    flat, still = yy <= _NOTHING * sums["yy"], mm <= _NOTHING * sums["mm"]
    r2 = 1 - sums["error"] / np.where(flat, 1, yy)
    r2 = np.where(flat, sums["error"] == 0, r2)
    my = sums["my"] - sums["m"] * sums["y"] / total
    either = flat | still
    return r2, np.where(either, 0, my / np.sqrt(np.where(either, 1, yy * mm)))


def _check_variance(
    variance: Tensor | None, name: str, mean: Tensor, error: type[DataError | TeacherOutputError]
) -> None:
    if variance is None:
        return
    check_matrix(variance, name, mean.shape, error)
    wrong = (variance <= 0).nonzero().tolist()
    if wrong:
        sample, output = wrong[0]
        where = f"evaluation, sample {sample}, output {output}"
        raise error(expected(name, "above 0", float(variance[sample, output]), where=where))


def _checked_labels(labels: Tensor, mean: Tensor) -> Floats:
    """Return labels [n, outputs]."""
    vectors = labels.unsqueeze(-1) if labels.ndim == 1 else labels
    if vectors.shape != mean.shape or not labels.is_floating_point():
        got = f"{labels.dtype} {tuple(labels.shape)}"
        raise DataError(expected("labels", f"floating point {tuple(mean.shape)}", got, where="evaluation"))
    found = _exact(vectors)
    if np.isinf(found).any():
        sample = int(np.argwhere(np.isinf(found))[0, 0])
        raise DataError(
            expected("label", "finite, or NaN where not known", "infinity", where=f"evaluation, sample {sample}")
        )
    for axis, what in ((1, "sample"), (0, "output")):
        blank = np.flatnonzero(np.isnan(found).all(axis=axis))
        if len(blank):
            do = f"Evaluate on {what}s of which a label is known."
            where = f"evaluation, {what} {blank[0]}"
            raise DataError(expected("labels", f"known somewhere in each {what}", "none", where=where, do=do))
    return found
