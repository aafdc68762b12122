"""From folders to the records in them, and what a record says at a place, absent or a number."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bookkd.core.errors import DataError, expected
from bookkd.report.record import RECORD_NAME, RunRecord

__all__ = ["FoundRun", "find_runs", "listed", "mapped", "number"]

_MARK = "config.json"
"""What every run of this package writes first; without a record beside it, the run was killed."""


@dataclass(frozen=True)
class FoundRun:
    """A record and where it lies.

    Args:
        folder: Folder of the run, as it was reached from what was asked for.
        record: What it says.
    """

    folder: str
    record: RunRecord

    @property
    def where(self) -> str:
        """Name the run in a message."""
        return f"arm {self.record.arm!r}, seed {self.record.seed}, {self.folder}"


def find_runs(places: Sequence[str | Path]) -> tuple[FoundRun, ...]:
    """Read the records of run folders, and of all run folders inside other folders, in the order of their paths.

    Raises:
        DataError: no run in a place, runs without a readable record, or one seed of one arm twice.
    """
    folders: dict[Path, str] = {}
    for place in places:
        inside = list(_run_folders(Path(place)))
        if not inside:
            RunRecord.load(place)  # says what is missing
        for folder in inside:
            folders.setdefault(folder.resolve(), str(folder))
    found, faults = [], []
    for name in folders.values():
        try:
            found.append(FoundRun(name, RunRecord.load(name)))
        except DataError as error:
            faults.append(str(error))
    if faults:
        got = f"{len(faults)} of {len(folders)} without a readable record"
        raise DataError(f"Expected `runs` to be complete, got {got}. The first: {faults[0]}")
    _refuse_twins(found)
    return tuple(found)


def _run_folders(place: Path) -> Iterator[Path]:
    """Yield the folders of runs; what lies inside a run, such as an assistant's training, belongs to it."""
    for path, names, files in os.walk(place):
        if RECORD_NAME in files or _MARK in files:
            names.clear()
            yield Path(path)
        names[:] = sorted((name for name in names if not name.startswith(".")), key=_natural)


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Order "seed-10" after "seed-9"."""
    parts, digits = [], ""
    for letter in f"{name}\0":
        if letter.isdecimal():
            digits += letter
            continue
        if digits:
            parts.append((int(digits), ""))
            digits = ""
        parts.append((-1, letter))
    return tuple(parts)


def _refuse_twins(found: Sequence[FoundRun]) -> None:
    seen: dict[tuple[str, int], FoundRun] = {}
    for run in found:
        twin = seen.setdefault((run.record.arm, run.record.seed), run)
        if twin is not run:
            do = "Give arms different names, or report the folders apart."
            got = f"two runs, the other in {twin.folder}"
            raise DataError(expected("seed", "once in an arm", got, where=run.where, do=do))


def number(run: FoundRun, inside: Mapping[str, Any] | None, *path: str) -> float | None:
    """Return the number at a path of a record's part; None where it is absent.

    A plain number may stand where a value with its interval could.

    Raises:
        DataError: if something else than a finite number is there.
    """
    value: Any = inside
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(expected(".".join(path) or "value", "a finite number", value, where=run.where))
    return float(value)


def mapped(run: FoundRun, value: Any, what: str) -> Mapping[str, Any]:
    """Return a mapping of a record, empty where it is absent."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(expected(what, "a mapping", type(value).__name__, where=run.where))
    return value


def listed(run: FoundRun, value: Any, what: str) -> Sequence[Any]:
    """Return a list of a record, empty where it is absent."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise DataError(expected(what, "a list", type(value).__name__, where=run.where))
    return value
