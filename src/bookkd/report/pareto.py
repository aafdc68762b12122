"""Which networks nothing beats: quality against what a network costs to keep or to run, teachers and baselines among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bookkd.evaluation import lower_is_better
from bookkd.report.figures import Row
from bookkd.report.teachers import Teacher

__all__ = ["BASELINE", "STUDENT", "TEACHER", "Point", "pareto_of"]

STUDENT, BASELINE, TEACHER = "student", "baseline", "teacher"


@dataclass(frozen=True)
class Point:
    """A network.

    Args:
        name: Of the arm or the teachers.
        kind: "student", "baseline" (an arm that others are held against) or "teacher".
        cost: Parameters, or milliseconds of a pass.
        quality: First metric of the task, mean over the seeds.
        sd: Standard deviation between seeds; None for one seed and for teachers.
        front: Whether no other network is at least as good in both and better in one.
    """

    name: str
    kind: str
    cost: float
    quality: float
    sd: float | None
    front: bool = False


def pareto_of(rows: Sequence[Row], teachers: Sequence[Teacher], key: str) -> dict[str, tuple[Point, ...]]:
    """Return networks by what they cost: "parameters", and "batch N" for the latency of each batch size that was measured.

    Teachers stand as they were used, and each by itself where it was measured on the split of the runs.

    Args:
        rows: The table.
        teachers: Each once.
        key: The figure by which networks are ranked.
    """
    qualities, sign = _teacher_qualities(rows, teachers), -1 if lower_is_better(key) else 1
    sizes = {each.name: each.parameters for each in teachers if each.parameters is not None}
    sizes |= {row.teacher: row.teacher_parameters for row in rows if row.teacher_parameters is not None}
    found = {"parameters": _front([*_students(rows, _parameters(rows), key), *_taught(qualities, sizes)], sign)}
    batches = sorted({batch for row in rows for batch in row.latencies}, key=lambda batch: (len(batch), batch))
    for batch in batches:
        students = {row.arm: row.latencies[batch].mean for row in rows if batch in row.latencies}
        measured = {each.name: each.latency_ms[batch] for each in teachers if batch in each.latency_ms}
        found[f"batch {batch}"] = _front([*_students(rows, students, key), *_taught(qualities, measured)], sign)
    return {axis: points for axis, points in found.items() if points}


def _parameters(rows: Sequence[Row]) -> dict[str, float]:
    spreads = {row.arm: row.figures["parameters"] for row in rows}
    return {arm: spread.mean for arm, spread in spreads.items() if spread is not None}


def _teacher_qualities(rows: Sequence[Row], teachers: Sequence[Teacher]) -> dict[str, float]:
    alone = {each.name: each.accuracy for each in teachers if each.accuracy is not None and each.same_split}
    used = {row.teacher: row.teacher_quality.mean for row in reversed(rows) if row.teacher_quality is not None}
    return {**alone, **used}


def _students(rows: Sequence[Row], costs: Mapping[str, float], key: str) -> list[Point]:
    held_against = {row.baseline for row in rows}
    found = []
    for row in rows:
        quality = row.figures[key]
        if quality is not None and row.arm in costs:
            kind = BASELINE if row.arm in held_against else STUDENT
            found.append(Point(row.arm, kind, costs[row.arm], quality.mean, quality.sd))
    return found


def _taught(qualities: Mapping[str, float], costs: Mapping[str, float]) -> list[Point]:
    return [Point(name, TEACHER, costs[name], qualities[name], None) for name in sorted(qualities) if name in costs]


def _front(points: Sequence[Point], sign: int = 1) -> tuple[Point, ...]:
    """Mark the points that no other beats, with a `sign` of -1 where less is better; cheapest first."""
    ordered = sorted(points, key=lambda point: (point.cost, -sign * point.quality))
    best = float("-inf")
    found: list[Point] = []
    for point in ordered:
        # Of equal quality the cheaper one came before; an exact twin beats nothing.
        twin = any((point.cost, point.quality) == (other.cost, other.quality) and other.front for other in found)
        front = sign * point.quality > best or twin
        best = max(best, sign * point.quality)
        found.append(replace(point, front=front))
    return tuple(found)
