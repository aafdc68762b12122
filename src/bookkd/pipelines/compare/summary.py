"""What a sweep found: one row an arm, each held against its baseline over the same seeds, and what it all cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bookkd.evaluation import difference_of, lower_is_better
from bookkd.pipelines.compare.arms import Arm, student_label
from bookkd.pipelines.compare.sweep import Sweep
from bookkd.pipelines.compare.tables import ablation, orthogonality
from bookkd.report import FoundRun, RunRecord
from bookkd.report.books import books_of
from bookkd.report.provenance import signatures_of
from bookkd.tasks import Task

__all__ = ["Records", "figures", "summarise"]

Records = Mapping[str, Mapping[int, RunRecord]]
"""Arm -> seed -> record."""
BESIDE = {
    "classification": ("nll", "ece"),
    "multi-label": ("micro_f1", "ece"),
    "regression": ("rmse", "mae"),
    "seq2seq": ("bleu", "chrf"),
}
"""Task -> metrics that stand beside the first one."""


def summarise(
    sweep: Sweep, arms: Sequence[Arm], against: Mapping[int, int], records: Records, task: Task
) -> dict[str, Any]:
    """Return the summary of a sweep, as JSON values.

    Args:
        sweep: What was compared.
        arms: Its arms.
        against: Place of an arm -> place of its baseline.
        records: What the runs say.
        task: Of the sweep; its primary metric is what differences are of.

    Returns:
        `task`, `metric`, `lower_is_better`, `beside` (further metrics of the rows), `signatures` (metric -> how
        it was computed, where a package says so), `arms` (a row for each), `ledger`, `failed`,
        and `ablation` or `orthogonality` for these presets.
    """
    metric, beside = task.primary_metric, BESIDE.get(task.name, ())
    rows = [_row(arms, place, against.get(place), records, (metric, *beside)) for place in range(len(arms))]
    found: dict[str, Any] = {
        "task": task.name,
        "metric": metric,
        "lower_is_better": lower_is_better(metric),
        "beside": list(beside),
        "signatures": signatures_of(record for by_seed in records.values() for record in by_seed.values()),
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
        found["ablation"] = ablation(arms, quality, metric)
    if sweep.tables == "orthogonality":
        found["orthogonality"] = orthogonality(arms, quality, metric)
    return found


def figures(by_seed: Mapping[int, RunRecord], of: Callable[[RunRecord], float | None]) -> dict[int, float]:
    """Return seed -> figure of the runs that are done and have it."""
    values = {seed: of(record) for seed, record in by_seed.items() if record.status == "done"}
    return {seed: value for seed, value in sorted(values.items()) if value is not None}


def _row(arms: Sequence[Arm], place: int, base: int | None, records: Records, metrics: Sequence[str]) -> dict[str, Any]:
    arm, metric = arms[place], metrics[0]
    by_seed = records[arm.name]
    quality = figures(by_seed, lambda record: record.metric(metric))
    difference = None
    if base is not None:
        theirs = figures(records[arms[base].name], lambda record: record.metric(metric))
        difference = difference_of(quality, theirs, arms[base].name, lower_is_better=lower_is_better(metric))
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
        "baseline": None if base is None else arms[base].name,
        "difference": None if difference is None else asdict(difference),
        **{name: _spread(figures(by_seed, _reader(name))) for name in metrics},
        "seconds_per_epoch": _spread(figures(by_seed, lambda record: record.learning.get("seconds_per_epoch"))),
        "teacher_forwards": int(sum(passes.values())),
    }


def _reader(metric: str) -> Callable[[RunRecord], float | None]:
    return lambda record: record.metric(metric)


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
