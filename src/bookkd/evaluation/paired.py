"""Differences between arms over seeds: paired, with Student's interval, and said to be noise where they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from bookkd.core.check import at_least, between
from bookkd.core.errors import DataError, expected

__all__ = ["Difference", "Interaction", "difference_of", "interaction_of", "interval_of_mean", "t_quantile"]

MORE = "more than the noise between seeds"
INSIDE = "inside the noise between seeds"
UNKNOWN = "one seed: no statement about noise"
EQUAL = "the same in every seed: no statement about noise"


def t_quantile(level: float, dof: int) -> float:
    """Return t with P(|T| <= t) = level, for Student's t with `dof` degrees of freedom.

    Args:
        level: 0 to below 1.
        dof: Whole number, at least 1.

    >>> round(t_quantile(0.95, 2), 4), round(t_quantile(0.95, 9), 4)
    (4.3027, 2.2622)

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4: finite sums in the angle
    atan(t / sqrt(dof)), which are solved by bisection.
    """
    at_least(dof, 1, "dof")
    between(level, 0, 1 - 1e-12, "level")
    return _quantile(level, dof)


@lru_cache(maxsize=4096)
def _quantile(level: float, dof: int) -> float:
    low, high = 0.0, math.pi / 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, dof) < level else (low, middle)
    return math.sqrt(dof) * math.tan((low + high) / 2)


def _inside(angle: float, dof: int) -> float:
    """Return P(|T| <= sqrt(dof) tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = dof % 2
    factor = total = (cosine if dof > 1 else 0.0) if odd else 1.0
    for k in range(2 + odd, dof - 1, 2):
        factor *= (k - 1) / k * cosine * cosine
        total += factor
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


def interval_of_mean(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return Student's interval of the mean of at least two values.

    >>> low, high = interval_of_mean([-0.2, 0.0, -0.3])
    >>> round(low, 6), round(high, 6)
    (-0.546125, 0.212792)
    """
    mean = statistics.fmean(values)
    half = t_quantile(level, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


@dataclass(frozen=True)
class Difference:
    """A figure of an arm less that of the arm it is held against, over the seeds that both have.

    Args:
        against: Name of the other arm.
        mean: Mean of the differences.
        sd: Their standard deviation, with n - 1; None for one seed.
        low: Lower end of the 95 % interval of the mean; None for one seed.
        high: Upper end.
        n: Number of seeds that both have.
        verdict: Whether it is more than the noise, in words.
        better: Whether the arm is better, False for worse, where it is more than the noise; None where that is not known.
    """

    against: str
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int
    verdict: str
    better: bool | None = None


def difference_of(
    mine: Mapping[int, float], theirs: Mapping[int, float], against: str, *, lower_is_better: bool = False
) -> Difference | None:
    """Return the difference of two arms, paired by seed; None where they share no seed.

    Args:
        mine: Seed -> figure of the arm.
        theirs: Seed -> figure of the other.
        against: Name of the other.
        lower_is_better: Whether the figure is an error; see `evaluation.lower_is_better`.

    >>> found = difference_of({0: 0.72, 1: 0.75, 2: 0.73}, {0: 0.70, 1: 0.72, 2: 0.71}, "labels only")
    >>> round(found.mean, 4), found.verdict, found.better
    (0.0233, 'more than the noise between seeds', True)
    """
    shared = sorted(mine.keys() & theirs.keys())
    if not shared:
        return None
    gaps = [mine[seed] - theirs[seed] for seed in shared]
    mean = statistics.fmean(gaps)
    if len(gaps) == 1:
        return Difference(against, mean, None, None, None, 1, UNKNOWN)
    low, high = interval_of_mean(gaps)
    # Seeds that agree to the last digit, as accuracies on few samples do, say nothing of how far others would differ.
    apart = EQUAL if low == high != 0 else MORE
    verdict = INSIDE if low <= 0 <= high else apart
    better = (mean < 0) == lower_is_better if verdict == MORE else None
    return Difference(against, mean, statistics.stdev(gaps), low, high, len(gaps), verdict, better)


@dataclass(frozen=True)
class Interaction:
    """Whether distillation and another technique add up, from four cells over the same seeds.

    Args:
        distillation: Gain of distillation alone.
        partner: Gain of the other technique alone.
        joint: Gain of both.
        interaction: Joint gain less the sum of both gains: 0 is additive, below 0 overlap, above 0 synergy.
        se: Its standard error, paired by seed; None for one seed.
        low: Lower end of its 95 % interval; None for one seed.
        high: Upper end.
        retention: Share of distillation's gain that is left beside the partner; None where that gain is inside the noise.
        n: Number of seeds.
        verdict: "additive", "orthogonal (weak)", "conflicting" or "undecided".
    """

    distillation: float
    partner: float
    joint: float
    interaction: float
    se: float | None
    low: float | None
    high: float | None
    retention: float | None
    n: int
    verdict: Literal["additive", "orthogonal (weak)", "conflicting", "undecided"]


def interaction_of(
    base: Mapping[int, float],
    distilled: Mapping[int, float],
    partner: Mapping[int, float],
    both: Mapping[int, float],
    *,
    tolerance: float,
) -> Interaction:
    """Compare four cells, paired by seed.

    I = Q(both) - Q(distilled) - Q(partner) + Q(base) for each seed. "additive": the interval of I contains 0 and is narrower than
    `tolerance`; "orthogonal (weak)": the joint gain exceeds the larger single gain by more than the noise; "conflicting": it
    falls short of it by more than the noise; else "undecided".

    Args:
        base: Seed -> figure without either.
        distilled: With distillation alone.
        partner: With the other technique alone.
        both: With both.
        tolerance: Widest interval that counts as additive, in the figure's unit (0.3 points of accuracy on the card).

    Raises:
        DataError: if the four share no seed.

    Source: our measurement plan for Park et al., "On the Orthogonality of Knowledge Distillation with Other Techniques",
    arXiv 2009.04120, of which only the abstract was read.
    """
    seeds = sorted(base.keys() & distilled.keys() & partner.keys() & both.keys())
    if not seeds:
        raise DataError(expected("cells", "of at least one common seed", "none", where="interaction"))
    gains = {
        name: [cell[seed] - base[seed] for seed in seeds]
        for name, cell in (("distilled", distilled), ("partner", partner), ("both", both))
    }
    means = {name: statistics.fmean(values) for name, values in gains.items()}
    each = [ab - a - b for ab, a, b in zip(gains["both"], gains["distilled"], gains["partner"], strict=True)]
    larger = max(("distilled", "partner"), key=means.__getitem__)
    excess = [ab - one for ab, one in zip(gains["both"], gains[larger], strict=True)]
    low, high = interval_of_mean(each) if len(seeds) > 1 else (None, None)
    return Interaction(
        distillation=means["distilled"],
        partner=means["partner"],
        joint=means["both"],
        interaction=statistics.fmean(each),
        se=statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else None,
        low=low,
        high=high,
        retention=(means["both"] - means["partner"]) / means["distilled"] if _certain(gains["distilled"]) else None,
        n=len(seeds),
        verdict=_verdict(low, high, excess, tolerance),
    )


def _certain(gains: Sequence[float]) -> bool:
    """Say whether a mean can be divided by: by Fieller's theorem the ratio has a bounded interval if this mean's lacks 0."""
    if len(gains) == 1:
        return gains[0] != 0
    low, high = interval_of_mean(gains)
    return not low <= 0 <= high


def _verdict(
    low: float | None, high: float | None, excess: Sequence[float], tolerance: float
) -> Literal["additive", "orthogonal (weak)", "conflicting", "undecided"]:
    if low is None or high is None:
        return "undecided"
    if low <= 0 <= high and high - low < tolerance:
        return "additive"
    least, most = interval_of_mean(excess)
    if least > 0 or (least == most == 0 < excess[0]):
        return "orthogonal (weak)"
    return "conflicting" if most < 0 else "undecided"
