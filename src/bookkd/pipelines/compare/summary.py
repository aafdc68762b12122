"""What a sweep found: one row an arm, each held against its baseline over the same seeds, and what it all cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bookkd.evaluation import difference_of
from bookkd.pipelines.compare.arms import Arm, student_label
from bookkd.pipelines.compare.sweep import Sweep
from bookkd.pipelines.compare.tables import ablation, orthogonality
from bookkd.report import FoundRun, RunRecord
from bookkd.report.books import books_of

__all__ = ["Records", "figures", "summarise"]

Records = Mapping[str, Mapping[int, RunRecord]]
"""Arm -> seed -> record."""


def summarise(
    sweep: Sweep, arms: Sequence[Arm], against: Mapping[int, int], records: Records, metric: str
) -> dict[str, Any]:
    """Return the summary of a sweep, as JSON values.

    Args:
        sweep: What was compared.
        arms: Its arms.
        against: Place of an arm -> place of its baseline.
        records: What the runs say.
        metric: The primary metric of the task.

    Returns:
        `metric`, `arms` (a row for each), `ledger`, `failed`, and `ablation` or `orthogonality` for these presets.
    """
    rows = [_row(arms, place, against.get(place), records, metric) for place in range(len(arms))]
    found: dict[str, Any] = {
        "metric": metric,
        "preset": sweep.tables,
        "seeds": list(sweep.seeds),
        "arms": rows,
        "ledger": _ledger(records),
        "failed": [
            {"arm": record.arm, "seed": record.seed, "error": record.error}
            for by_seed in records.values()
            for record in by_seed.values()
            if record.status == "failed"
        ],
    }
    quality = [figures(records[arm.name], lambda record: record.metric(metric)) for arm in arms]
    if sweep.tables == "ablation":
        found["ablation"] = ablation(arms, quality)
    if sweep.tables == "orthogonality":
        found["orthogonality"] = orthogonality(arms, quality)
    return found


def figures(by_seed: Mapping[int, RunRecord], of: Callable[[RunRecord], float | None]) -> dict[int, float]:
    """Return seed -> figure of the runs that are done and have it."""
    values = {seed: of(record) for seed, record in by_seed.items() if record.status == "done"}
    return {seed: value for seed, value in sorted(values.items()) if value is not None}


def _row(arms: Sequence[Arm], place: int, base: int | None, records: Records, metric: str) -> dict[str, Any]:
    arm = arms[place]
    by_seed = records[arm.name]
    quality = figures(by_seed, lambda record: record.metric(metric))
    difference = None
    if base is not None:
        theirs = figures(records[arms[base].name], lambda record: record.metric(metric))
        difference = difference_of(quality, theirs, arms[base].name)
    passes = figures(by_seed, lambda record: record.learning.get("teacher_forwards"))
    return {
        "arm": arm.name,
        "method": arm.method.label,
        "student": student_label(arm.student),
        "source": None if arm.source is None else arm.source.label,
        "override": arm.override,
        "label_fraction": arm.label_fraction,
        "seeds": list(quality),
        "failed": sum(record.status == "failed" for record in by_seed.values()),
        metric: _spread(quality),
        "baseline": None if base is None else arms[base].name,
        "difference": None if difference is None else asdict(difference),
        "nll": _spread(figures(by_seed, lambda record: record.metric("nll"))),
        "ece": _spread(figures(by_seed, lambda record: record.metric("ece"))),
        "seconds_per_epoch": _spread(figures(by_seed, lambda record: record.learning.get("seconds_per_epoch"))),
        "teacher_forwards": int(sum(passes.values())),
    }


def _spread(values: Mapping[int, float]) -> dict[str, Any] | None:
    if not values:
        return None
    sd = statistics.stdev(values.values()) if len(values) > 1 else None
    return {
        "mean": statistics.fmean(values.values()),
        "sd": sd,
        "by_seed": {str(key): one for key, one in values.items()},
    }


def _ledger(records: Records) -> dict[str, Any]:
    """Return what making cost, each book once whatever the number of students, and what learning cost."""
    runs = [
        FoundRun(f"{arm}/{seed}", record)
        for arm, by_seed in records.items()
        for seed, record in by_seed.items()
        if record.status == "done"
    ]
    books = list(books_of(runs).values())
    return {
        "books": [{key: value for key, value in asdict(book).items() if key not in _WITHOUT} for book in books],
        "making_seconds": _total([book.own_seconds for book in books]),
        "making_teacher_forwards": _total([book.own_forwards for book in books]),
        "students": len(runs),
        "learning_seconds": sum(float(run.record.learning["seconds"]) for run in runs),
        "learning_teacher_forwards": sum(int(run.record.learning["teacher_forwards"]) for run in runs),
    }


_WITHOUT = ("parts", "own_seconds", "own_forwards")


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) else sum(known)
