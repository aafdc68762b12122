"""What moves over epochs: learning curves and the entropy scalar, by arm, mean and range over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bookkd.report.arms import Arm
from bookkd.report.columns import QUALITY
from bookkd.report.runs import FoundRun, number

__all__ = ["ENTROPIES", "Series", "curves_of", "series_of", "thinned"]

ENTROPIES = ("train/entropy_scale", "train/book_entropy", "train/student_entropy")
"""Entries that `bookkd` adds: the trained scalar, and the entropies of book and student in nats."""


@dataclass(frozen=True)
class Series:
    """One entry of the curves of one arm.

    Args:
        arm: Name of the arm.
        entry: Name of the entry.
        epochs: Epochs that a run has it for.
        mean: Mean over the seeds, one an epoch.
        low: Least of the seeds.
        high: Most of the seeds.
    """

    arm: str
    entry: str
    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curves_of(task: str) -> tuple[str, ...]:
    """Return the entries of a curve that the report shows where they are: the task's own metrics first.

    >>> curves_of("classification")
    ('val/accuracy', 'val/nll', 'val/ece', 'train/loss', 'lr')
    """
    # While learning nothing is measured by class, and no teacher is asked about the validation samples.
    keys = [column.key for column in QUALITY[task] if column.key not in ("worst_class", "agreement")]
    return (*(f"val/{key}" for key in keys if not key.startswith("teacher_")), "train/loss", "lr")


def series_of(arms: Sequence[Arm], entries: Sequence[str]) -> tuple[Series, ...]:
    """Return the entries that an arm has, arm by arm."""
    found = (_series(arm, entry) for arm in arms for entry in entries)
    return tuple(series for series in found if series.epochs)


def _series(arm: Arm, entry: str) -> Series:
    at: dict[int, list[float]] = {}
    for run in arm.done:
        for epoch, value in _points(run, entry):
            at.setdefault(epoch, []).append(value)
    epochs = sorted(at)
    return Series(
        arm.name,
        entry,
        tuple(epochs),
        tuple(sum(at[epoch]) / len(at[epoch]) for epoch in epochs),
        tuple(min(at[epoch]) for epoch in epochs),
        tuple(max(at[epoch]) for epoch in epochs),
    )


def _points(run: FoundRun, entry: str) -> list[tuple[int, float]]:
    found = []
    for line in run.record.curve:
        epoch, value = number(run, line, "epoch"), number(run, line, entry)
        if epoch is not None and value is not None:
            found.append((int(epoch), value))
    return found


def thinned(epochs: Sequence[int], most: int) -> list[int]:
    """Return the places of at most `most` epochs, evenly spread, first and last among them.

    >>> thinned([1, 2, 3, 4, 5], 3)
    [0, 2, 4]
    """
    if len(epochs) <= most:
        return list(range(len(epochs)))
    return sorted({round(step * (len(epochs) - 1) / (most - 1)) for step in range(most)})
