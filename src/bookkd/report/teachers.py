"""Who taught: the teacher of a run as it was used, and all teachers by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bookkd.core.errors import DataError, expected
from bookkd.core.jsonio import digest
from bookkd.report.runs import FoundRun, listed, mapped, number

__all__ = ["Counts", "Teacher", "UsedTeacher", "confusion_of", "key_of", "names_of", "teachers_of", "used_teacher"]

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Teacher:
    """One teacher.

    Args:
        name: Its name.
        digest: Of its weights.
        parameters: Number of parameters.
        bytes: Their size.
        accuracy: First metric of its task, as it was measured when it taught.
        split: On which split; of the run's data where the record does not say.
        same_split: Whether that is the split of the run.
        latency_ms: Median time of a pass by batch size, where it was measured.
        lineage: Who taught the teacher, as the record says it.
        arms: Names of the arms that it taught.
    """

    name: str
    digest: str
    parameters: float | None
    bytes: float | None
    accuracy: float | None
    split: str
    same_split: bool
    latency_ms: dict[str, float]
    lineage: Any
    arms: tuple[str, ...]


@dataclass(frozen=True)
class UsedTeacher:
    """All teachers of one run as one: sizes are sums over them.

    Args:
        name: Names, joined.
        parameters: Sum over the teachers; None if that of one is unknown.
        bytes: Sum over the teachers; None if that of one is unknown.
        accuracy: On the split of the run, from its confusion; else that of an only teacher as recorded, the first metric of its
            task.
        same_split: Whether that is the split of the run.
    """

    name: str
    parameters: float | None
    bytes: float | None
    accuracy: float | None
    same_split: bool


def names_of(runs: Sequence[FoundRun]) -> dict[str, str]:
    """Return what each teacher is called: its name, and the beginning of its digest where others have the same name.

    The keys are those of `key_of`.
    """
    told = {key_of(run, entry): _name(entry) for run in runs for entry in run.record.teachers}
    names = list(told.values())
    return {key: name if names.count(name) == 1 else f"{name} {key[:6]}" for key, name in told.items()}


def key_of(run: FoundRun, entry: Any) -> str:
    """Return what tells one teacher from another: the digest of its weights, else of all that is said of it."""
    return str(mapped(run, entry, "teachers").get("digest") or digest(dict(entry)))


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("name") or "teacher")


def teachers_of(runs: Sequence[FoundRun]) -> tuple[Teacher, ...]:
    """Return each teacher once, in the order in which they come."""
    told: dict[str, tuple[FoundRun, Any]] = {}
    arms: dict[str, dict[str, None]] = {}
    for run in runs:
        for entry in run.record.teachers:
            key = key_of(run, entry)
            told.setdefault(key, (run, entry))
            arms.setdefault(key, {})[run.record.arm] = None
    names = names_of(runs)
    return tuple(_teacher(*told[key], names, tuple(arms[key])) for key in told)


def _teacher(run: FoundRun, entry: Any, names: Mapping[str, str], arms: tuple[str, ...] = ()) -> Teacher:
    latency = {
        str(size): number(run, mapped(run, measured, "latency_ms"), "p50", "value")
        for size, measured in mapped(run, entry.get("latency_ms"), "latency_ms").items()
    }
    split = str(entry.get("split") or "")
    return Teacher(
        name=names[key_of(run, entry)],
        digest=str(entry.get("digest") or ""),
        parameters=number(run, entry, "parameters"),
        bytes=number(run, entry, "bytes"),
        accuracy=number(run, entry, "accuracy", "value"),
        split=split,
        same_split=split in ("", str(run.record.data.get("split") or "")),
        latency_ms={size: value for size, value in latency.items() if value is not None},
        lineage=entry.get("lineage"),
        arms=arms,
    )


def used_teacher(run: FoundRun, names: Mapping[str, str]) -> UsedTeacher | None:
    """Return what taught a run, by the names of `names_of`; None for labels alone."""
    alone = [_teacher(run, mapped(run, entry, "teachers"), names) for entry in run.record.teachers]
    if not alone:
        return None
    confusion = confusion_of(run, "teacher")
    accuracy: float | None = None
    same = False
    if confusion is not None and confusion.sum() > 0:
        accuracy, same = float(np.trace(confusion) / confusion.sum()), True
    elif len(alone) == 1:
        accuracy, same = alone[0].accuracy, alone[0].same_split
    return UsedTeacher(
        " + ".join(each.name for each in alone),
        _sum([each.parameters for each in alone]),
        _sum([each.bytes for each in alone]),
        accuracy,
        same,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) if len(present) == len(values) else None


def confusion_of(run: FoundRun, who: str) -> Counts | None:
    """Return the confusion of "student" or "teacher": rows true classes, columns predictions; None where absent.

    Raises:
        DataError: if it is not a square of counts.
    """
    rows = listed(run, run.record.confusion.get(who), f"confusion.{who}")
    if not rows:
        return None
    try:
        counts = np.asarray(rows, np.float64)
    except (TypeError, ValueError, OverflowError):
        counts = np.zeros(0)
    if counts.shape != (len(rows), len(rows)) or not np.isfinite(counts).all() or (counts < 0).any():
        what = f"confusion.{who}"
        raise DataError(expected(what, "a square of counts, none below 0", f"{len(rows)} rows", where=run.where))
    return counts
