"""All numbers of a report, computed once; every format only writes them down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bookkd import __version__
from bookkd.core.errors import DataError, expected
from bookkd.core.names import choose
from bookkd.report.arms import arms_of, baselines_of
from bookkd.report.books import books_of, making_shares
from bookkd.report.classes import (
    Calibration,
    ClassDifference,
    Confusion,
    calibration_of,
    class_differences,
    confusions_of,
)
from bookkd.report.columns import QUALITY, Column, columns_of, first_of
from bookkd.report.figures import Row, batch_of, rows_of
from bookkd.report.gates import Gates, gates_of
from bookkd.report.ledger import Ledger, ledger_of
from bookkd.report.pareto import Point, pareto_of
from bookkd.report.pictures import NO_PICTURES, Pictures, pictures_of
from bookkd.report.provenance import Provenance, provenance_of
from bookkd.report.runs import FoundRun
from bookkd.report.series import ENTROPIES, Series, curves_of, series_of
from bookkd.report.teachers import Teacher, teachers_of

__all__ = ["Numbers", "numbers_of"]


@dataclass(frozen=True)
class Numbers:
    """What a report says.

    Args:
        title: Its title.
        version: Of the package that computed it.
        task: Name of the task that all runs are of.
        latency_batch: Batch size of the latency in the table; empty where none was measured.
        rows: The table, best arm first.
        teachers: Each teacher once.
        pareto: What a network costs ("parameters", "batch N" in milliseconds) -> networks, cheapest first.
        ledger: What it cost.
        curves: Learning curves.
        entropies: The entropy scalar, and the entropies of book and student.
        calibration: Before and after temperature scaling.
        classes: How each class fares against the baseline: recall, IoU or average precision.
        confusions: Who is taken for whom.
        gates: Tables of gates, layer by layer.
        provenance: Where the numbers come from.
        pictures: Of segmentation; on the page alone.
    """

    title: str
    version: str
    task: str
    latency_batch: str
    rows: tuple[Row, ...]
    teachers: tuple[Teacher, ...]
    pareto: Mapping[str, tuple[Point, ...]]
    ledger: Ledger
    curves: tuple[Series, ...]
    entropies: tuple[Series, ...]
    calibration: tuple[Calibration, ...]
    classes: tuple[ClassDifference, ...]
    confusions: tuple[Confusion, ...]
    gates: tuple[Gates, ...]
    provenance: Provenance
    pictures: Pictures = NO_PICTURES

    @property
    def first(self) -> Column:
        """The figure by which arms are ranked."""
        return first_of(self.task)

    @property
    def quality(self) -> tuple[Column, ...]:
        """The figures of which arms are compared seed by seed."""
        return QUALITY[self.task]

    @property
    def columns(self) -> tuple[Column, ...]:
        """All figures of the table, in its order."""
        return columns_of(self.task)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: value for name, value in asdict(self).items() if name != "pictures"}


def numbers_of(runs: Sequence[FoundRun], *, baseline: str | None = None, title: str = "BookKD report") -> Numbers:
    """Compute everything that a report says of runs.

    Args:
        runs: As `find_runs` gives them.
        baseline: Name of the arm that all others are held against; where None, the supervised arm with the same student.
        title: Of the report.

    Raises:
        UnknownNameError: no arm has the name of the baseline.
        DataError: runs of different tasks, or a record holds something else than numbers where numbers stand.
    """
    task = _one_task(runs)
    arms = arms_of(runs)
    baselines = baselines_of(arms, baseline)
    done = [run for run in runs if run.record.status == "done"]
    books = books_of(runs)
    rows = rows_of(arms, baselines, making_shares(done, books))
    ranked = [next(arm for arm in arms if arm.name == row.arm) for row in rows]
    teachers = teachers_of(runs)
    return Numbers(
        title=title,
        version=__version__,
        task=task,
        latency_batch=batch_of(done),
        rows=rows,
        teachers=teachers,
        pareto=pareto_of(rows, teachers, first_of(task).key),
        ledger=ledger_of(ranked, books),
        curves=series_of(ranked, curves_of(task)),
        entropies=series_of(ranked, ENTROPIES),
        calibration=calibration_of(ranked),
        classes=class_differences(ranked, baselines),
        confusions=confusions_of(ranked),
        gates=gates_of(ranked),
        provenance=provenance_of(runs, ranked, teachers),
        pictures=pictures_of(ranked),
    )


def _one_task(runs: Sequence[FoundRun]) -> str:
    """Return the task of all runs, which must be one: figures of two have nothing that could stand side by side."""
    tasks = Counter(run.record.task for run in runs)
    if len(tasks) > 1:
        got = " and ".join(f"{count} of {task}" for task, count in tasks.items())
        raise DataError(
            expected("runs", "of one task", got, where="report", do="Report the folders of each task apart.")
        )
    return choose(next(iter(tasks), "classification"), QUALITY, "task", where="record of a run")
