"""Which views make a good book, told from the teacher alone: T. stddev, and what else its probabilities say of the views."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.core.check import at_least
from bookkd.core.errors import DataError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.evaluation.intervals import Interval, interval_of, interval_where_known, resample

__all__ = ["ViewScore", "compare_views", "score_views", "teacher_stddev"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ViewScore:
    """What a teacher's probabilities say of the views of one recipe; intervals are bootstrapped over groups.

    Args:
        stddev: T. stddev, see `teacher_stddev`; lower is better among scores of one `group_rows`.
        entropy: Mean entropy of the probabilities, in nats.
        sharpness: Mean of the largest probability, 1 / classes to 1.
        agreement: Share of rows whose likeliest class is the label, or the partner's label; None where no label is known.
        group_rows: Rows of a group.
        groups: Groups.
        means: Mean probability of each group, [groups, classes].
    """

    stddev: Interval
    entropy: Interval
    sharpness: Interval
    agreement: Interval | None
    group_rows: int
    groups: int
    means: Floats = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the means."""
        return {
            "stddev": self.stddev.to_json(),
            "entropy": self.entropy.to_json(),
            "sharpness": self.sharpness.to_json(),
            "agreement": None if self.agreement is None else self.agreement.to_json(),
            "group_rows": self.group_rows,
            "groups": self.groups,
        }


def teacher_stddev(means: npt.ArrayLike, *, unbiased: bool) -> float:
    """Return T. stddev = mean_c std_g(u_gc): how far the teacher's mean probability moves from group to group.

    Groups of n rows shrink it by about 1 / sqrt(n), so that it is compared at one size of groups alone.

    Args:
        means: u, mean probability of each class in each group, [groups, classes].
        unbiased: Divide by groups - 1, as the source does, or by groups.

    Returns:
        At least 0; lower is better.

    Raises:
        DataError: for fewer than two groups, or another shape.

    >>> u = [[0.2, 0.5, 0.3], [0.25, 0.45, 0.3], [0.15, 0.5, 0.35]]
    >>> round(teacher_stddev(u, unbiased=True), 6), round(teacher_stddev(u, unbiased=False), 6)
    (0.035912, 0.029322)

    Source: Wang, Lohit, Jones, Fu, "What Makes a 'Good' Data Augmentation in Knowledge Distillation", NeurIPS 2022,
    arXiv 2012.02909, and its code, whose groups are of 640 rows, half of them not augmented. Ours hold views alone, of
    samples without repeats; sizes of groups are the caller's.
    """
    found = np.asarray(means, dtype=np.float64)
    if found.ndim != 2 or len(found) < 2:
        do = "Ask for more passes or smaller groups."
        wish = "two groups at least, [groups, classes]"
        raise DataError(expected("means", wish, f"shape {found.shape}", where="teacher_stddev", do=do))
    return float(found.std(axis=0, ddof=int(unbiased)).mean())


def score_views(
    logits: npt.ArrayLike,
    *,
    group_rows: int,
    labels: npt.ArrayLike | None = None,
    partner_labels: npt.ArrayLike | None = None,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> ViewScore:
    """Score the views of one recipe from what a teacher says of a sample of them.

    Args:
        logits: In random order of samples, [rows, classes]; rows g group_rows to (g + 1) group_rows are group g, and what
            is left behind the last whole group is not counted.
        group_rows: Rows of a group, at least 1; 640 in the source.
        labels: Classes [rows], `IGNORE_LABEL` where unknown; None where none is known.
        partner_labels: Of the samples that mixed views are mixed with, likewise.
        replicates: Bootstrap replicates of the intervals.
        seed: Of their draws.
        level: Share of the replicates inside an interval.

    Raises:
        DataError: for fewer than two whole groups, or logits that are not finite.

    >>> found = score_views(np.zeros((64, 4)), group_rows=8, labels=np.zeros(64, dtype=int))
    >>> found.stddev.value, round(found.entropy.value, 4), found.sharpness.value, found.agreement.value
    (0.0, 1.3863, 0.25, 1.0)

    Source: `teacher_stddev`; that entropy, sharpness and agreement help to read it is our choice. A view that shows
    nothing has the best T. stddev of all, 0, and is told by its agreement.
    """
    at_least(group_rows, 1, "group_rows", where="score_views")
    given = np.asarray(logits, dtype=np.float64)
    groups = len(given) // group_rows
    if given.ndim != 2 or groups < 2 or not np.isfinite(given).all():
        wish = f"finite, [rows, classes], two groups of {group_rows} rows at least"
        got = f"shape {given.shape}" if given.ndim != 2 or groups < 2 else "infinite values"
        raise DataError(expected("logits", wish, got, where="score_views"))
    rows = groups * group_rows
    log_p = given[:rows] - given[:rows].max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    right, known = _agreement(given[:rows], labels, partner_labels)

    def of_group(values: npt.NDArray[Any]) -> Floats:
        found: Floats = values.reshape(groups, group_rows, -1).sum(axis=1)
        return found

    means = of_group(p) / group_rows
    sums = of_group(np.stack([-(p * log_p).sum(axis=1), p.max(axis=1), right, known], axis=1))

    def statistic(counts: Floats) -> Floats:
        entropy, sharpness, agreed, labelled = (counts @ sums).T
        with np.errstate(invalid="ignore"):
            return np.stack([entropy / rows, sharpness / rows, agreed / labelled, _stddev(counts, means)], axis=1)

    value = statistic(np.ones((1, groups)))[0]
    drawn = resample(statistic, groups, replicates=replicates, seed=seed)
    return ViewScore(
        stddev=interval_of(value[3], drawn[:, 3] * _inflation(groups), level=level),
        entropy=interval_of(value[0], drawn[:, 0], level=level),
        sharpness=interval_of(value[1], drawn[:, 1], level=level),
        agreement=interval_where_known(value[2], drawn[:, 2], level=level),
        group_rows=group_rows,
        groups=groups,
        means=means,
    )


def compare_views(
    one: ViewScore, other: ViewScore, *, replicates: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return T. stddev of one recipe less that of another, over the same groups of samples: below 0, the one is better.

    Both are resampled together, since groups whose classes are unequally many move the teacher alike under both.

    Args:
        one: Of a recipe.
        other: Of another, from views of the same samples in the same order.
        replicates: Bootstrap replicates.
        seed: Of their draws.
        level: Share of the replicates inside the interval.

    Raises:
        DataError: where groups differ in number or size.
    """
    if (one.groups, one.group_rows) != (other.groups, other.group_rows):
        got = f"{one.groups} of {one.group_rows} and {other.groups} of {other.group_rows} rows"
        raise DataError(expected("groups", "of one number and size", got, where="compare_views"))

    def statistic(counts: Floats) -> Floats:
        return (_stddev(counts, one.means) - _stddev(counts, other.means))[:, None]

    drawn = resample(statistic, one.groups, replicates=replicates, seed=seed)[:, 0] * _inflation(one.groups)
    return interval_of(one.stddev.value - other.stddev.value, drawn, level=level)


def _stddev(counts: Floats, means: Floats) -> Floats:
    """Return T. stddev of groups that are counted so often each, [replicates, groups] -> [replicates]."""
    groups = len(means)
    # Centred first, so that the difference of squares loses no digits.
    centred = means - means.mean(axis=0)
    middle = counts @ centred / groups
    squares = counts @ centred**2 - groups * middle**2
    found: Floats = np.sqrt(np.clip(squares, 0, None) / (groups - 1)).mean(axis=1)
    return found


def _inflation(groups: int) -> float:
    """Return what a replicate's deviation is short of: drawn from the groups themselves, its square is (groups - 1) / groups of theirs."""
    return float((groups / (groups - 1)) ** 0.5)


def _agreement(
    logits: Floats, labels: npt.ArrayLike | None, partner_labels: npt.ArrayLike | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return for each row whether its likeliest class is a label of it, and whether a label is known."""
    said = logits.argmax(axis=1)
    right = known = np.zeros(len(said), dtype=bool)
    for given in (labels, partner_labels):
        if given is None:
            continue
        mine = np.asarray(given)[: len(said)]
        if mine.shape != said.shape:
            raise DataError(expected("labels", f"one class for each of {len(said)} rows", f"shape {mine.shape}"))
        right, known = right | (said == mine), known | (mine != IGNORE_LABEL)
    return right & known, known
