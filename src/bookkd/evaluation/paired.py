"""Differences between arms over seeds: paired where they can be, with Student's interval, and said to be noise where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bookkd.core.errors import DataError, expected
from bookkd.evaluation.student_t import Contrast, contrast_of

__all__ = ["Difference", "Interaction", "difference_of", "interaction_of"]

MORE = "more than the noise between seeds"
INSIDE = "inside the noise between seeds"
UNKNOWN = "one seed: no statement about noise"
EQUAL = "the same in every seed: no statement about noise"
UNPAIRED = ", seeds not paired"
"""Behind a verdict where arms have no two seeds in common."""


@dataclass(frozen=True)
class Difference:
    """A figure of an arm less that of the arm it is held against, over the seeds that both have.

    Args:
        against: Name of the other arm.
        mean: Mean of the differences; of unpaired seeds the difference of the means.
        sd: Their standard deviation, with n - 1; None for one seed, and where seeds are not paired.
        low: Lower end of the 95 % interval of the mean, Student's, or Welch's where seeds are not paired; None for one seed, and
            where all seeds differ alike, which says nothing of how far others would.
        high: Upper end.
        n: Number of seeds that both have; where seeds are not paired, of the arm that has fewer.
        verdict: Whether it is more than the noise, in words, which end with "seeds not paired" where they are not.
        better: Whether the arm is better, False for worse, where it is more than the noise; None where that is not known.
        paired: Whether the arms are compared seed by seed.
    """

    against: str
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int
    verdict: str
    better: bool | None = None
    paired: bool = True


def difference_of(
    mine: Mapping[int, float], theirs: Mapping[int, float], against: str, *, lower_is_better: bool = False
) -> Difference | None:
    """Return the difference of two arms; None where one has no seed.

    Arms with at least two seeds in common are paired by seed, others are not; see `contrast_of`.

    Args:
        mine: Seed -> figure of the arm.
        theirs: Seed -> figure of the other.
        against: Name of the other.
        lower_is_better: Whether the figure is an error; see `evaluation.lower_is_better`.

    >>> found = difference_of({0: 0.72, 1: 0.75, 2: 0.73}, {0: 0.70, 1: 0.72, 2: 0.71}, "labels only")
    >>> round(found.mean, 4), found.verdict, found.better
    (0.0233, 'more than the noise between seeds', True)
    """
    found = contrast_of([mine, theirs], (1, -1))
    if found is None:
        return None
    verdict, low, high = UNKNOWN, found.low, found.high
    if low is not None and high is not None:
        # Seeds that agree, as accuracies on few samples do, say nothing of how far others would differ.
        verdict = INSIDE if low <= 0 <= high else MORE if found.spread else EQUAL
        low, high = (low, high) if found.spread else (None, None)
    better = (found.mean < 0) == lower_is_better if verdict == MORE else None
    told = verdict + ("" if found.paired else UNPAIRED)
    return Difference(against, found.mean, found.sd, low, high, found.n, told, better, found.paired)


@dataclass(frozen=True)
class Interaction:
    """Whether distillation and another technique add up, from four cells, over the same seeds where they have them.

    Args:
        distillation: Gain of distillation alone.
        partner: Gain of the other technique alone.
        joint: Gain of both.
        interaction: Joint gain less the sum of both gains: 0 is additive, below 0 overlap, above 0 synergy.
        se: Its standard error; None for one seed.
        low: Lower end of its 95 % interval; None for one seed.
        high: Upper end.
        retention: Share of distillation's gain that is left beside the partner; None where that gain is inside the noise.
        n: Number of seeds; where they are not paired, of the cell that has fewest.
        verdict: "additive", "orthogonal (weak)", "conflicting" or "undecided".
        paired: Whether the cells are compared seed by seed.
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
    paired: bool = True


def interaction_of(
    base: Mapping[int, float],
    distilled: Mapping[int, float],
    partner: Mapping[int, float],
    both: Mapping[int, float],
    *,
    tolerance: float,
) -> Interaction:
    """Compare four cells, paired by seed where they have two seeds in common; see `contrast_of`.

    I = Q(both) - Q(distilled) - Q(partner) + Q(base). "additive": the interval of I contains 0 and is narrower than
    `tolerance`; "orthogonal (weak)": the joint gain exceeds the larger single gain by more than the noise; "conflicting": it
    falls short of it by more than the noise; else "undecided", as it is where all seeds agree, which tells nothing of noise.

    Args:
        base: Seed -> figure without either.
        distilled: With distillation alone.
        partner: With the other technique alone.
        both: With both.
        tolerance: Widest interval that counts as additive, in the figure's unit (0.3 points of accuracy on the card).

    Raises:
        DataError: if one of the four has no seed.

    Source: our measurement plan for Park et al., "On the Orthogonality of Knowledge Distillation with Other Techniques",
    arXiv 2009.04120, of which only the abstract was read.
    """
    cells = [base, distilled, partner, both]
    found = contrast_of(cells, (1, -1, -1, 1))
    if found is None:
        raise DataError(expected("cells", "of at least one seed each", "one without", where="interaction"))
    if found.paired:
        shared = set.intersection(*(set(cell) for cell in cells))
        cells = [{seed: cell[seed] for seed in shared} for cell in cells]
    gains = [_gain(cell, cells[0], found.paired) for cell in cells[1:]]
    alone, other, joint = (gain.mean for gain in gains)
    return Interaction(
        distillation=alone,
        partner=other,
        joint=joint,
        interaction=found.mean,
        se=found.se,
        low=found.low,
        high=found.high,
        retention=(joint - other) / alone if _certain(gains[0]) else None,
        n=found.n,
        verdict=_verdict(found, _gain(cells[3], cells[1] if alone >= other else cells[2], found.paired), tolerance),
        paired=found.paired,
    )


def _gain(cell: Mapping[int, float], base: Mapping[int, float], paired: bool) -> Contrast:
    # As the interaction is, since otherwise it would not be the joint gain less the others.
    found = contrast_of([cell, base], (1, -1), paired=paired)
    if found is None:
        raise DataError(expected("cells", "of at least one seed each", "one without", where="interaction"))
    return found


def _certain(gain: Contrast) -> bool:
    """Say whether a mean can be divided by: by Fieller's theorem the ratio has a bounded interval if this mean's lacks 0."""
    if gain.low is None or gain.high is None:
        return gain.mean != 0
    return gain.spread and not gain.low <= 0 <= gain.high


def _verdict(
    found: Contrast, excess: Contrast, tolerance: float
) -> Literal["additive", "orthogonal (weak)", "conflicting", "undecided"]:
    """Judge an interaction, and what both together give beyond the larger single gain."""
    if found.low is None or found.high is None or excess.low is None or excess.high is None:
        return "undecided"
    if not found.spread:
        return "undecided"
    if found.low <= 0 <= found.high and found.high - found.low < tolerance:
        return "additive"
    if excess.low > 0:
        return "orthogonal (weak)"
    return "conflicting" if excess.high < 0 else "undecided"
