"""Student's t: quantiles, and intervals of sums of means over seeds, paired where seeds are shared and Welch's where not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from bookkd.core.check import at_least, between
from bookkd.core.errors import ConfigError, expected

__all__ = ["Contrast", "contrast_of", "interval_of_mean", "t_quantile"]


def t_quantile(level: float, dof: float) -> float:
    """Return t with P(|T| <= t) = level, for Student's t with `dof` degrees of freedom.

    Args:
        level: 0 to below 1.
        dof: At least 1; no whole number where variances are unequal.

    >>> round(t_quantile(0.95, 2), 4), round(t_quantile(0.95, 9), 4), round(t_quantile(0.95, 2.5), 4)
    (4.3027, 2.2622, 3.5747)

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.1, in the angle atan(t / sqrt(dof)), which is
    solved for by bisection.
    """
    if not dof >= 1 or math.isinf(dof):
        raise ConfigError(expected("dof", "a number of at least 1", dof))
    between(level, 0, 1 - 1e-12, "level")
    return _quantile(level, float(dof))


@lru_cache(maxsize=4096)
def _quantile(level: float, dof: float) -> float:
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        sine, cosine = math.sin(middle), math.cos(middle)
        inside = _beta_share(0.5, dof / 2, sine * sine, cosine * cosine)
        low, high = (middle, high) if inside < level else (low, middle)
    return math.sqrt(dof) * math.tan((low + high) / 2)


def _beta_share(a: float, b: float, x: float, y: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), with y = 1 - x given at its own precision.

    Source: NIST, "Digital Library of Mathematical Functions", 8.17.22, by Lentz's method.
    """
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(b, a, y, x)
    if x <= 0:
        return 0.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y)) / a
    numerator, denominator = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = denominator
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for part in (even, odd):
            numerator, denominator = 1 + part / numerator, 1 / (1 + part * denominator)
            fraction *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-15:
            break
    return front * fraction


def interval_of_mean(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return Student's interval of the mean of at least two values.

    >>> low, high = interval_of_mean([-0.2, 0.0, -0.3])
    >>> round(low, 6), round(high, 6)
    (-0.546125, 0.212792)
    """
    mean = statistics.fmean(values)
    half = t_quantile(level, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


_ROUNDING = 1e-9


def _or_zero(mean: float, noise: float) -> float:
    return 0.0 if abs(mean) <= noise else mean


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of the means of cells, such as one arm less another.

    Args:
        mean: The sum.
        sd: Standard deviation of the sums of each seed, with n - 1; None for one seed, and where seeds are not paired.
        se: Standard error of the mean; None for one seed.
        low: Lower end of its 95 % interval; None for one seed.
        high: Upper end.
        n: Number of seeds that all cells have; where seeds are not paired, of the cell that has fewest.
        paired: Whether cells are compared seed by seed.
    """

    mean: float
    sd: float | None
    se: float | None
    low: float | None
    high: float | None
    n: int
    paired: bool

    @property
    def spread(self) -> bool:
        """Whether there is an interval with a width: seeds that all agree say nothing of how far others would differ."""
        return self.low is not None and self.high is not None and self.low < self.high


def contrast_of(
    cells: Sequence[Mapping[int, float]], weights: Sequence[float], *, paired: bool | None = None
) -> Contrast | None:
    """Return a weighted sum of the means of cells with its error and interval; None where a cell is empty.

    Cells with at least two seeds in common are paired: the interval is Student's, of the sums of these seeds. Others are not,
    and the interval is Welch's, with dof by Welch and Satterthwaite:

        se^2 = sum_c e_c,   e_c = weight_c^2 variance_c / n_c       dof = se^4 / sum_c (e_c^2 / (n_c - 1))

    A mean or a deviation below 1e-9 of the largest figure is rounding and counts as 0.

    Args:
        cells: Seed -> figure, one mapping a cell.
        weights: One a cell.
        paired: Pair the seeds that all cells have, or none at all; found out where None.

    Raises:
        ConfigError: to be paired without a seed in common.

    >>> found = contrast_of([{0: 3.0, 1: 5.0}, {2: 1.0, 3: 2.0}], (1, -1))
    >>> found.mean, round(found.se, 4), found.paired
    (2.5, 1.118, False)

    Source: B. Welch, "The generalization of 'Student's' problem when several different population variances are involved",
    Biometrika 34, 1947.
    """
    at_least(len(cells), 1, "cells", where="contrast")
    if not all(cells):
        return None
    shared = sorted(set.intersection(*(set(cell) for cell in cells)))
    fewest = min(map(len, cells))
    noise = _ROUNDING * max(abs(figure) for cell in cells for figure in cell.values())
    if paired and not shared:
        raise ConfigError(expected("cells", "of seeds in common, to be paired", "none", where="contrast"))
    if paired or (paired is None and (len(shared) > 1 or (shared and fewest < 2))):
        sums = [sum(weight * cell[seed] for cell, weight in zip(cells, weights, strict=True)) for seed in shared]
        return _paired(sums, noise)
    mean = _or_zero(
        sum(weight * statistics.fmean(cell.values()) for cell, weight in zip(cells, weights, strict=True)), noise
    )
    if fewest < 2:
        return Contrast(mean, None, None, None, None, fewest, paired=False)
    pairs = zip(cells, weights, strict=True)
    errors = [weight**2 * statistics.variance(cell.values()) / len(cell) for cell, weight in pairs]
    se = math.sqrt(sum(errors))
    if se <= noise:
        return Contrast(mean, None, 0.0, mean, mean, fewest, paired=False)
    # By shares of the error, since squares of small variances vanish.
    dof = 1 / sum((error / se**2) ** 2 / (len(cell) - 1) for error, cell in zip(errors, cells, strict=True))
    half = t_quantile(0.95, max(1.0, dof)) * se
    return Contrast(mean, None, se, mean - half, mean + half, fewest, paired=False)


def _paired(sums: Sequence[float], noise: float) -> Contrast:
    mean = _or_zero(statistics.fmean(sums), noise)
    if len(sums) == 1:
        return Contrast(mean, None, None, None, None, 1, paired=True)
    sd, (low, high) = statistics.stdev(sums), interval_of_mean(sums)
    if sd <= noise:
        return Contrast(mean, 0.0, 0.0, mean, mean, len(sums), paired=True)
    return Contrast(mean, sd, sd / math.sqrt(len(sums)), low, high, len(sums), paired=True)
