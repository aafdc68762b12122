"""What an average hides: calibration by confidence, recall by class against the baseline, and who is taken for whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bookkd.core.errors import DataError, expected
from bookkd.evaluation import Difference, difference_of
from bookkd.report.arms import Arm, Spread
from bookkd.report.runs import FoundRun, listed, mapped, number
from bookkd.report.teachers import Counts, confusion_of

__all__ = [
    "Bin",
    "Calibration",
    "ClassDifference",
    "Confusion",
    "Mistake",
    "calibration_of",
    "class_differences",
    "class_values",
    "confusions_of",
]

_MISTAKES = 10
_MEASURES = {"segmentation": ("iou", "IoU"), "multi-label": ("average_precision", "average precision")}
"""Task -> what its records hold of each class, and its name; recall of others."""


@dataclass(frozen=True)
class Bin:
    """Samples whose confidence is in one range, of all seeds of an arm together.

    Args:
        low: Lower end of the range.
        high: Upper end.
        count: Number of samples.
        confidence: Mean confidence.
        accuracy: Share that is right.
    """

    low: float
    high: float
    count: float
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """What temperature scaling does to one arm.

    Args:
        arm: Its name.
        temperature: Over the seeds.
        fitted_on: The split it was fitted on.
        ece: Before.
        ece_after: After.
        nll: Before.
        nll_after: After.
        before: Bins that hold samples.
        after: The same after scaling.
    """

    arm: str
    temperature: Spread | None
    fitted_on: str
    ece: Spread | None
    ece_after: Spread | None
    nll: Spread | None
    nll_after: Spread | None
    before: tuple[Bin, ...]
    after: tuple[Bin, ...]


@dataclass(frozen=True)
class ClassDifference:
    """How one class fares in one arm, less that in the arm it is held against.

    Args:
        arm: Name of the arm.
        name: Name of the class.
        measure: Of a class: "recall", "IoU" of pixels, "average precision" where classes are there or not.
        value: Of the arm.
        difference: To the baseline, paired by seed.
    """

    arm: str
    name: str
    measure: str
    value: Spread
    difference: Difference


@dataclass(frozen=True)
class Mistake:
    """A class taken for another.

    Args:
        true: What it is.
        predicted: What the student takes it for.
        student: Share of the samples of the true class that the student takes so.
        teacher: The same of the teacher; None where it was not measured.
    """

    true: str
    predicted: str
    student: float
    teacher: float | None


@dataclass(frozen=True)
class Confusion:
    """Who is taken for whom, all seeds of an arm together.

    Args:
        arm: Its name.
        class_names: In the order of rows and columns.
        student: Share of each true class (row) that is taken for each class (column).
        teacher: The same of the teacher; empty where it was not measured.
        mistakes: The most frequent ones of the student.
    """

    arm: str
    class_names: tuple[str, ...]
    student: tuple[tuple[float, ...], ...]
    teacher: tuple[tuple[float, ...], ...]
    mistakes: tuple[Mistake, ...]


def calibration_of(arms: Sequence[Arm]) -> tuple[Calibration, ...]:
    """Return calibration before and after temperature scaling, of the arms that have it."""
    return tuple(_calibration(arm) for arm in arms if any(run.record.calibration for run in arm.done))


def _calibration(arm: Arm) -> Calibration:
    def told(key: str) -> Spread | None:
        return arm.spread(lambda run: number(run, run.record.calibration, key))

    def measured(key: str) -> Spread | None:
        return arm.spread(lambda run: number(run, run.record.metrics, key, "value"))

    fitted = dict.fromkeys(str(run.record.calibration.get("fitted_on") or "") for run in arm.done)
    return Calibration(
        arm=arm.name,
        temperature=told("temperature"),
        fitted_on=", ".join(name for name in fitted if name),
        ece=measured("ece"),
        ece_after=told("ece_after"),
        nll=measured("nll"),
        nll_after=told("nll_after"),
        before=_bins(arm, "before"),
        after=_bins(arm, "after"),
    )


def _bins(arm: Arm, when: str) -> tuple[Bin, ...]:
    sums: dict[tuple[float, float], list[float]] = {}
    for run in arm.done:
        for entry in listed(run, run.record.calibration.get(when), f"calibration.{when}"):
            found = mapped(run, entry, f"calibration.{when}")
            low, high, count, confidence, accuracy = (
                number(run, found, key) for key in ("low", "high", "count", "confidence", "accuracy")
            )
            if low is None or high is None or not count or confidence is None or accuracy is None:
                continue  # an empty bin has neither confidence nor accuracy
            total = sums.setdefault((low, high), [0.0, 0.0, 0.0])
            for place, part in enumerate((count, count * confidence, count * accuracy)):
                total[place] += part
    return tuple(Bin(low, high, n, sure / n, right / n) for (low, high), (n, sure, right) in sorted(sums.items()))


def class_differences(arms: Sequence[Arm], baselines: Mapping[str, Arm]) -> tuple[ClassDifference, ...]:
    """Return each class against the baseline, arm by arm, the greatest loss first."""
    found = []
    for arm in arms:
        base = baselines.get(arm.name)
        if base is not None and arm.done:
            found += sorted(_against(arm, base), key=lambda each: each.difference.mean)
    return tuple(found)


def _against(arm: Arm, base: Arm) -> list[ClassDifference]:
    found = []
    measure, _ = class_values(arm.first)
    for place, name in enumerate(_names(arm, max(len(class_values(run)[1]) for run in arm.done))):
        difference = difference_of(arm.by_seed(_reader(place)), base.by_seed(_reader(place)), base.name)
        value = arm.spread(_reader(place))
        if difference is not None and value is not None:
            found.append(ClassDifference(arm.name, name, measure, value, difference))
    return found


def class_values(run: FoundRun) -> tuple[str, tuple[float | None, ...]]:
    """Return what is measured of each class, in words, and its values; None where a class has none."""
    record = run.record
    key, words = _MEASURES.get(record.task, ("", "recall"))
    ranked = listed(run, record.per_class.get(key), f"per_class.{key}") if key else record.per_class_recall
    return words, tuple(number(run, mapped(run, entry, "per_class"), "value") for entry in ranked)


def _reader(place: int) -> Callable[[FoundRun], float | None]:
    return lambda run: _at(run, place)


def _at(run: FoundRun, place: int) -> float | None:
    _, values = class_values(run)
    return values[place] if place < len(values) else None


def _names(arm: Arm, count: int) -> tuple[str, ...]:
    """Return a name for each class; a number where the record has no names for all."""
    names = arm.first.record.class_names
    return tuple(str(name) for name in names) if len(names) == count else tuple(map(str, range(count)))


def confusions_of(arms: Sequence[Arm]) -> tuple[Confusion, ...]:
    """Return the confusions of the arms that have them."""
    found = ((arm, _summed(arm, "student"), _summed(arm, "teacher")) for arm in arms)
    return tuple(_confusion(arm, mine, theirs) for arm, mine, theirs in found if mine is not None)


def _summed(arm: Arm, who: str) -> Counts | None:
    total: Counts | None = None
    for run in arm.done:
        counts = confusion_of(run, who)
        if counts is None:
            continue
        if total is not None and counts.shape != total.shape:
            wish = f"of {len(total)} classes, as in the other seeds"
            raise DataError(expected(f"confusion.{who}", wish, len(counts), where=run.where))
        total = counts if total is None else total + counts
    return total


def _confusion(arm: Arm, mine: Counts, theirs: Counts | None) -> Confusion:
    names = _names(arm, len(mine))
    student, teacher = _shares(mine), None if theirs is None or theirs.shape != mine.shape else _shares(theirs)
    wrong = student - np.diag(np.diag(student))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MISTAKES]
    places = [(int(place) // len(names), int(place) % len(names)) for place in order]
    mistakes = tuple(
        Mistake(
            names[row],
            names[column],
            float(wrong[row, column]),
            None if teacher is None else float(teacher[row, column]),
        )
        for row, column in places
        if wrong[row, column] > 0
    )
    return Confusion(arm.name, names, _plain(student), () if teacher is None else _plain(teacher), mistakes)


def _shares(counts: Counts) -> Counts:
    total = counts.sum(axis=1, keepdims=True)
    shares: Counts = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    return shares


def _plain(shares: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in shares.tolist())
