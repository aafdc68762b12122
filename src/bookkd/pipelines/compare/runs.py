"""The runs of a sweep: one for each method, student, source of knowledge, override and seed, with a name of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from bookkd.core.errors import ConfigError, expected
from bookkd.learning import Training
from bookkd.learning.folder import plain
from bookkd.methods import Method
from bookkd.pipelines.compare.sweep import MethodEntry, Override, Sweep, options_of
from bookkd.pipelines.options import NetworkOptions, ViewOptions
from bookkd.tasks import Classification

__all__ = ["RunSpec", "runs_of"]

_TWO = Classification(("a", "b"))


@dataclass(frozen=True)
class RunSpec:
    """One run.

    Args:
        arm: Name of what is compared, equal for all seeds.
        label: Label of the method.
        override: Label of the override; empty for none.
        method: The method.
        student_label: Label of the student.
        student: The student.
        book: Label of the book; None for none.
        teacher: Label of the live teacher; None for none.
        seed: Of the run.
        training: With the seed.
        views: Another augmentation than the sweep's; None for that.
    """

    arm: str
    label: str
    override: str
    method: Method
    student_label: str
    student: NetworkOptions
    book: str | None
    teacher: str | None
    seed: int
    training: Training
    views: ViewOptions | None = None

    @property
    def folder(self) -> str:
        """Name of the folder: the arm in plain letters, and the seed."""
        return f"{re.sub(r'[^A-Za-z0-9.=]+', '-', self.arm).strip('-')}-s{self.seed}"

    def configuration(self) -> dict[str, Any]:
        """Return what the run is, as JSON values."""
        return {
            "arm": self.arm,
            "method": {"name": self.method.name, **plain(self.method)},
            "student": plain(self.student),
            "book": self.book,
            "teacher": self.teacher,
            "seed": self.seed,
            "training": plain(self.training),
            "views": None if self.views is None else plain(self.views),
        }


def runs_of(sweep: Sweep) -> list[RunSpec]:
    """Return the runs in a fixed order: all arms of one seed before those of the next.

    Raises:
        ConfigError: if two arms have one name, or there is no run.
    """
    arms = list(_arms(sweep))
    names: dict[str, RunSpec] = {}
    for run in arms:
        if run.folder in names:
            got = f"{names[run.folder].arm!r} and {run.arm!r}"
            do = "Give the methods, students or books other labels."
            raise ConfigError(expected("arms", "of different names", got, where="sweep", do=do))
        names[run.folder] = run
    if not arms:
        do = "Every method needs a book or teacher that the sweep has."
        raise ConfigError(expected("sweep", "at least one run", "none", do=do))
    return [replace(run, seed=seed, training=replace(run.training, seed=seed)) for seed in sweep.seeds for run in arms]


def _arms(sweep: Sweep) -> Iterator[RunSpec]:
    for change_label, change in {"": Override(), **sweep.overrides}.items():
        for label, entry in sweep.methods.items():
            method = _changed(entry.method, change)
            for student_label in [change.student] if change.student else entry.students or sweep.students:
                for source in _sources(sweep, entry, change):
                    yield _arm(sweep, label, method, student_label, source, change_label, change)


def _changed(method: Method, change: Override) -> Method:
    """Return the method with the options of an override that it has."""
    own = {entry.name for entry in fields(method)}  # type: ignore[arg-type]
    found: Method = replace(method, **{key: value for key, value in change.method.items() if key in own})  # type: ignore[type-var]
    return found


def _sources(sweep: Sweep, entry: MethodEntry, change: Override) -> list[str | None]:
    needs = entry.method.needs(_TWO)
    if not needs.fields and not needs.live_teacher:
        return [None]
    if change.book is not None:
        return [change.book]
    return list(entry.books if entry.books is not None else {**sweep.books, **_live(sweep)})


def _live(sweep: Sweep) -> dict[str, NetworkOptions]:
    """Return the teachers that are arms of their own: those that no book is named after."""
    return {label: teacher for label, teacher in sweep.teachers.items() if label not in sweep.books}


def _arm(
    sweep: Sweep,
    label: str,
    method: Method,
    student_label: str,
    source: str | None,
    change_label: str,
    change: Override,
) -> RunSpec:
    several = len({**sweep.books, **_live(sweep)}) > 1
    named = [label, student_label] + ([source] if source is not None and several else [])
    arm = " / ".join(named) + (f" + {change_label}" if change_label else "")
    training = options_of(Training, {**_entries(sweep.training), **change.training}, f"override {change_label}")
    return RunSpec(
        arm=arm,
        label=label,
        override=change_label,
        method=method,
        student_label=student_label,
        student=sweep.students[student_label],
        book=source if source in sweep.books else None,
        teacher=source if source is not None and source not in sweep.books else None,
        seed=sweep.seeds[0],
        training=training,
        views=change.views,
    )


def _entries(training: Training) -> dict[str, Any]:
    return {entry.name: getattr(training, entry.name) for entry in fields(training)}
