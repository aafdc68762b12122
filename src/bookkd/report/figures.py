"""The table: one row an arm, one figure a column, each computed once from the records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bookkd.evaluation import Difference, crossing_alpha, difference_of, distillation_score, lower_is_better
from bookkd.report.arms import Arm, Spread, spread_of
from bookkd.report.classes import class_values
from bookkd.report.columns import ALPHAS, QUALITY, columns_of, first_of
from bookkd.report.runs import FoundRun, mapped, number
from bookkd.report.teachers import UsedTeacher, names_of, used_teacher

__all__ = ["Measures", "Row", "batch_of", "measures_of", "rows_of"]

_SCORES = {**{f"ds_{alpha:.1f}": alpha for alpha in ALPHAS}, "size_ratio": 1.0, "accuracy_loss": 0.0}
"""The metric at each weight; at 1 it is its term of size, at 0 its term of accuracy."""

_LATENCY = "student.latency_ms"

Measures = Mapping[str, float | None]


@dataclass(frozen=True)
class Row:
    """What is known of an arm.

    Args:
        arm: Its name.
        method: Name of the method.
        student: Name of the student.
        teacher: Names of the teachers as used; empty for labels alone.
        seeds: Seeds of the runs that ended.
        failed: Number of runs that failed.
        baseline: Name of the arm it is held against; empty where there is none.
        figures: Column -> mean and spread; None where no run has it.
        differences: Column -> difference to the baseline; without those that cannot be had.
        terms: Of the distillation metric, means over the seeds: parameters of the student over those of the teachers, and the
            share of the teachers' accuracy that is lost; None where either is unknown.
        crossing_alpha: Weight of size at which its distillation metric equals that of the arm with the same teachers that is
            best at 0.5; None for that arm, and where one of the two is better at every weight.
        latencies: Batch size -> median time of one pass in milliseconds.
        teacher_quality: First metric of the teachers as used.
        teacher_parameters: Of all of them together.
        same_split: Whether the teacher was measured on the same split.
    """

    arm: str
    method: str
    student: str
    teacher: str
    seeds: tuple[int, ...]
    failed: int
    baseline: str
    figures: Mapping[str, Spread | None]
    differences: Mapping[str, Difference]
    terms: tuple[float, float] | None
    crossing_alpha: float | None
    latencies: Mapping[str, Spread]
    teacher_quality: Spread | None
    teacher_parameters: float | None
    same_split: bool


def batch_of(runs: Sequence[FoundRun]) -> str:
    """Return the batch size of the table's latency: the smallest one that a run measured; empty where none did."""
    sizes = {str(size) for run in runs for size in mapped(run, run.record.student.get("latency_ms"), _LATENCY)}
    return min(sizes, key=lambda size: (int(size) if size.isdecimal() else 10**9, size), default="")


def measures_of(run: FoundRun, batch: str, making_share: float | None, names: Mapping[str, str]) -> Measures:
    """Return every figure of one run, and with classes the two terms of its distillation metric.

    Args:
        run: The run.
        batch: Batch size of the latency.
        making_share: Its part of the seconds of making its books; None where unknown.
        names: What each teacher is called.
    """
    record = run.record
    quality = [column.key for column in QUALITY[record.task] if column.key != "worst_class"]
    seconds = number(run, record.learning, "seconds")
    found = {
        **{name: number(run, record.metrics, name, "value") for name in quality},
        **{name: number(run, record.student, name) for name in ("parameters", "bytes", "macs")},
        "worst_class": _worst_class(run),
        "latency_ms": _latency(run, batch),
        "seconds": seconds,
        "cost_seconds": None if seconds is None or making_share is None else seconds + making_share,
    }
    teacher = used_teacher(run, names)
    found["teacher_quality"] = None if teacher is None else teacher.accuracy
    if teacher is None or record.task != "classification":
        return found
    return {**found, **_distilled(found["parameters"], found["accuracy"], teacher)}


def _worst_class(run: FoundRun) -> float | None:
    """Return the value of the class that fares worst."""
    _, values = class_values(run)
    return min((value for value in values if value is not None), default=None)


def _distilled(parameters: float | None, accuracy: float | None, teacher: UsedTeacher) -> Measures:
    # Nothing has a ratio to a teacher of no size or no accuracy.
    if not parameters or accuracy is None or not teacher.parameters or not teacher.accuracy:
        return {}
    size, quality = (parameters, teacher.parameters), (accuracy, teacher.accuracy)
    return {name: _score(size, quality, alpha) for name, alpha in _SCORES.items()}


def _score(size: tuple[float, float], accuracy: tuple[float, float], alpha: float) -> float:
    return distillation_score(
        student_size=size[0],
        teacher_size=size[1],
        student_accuracy=accuracy[0],
        teacher_accuracy=accuracy[1],
        alpha=alpha,
    )


def rows_of(arms: Sequence[Arm], baselines: Mapping[str, Arm], shares: Mapping[str, float | None]) -> tuple[Row, ...]:
    """Return the table, the arm first that is best by the first metric of the task, arms without it last.

    Args:
        arms: The arms.
        baselines: Arm -> what it is held against.
        shares: Folder of a run -> its part of the making of its books.
    """
    done = [run for arm in arms for run in arm.done]
    batch, names = batch_of(done), names_of([run for arm in arms for run in (*arm.done, *arm.failed)])
    found = {run.folder: measures_of(run, batch, shares.get(run.folder), names) for run in done}
    rows = [_row(arm, baselines.get(arm.name), found, names) for arm in arms]
    best: dict[str, Row] = {}
    for row in sorted((row for row in rows if row.terms), key=_middle_score):
        best.setdefault(row.teacher, row)
    crossed = (replace(row, crossing_alpha=_crossing(row, best.get(row.teacher))) for row in rows)
    key = first_of(arms[0].first.record.task).key if arms else ""
    return tuple(sorted(crossed, key=lambda row: _goodness(row, key), reverse=True))


def _row(arm: Arm, base: Arm | None, found: Mapping[str, Measures], names: Mapping[str, str]) -> Row:
    teacher = used_teacher(arm.first, names)

    def figure(key: str) -> Spread | None:
        return arm.spread(_reader(key, found))

    ratio, loss = figure("size_ratio"), figure("accuracy_loss")
    return Row(
        arm=arm.name,
        method=arm.method,
        student=arm.student,
        teacher="" if teacher is None else teacher.name,
        seeds=arm.seeds,
        failed=len(arm.failed),
        baseline="" if base is None else base.name,
        figures={column.key: figure(column.key) for column in columns_of(arm.first.record.task)},
        differences={} if base is None else _differences(arm, base, found),
        terms=None if ratio is None or loss is None else (ratio.mean, loss.mean),
        crossing_alpha=None,
        latencies=_latencies(arm),
        teacher_quality=figure("teacher_quality"),
        teacher_parameters=None if teacher is None else teacher.parameters,
        same_split=teacher is not None and teacher.same_split,
    )


def _latencies(arm: Arm) -> dict[str, Spread]:
    batches = {batch for run in arm.done for batch in mapped(run, run.record.student.get("latency_ms"), _LATENCY)}
    found = {batch: spread_of([_latency(run, batch) for run in arm.done]) for batch in sorted(batches)}
    return {batch: spread for batch, spread in found.items() if spread is not None}


def _latency(run: FoundRun, batch: str) -> float | None:
    measured = mapped(run, run.record.student.get("latency_ms"), _LATENCY)
    return number(run, mapped(run, measured.get(batch), _LATENCY), "p50", "value")


def _reader(key: str, found: Mapping[str, Measures]) -> Callable[[FoundRun], float | None]:
    return lambda run: found[run.folder].get(key)


def _differences(arm: Arm, base: Arm, found: Mapping[str, Measures]) -> dict[str, Difference]:
    differences = {}
    for key in (column.key for column in QUALITY[arm.first.record.task]):
        mine, theirs = (each.by_seed(_reader(key, found)) for each in (arm, base))
        difference = difference_of(mine, theirs, base.name, lower_is_better=lower_is_better(key))
        if difference is not None:
            differences[key] = difference
    return differences


def _middle_score(row: Row) -> float:
    spread = row.figures.get("ds_0.5")
    return float("inf") if spread is None else spread.mean


def _goodness(row: Row, key: str) -> float:
    spread = row.figures[key]
    if spread is None:
        return float("-inf")
    return -spread.mean if lower_is_better(key) else spread.mean


def _crossing(row: Row, best: Row | None) -> float | None:
    # The metric is linear in its two terms, so that means of terms cross where means of the metric do.
    return crossing_alpha(row.terms, best.terms) if row.terms and best is not None and best.terms else None
