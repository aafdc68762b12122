"""What measuring several labels, or numbers, gives: metrics over all of them, and those of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.errors import ConfigError, DataError, TeacherOutputError, expected
from bookkd.evaluation.intervals import Floats, Interval, interval_where_known, resample, unbiased_interval

__all__ = ["Measures", "Statistic", "bin_of", "check_matrix", "check_names", "mean_where_known", "measured"]


Statistic = Callable[[Floats], tuple[Mapping[str, Floats], Mapping[str, Floats]]]
"""From counts [r, n] to metrics over all, name -> [r], and metrics of each class or output, name -> [r, classes]; NaN where one
is not defined."""


@dataclass(frozen=True)
class Measures:
    """How good the predictions of several labels, or of numbers, on one set of samples are.

    Args:
        metrics: By name, over all classes or outputs; one that is defined nowhere is left out.
        per_class: By name, one a class or output; None where it is not defined.
        class_names: Names of the classes or outputs, or empty.
        n: Number of samples.
        replicates: Bootstrap replicates behind the intervals.
        level: Share of them inside.
        signatures: Metric -> version and settings of the package that computed it, where it says them: two values compare only where
            these are equal.
    """

    metrics: dict[str, Interval]
    per_class: dict[str, tuple[Interval | None, ...]]
    class_names: tuple[str, ...]
    n: int
    replicates: int
    level: float
    signatures: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a result file."""
        return {
            "metrics": {name: interval.to_json() for name, interval in self.metrics.items()},
            "per_class": {
                name: [None if each is None else each.to_json() for each in intervals]
                for name, intervals in self.per_class.items()
            },
            "class_names": list(self.class_names),
            "n": self.n,
            "replicates": self.replicates,
            "level": self.level,
            **({"signatures": dict(self.signatures)} if self.signatures else {}),
        }


def measured(
    statistic: Statistic,
    n: int,
    *,
    class_names: Sequence[str],
    replicates: int,
    seed: int,
    level: float,
    absolute: Sequence[str] = (),
) -> Measures:
    """Return values and bootstrap intervals of a statistic of n samples.

    Args:
        statistic: See `Statistic`.
        n: Number of samples.
        class_names: Of the classes or outputs, or empty.
        replicates: Number of replicates; 0 for values alone.
        seed: Seed of the draws.
        level: Share of the replicates inside an interval.
        absolute: Metrics that are sums of absolute values, see `unbiased_interval`.
    """
    over_all, each = statistic(np.ones((1, n)))

    def columns(counts: Floats) -> Floats:
        whole, parts = statistic(counts)
        return np.column_stack([*whole.values(), *parts.values()])

    found = iter(resample(columns, n, replicates=replicates, seed=seed).T)
    metrics = {}
    for name, value in over_all.items():
        shape = unbiased_interval if name in absolute else interval_where_known
        interval = shape(value[0], next(found), level=level)
        if interval is not None:
            metrics[name] = interval
    per_class = {
        name: tuple(interval_where_known(value, next(found), level=level) for value in values[0])
        for name, values in each.items()
    }
    return Measures(metrics, per_class, tuple(class_names), n, replicates, level)


def mean_where_known(values: Floats) -> Floats:
    """Return the mean over the last axis of what is no NaN; NaN where nothing is.

    >>> mean_where_known(np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]]))
    array([ 2., nan])
    """
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    mean: Floats = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return mean


def bin_of(confidence: Floats, bins: int) -> npt.NDArray[np.int64]:
    """Return the bin of each confidence among equal bins (l, u] of 0 to 1, so that full confidence falls into the last one.

    >>> bin_of(np.array([0.0, 0.25, 0.26, 1.0]), 4).tolist()
    [0, 0, 1, 3]
    """
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def check_matrix(
    given: Tensor,
    name: str,
    shape: Sequence[int] | None,
    error: type[DataError | TeacherOutputError],
    *,
    columns: str = "m",
) -> None:
    """Refuse what is no finite floating matrix [n, m], or one of another shape than `shape`."""
    fits = given.ndim == 2 and 0 not in given.shape if shape is None else tuple(given.shape) == tuple(shape)
    if not fits or not given.is_floating_point():
        wish = f"floating point [n, {columns}] with n at least 1" if shape is None else f"floating point {tuple(shape)}"
        raise error(expected(name, wish, f"{given.dtype} {tuple(given.shape)}", where="evaluation"))
    bad = (~torch.isfinite(given)).any(dim=1).nonzero().flatten().tolist()
    if bad:
        row = given[bad[0]]
        value = float(row[~torch.isfinite(row)][0])
        where = f"evaluation, sample {bad[0]}; {len(bad)} of {len(given)} rows"
        raise error(expected(name, "finite", value, where=where))


def check_names(names: Sequence[str], width: int, what: str) -> None:
    """Refuse another number of names than classes or outputs; none is fine."""
    if names and len(names) != width:
        raise ConfigError(expected(what, f"{width} names or none", len(names), where="evaluation"))
