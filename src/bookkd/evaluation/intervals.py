"""Bootstrap intervals: how far a number would move if other samples had been drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.core.rng import generator

__all__ = ["Interval", "bootstrap", "interval_of", "interval_where_known", "resample", "unbiased_interval"]

Floats = npt.NDArray[np.float64]

# Counts of one chunk of replicates: 16 MB as float64, which stays near the processor's caches.
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A value and the interval of its bootstrap replicates.

    Args:
        value: The number, from the samples as they are.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return plain numbers.

        >>> Interval(0.5, 0.4, 0.6).to_json()
        {'value': 0.5, 'low': 0.4, 'high': 0.6}
        """
        return {"value": self.value, "low": self.low, "high": self.high}


def resample(statistic: Callable[[Floats], Floats], n: int, *, replicates: int, seed: int) -> Floats:
    """Evaluate a statistic on bootstrap replicates.

    Drawing n samples with replacement is the same as giving sample i the weight c_i, with counts c that sum to n; a
    statistic of weighted sums is then one matrix product for many replicates.

    Args:
        statistic: Maps counts, float64 [r, n], to values [r, m].
        n: Number of samples, at least 1.
        replicates: Number of replicates, at least 0.
        seed: Seed of the draws.

    Returns:
        float64 [replicates, m].
    """
    at_least(n, 1, "n", where="bootstrap")
    at_least(replicates, 0, "replicates", where="bootstrap")
    draws = generator(seed, "bootstrap")
    rows = max(1, _CHUNK // n)
    if replicates == 0:
        return statistic(np.ones((1, n)))[:0]
    found = []
    for start in range(0, replicates, rows):
        count = min(rows, replicates - start)
        cells = draws.integers(0, n, size=(count, n)) + np.arange(count)[:, None] * n
        counts = np.bincount(cells.ravel(), minlength=count * n).reshape(count, n)
        found.append(statistic(counts.astype(np.float64)))
    return np.concatenate(found)


def interval_of(value: float, replicates: Floats, *, level: float) -> Interval:
    """Return the percentile interval of finite replicates: quantiles (1 - level) / 2 and (1 + level) / 2.

    Without replicates nothing is known of the spread, and both ends are the value.

    >>> interval_of(2.0, np.array([1.0, 2.0, 3.0]), level=0.5)
    Interval(value=2.0, low=1.5, high=2.5)
    """
    if not 0 < level < 1:
        raise ConfigError(expected("level", "above 0 and below 1", level, where="bootstrap", do="Pass 0.95 for 95 %."))
    if len(replicates) == 0:
        return Interval(float(value), float(value), float(value))
    low, high = np.quantile(replicates, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(value), float(low), float(high))


def interval_where_known(value: float, replicates: Floats, *, level: float) -> Interval | None:
    """Return the interval of the replicates that are numbers; None where the value itself is NaN, not defined.

    A class of one sample is missing from every third replicate.

    >>> interval_where_known(2.0, np.array([1.0, np.nan, 3.0]), level=0.5)
    Interval(value=2.0, low=1.5, high=2.5)
    """
    return None if np.isnan(value) else interval_of(value, replicates[~np.isnan(replicates)], level=level)


def unbiased_interval(value: float, replicates: Floats, *, level: float) -> Interval:
    """Return the interval of an error between 0 and 1, moved down by the mean excess of its replicates.

    For sums of absolute values, which make every resample look worse than the sample that it was drawn from.

    >>> unbiased_interval(0.25, np.array([0.25, 0.5, 0.75]), level=0.5)
    Interval(value=0.25, low=0.125, high=0.375)
    """
    excess = replicates.mean() - value if len(replicates) else 0.0
    return interval_of(value, np.clip(replicates - excess, 0, 1), level=level)


def bootstrap(
    statistic: Callable[[Floats], Floats], n: int, *, replicates: int, seed: int, level: float
) -> tuple[Interval, ...]:
    """Return values and percentile bootstrap intervals of m statistics of the same n samples.

    Args:
        statistic: Maps counts, float64 [r, n], to finite values [r, m]; counts of 1 give the value itself.
        n: Number of samples.
        replicates: Number of replicates, such as 1000.
        seed: Seed of the draws.
        level: Share of the replicates inside the interval, such as 0.95.

    Returns:
        m intervals.

    >>> heights = np.array([1.6, 1.7, 1.8, 1.9])
    >>> (mean,) = bootstrap(lambda counts: counts @ heights[:, None] / 4, 4, replicates=200, seed=0, level=0.9)
    >>> mean.value, 1.6 < mean.low < 1.75 < mean.high < 1.9
    (1.75, True)

    Source: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    values = statistic(np.ones((1, n)))[0]
    found = resample(statistic, n, replicates=replicates, seed=seed)
    return tuple(interval_of(value, column, level=level) for value, column in zip(values, found.T, strict=True))
