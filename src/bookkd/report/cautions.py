"""What a reader must know before believing the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from bookkd.report.figures import Row
from bookkd.report.formats import joined
from bookkd.report.numbers import Numbers

__all__ = ["cautions"]

_MANY = 10
"""From so many comparisons on, some look real by chance."""


def cautions(numbers: Numbers) -> tuple[str, ...]:
    """Return the warnings that apply, as sentences."""
    rows = numbers.rows
    found = []
    alone = [row.arm for row in rows if len(row.seeds) == 1]
    if alone:
        found.append(f"One seed only, so that the noise between seeds is unknown: {_some(alone)}.")
    gone = [f"{row.arm} ({row.failed})" for row in rows if row.failed]
    if gone:
        found.append(f"Failed runs are in no mean: {_some(gone)}.")
    places = {(str(each.values.get("name")), str(each.values.get("split"))) for each in numbers.provenance.data}
    if len(places) > 1:
        found.append("The arms were measured on several data sets or splits; arms are compared within one only.")
    crossed = {row.baseline for row in rows if row.baseline and _student(rows, row.baseline) != row.student}
    if crossed:
        found.append(f"Some arms are held against an arm with another student: {_some(sorted(crossed))}.")
    titles = {column.key: column.title for column in numbers.columns}
    mixed = [titles.get(name, name) for name, said in numbers.provenance.signatures.items() if len(said) > 1]
    if mixed:
        found.append(f"Runs computed {joined(mixed)} by several versions or settings, whose values cannot be compared.")
    other = [row.arm for row in rows if row.teacher_quality is not None and not row.same_split]
    if other:
        found.append(f"The teacher's {numbers.first.title} is of another split than the student's: {_some(other)}.")
    if len({row.teacher for row in rows if row.terms is not None}) > 1:
        found.append(
            "The distillation metric of arms with different teachers cannot be compared: a weak teacher flatters."
        )
    compared = sum(numbers.first.key in row.differences for row in rows)
    if compared >= _MANY:
        by_chance = max(1, round(0.05 * compared))
        found.append(
            f"{compared} arms are compared at 95 %: about {by_chance} would look like more than noise by chance alone, and the "
            "best of many is so partly by luck."
        )
    return tuple(found)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _student(rows: Sequence[Row], arm: str) -> str:
    return next((row.student for row in rows if row.arm == arm), "")
