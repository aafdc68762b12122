"""Where the numbers come from: data, environments, runs with the digests of their weights, configurations to copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bookkd.book import TeacherInfo, lineage_tree
from bookkd.core.jsonio import digest
from bookkd.report.arms import Arm, flat
from bookkd.report.columns import first_of
from bookkd.report.record import RunRecord
from bookkd.report.runs import FoundRun, number
from bookkd.report.teachers import Teacher

__all__ = ["Configuration", "Counted", "Provenance", "RunLine", "provenance_of", "signatures_of"]


@dataclass(frozen=True)
class Counted:
    """Something that runs share.

    Args:
        values: What it says.
        runs: Number of runs that say it.
    """

    values: Mapping[str, Any]
    runs: int


@dataclass(frozen=True)
class RunLine:
    """One run.

    Args:
        arm: Name of its arm.
        seed: Its seed.
        status: "done" or "failed".
        quality: First metric of its task, on the split of its data.
        epochs: Epochs that it learned for.
        epoch: The epoch whose weights were measured.
        seconds: Of learning.
        peak_bytes: Most memory of the process while the run went.
        gpu_peak_bytes: The same of the GPU; None on a CPU.
        weights: Digest of the student's weights.
        folder: Where it lies.
        error: What went wrong; empty for a run that is done.
    """

    arm: str
    seed: int
    status: str
    quality: float | None
    epochs: float | None
    epoch: float | None
    seconds: float | None
    peak_bytes: float | None
    gpu_peak_bytes: float | None
    weights: str
    folder: str
    error: str


@dataclass(frozen=True)
class Configuration:
    """The resolved configuration of an arm.

    Args:
        arm: Its name.
        values: That of the run with the first seed.
        differing: Entries that other seeds of the arm have otherwise, the seed apart.
    """

    arm: str
    values: Mapping[str, Any]
    differing: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """All of it.

    Args:
        data: Data sets, splits and sizes.
        environments: Versions, processor, threads.
        runs: Each run.
        lineages: Teacher -> who taught it, back to the first, one line each.
        configurations: One an arm that has any.
        signatures: Metric -> each version and setting that it was computed by; of more than one, values cannot be compared.
    """

    data: tuple[Counted, ...]
    environments: tuple[Counted, ...]
    runs: tuple[RunLine, ...]
    lineages: Mapping[str, tuple[str, ...]]
    configurations: tuple[Configuration, ...]
    signatures: Mapping[str, tuple[str, ...]]


def provenance_of(runs: Sequence[FoundRun], arms: Sequence[Arm], teachers: Sequence[Teacher]) -> Provenance:
    """Return where the numbers come from."""
    return Provenance(
        data=_counted(run.record.data for run in runs),
        environments=_counted(run.record.environment for run in runs),
        runs=tuple(_line(run) for arm in arms for run in (*arm.done, *arm.failed)),
        lineages={f"{each.name} {each.digest[:12]}".strip(): lines for each in teachers if (lines := _lineage(each))},
        configurations=tuple(_configuration(arm) for arm in arms if arm.first.record.configuration),
        signatures=signatures_of(run.record for run in runs),
    )


def signatures_of(records: Iterable[RunRecord]) -> dict[str, tuple[str, ...]]:
    """Return metric -> each version and setting that runs computed it by, in their order."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, said in record.signatures.items():
            found.setdefault(name, {})[str(said)] = None
    return {name: tuple(said) for name, said in found.items()}


def _counted(values: Iterable[Mapping[str, Any]]) -> tuple[Counted, ...]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for each in values:
        if each:
            found.setdefault(digest(dict(each)), []).append(each)
    return tuple(Counted(same[0], len(same)) for same in found.values())


def _line(run: FoundRun) -> RunLine:
    record = run.record
    return RunLine(
        arm=record.arm,
        seed=record.seed,
        status=record.status,
        quality=number(run, record.metrics, first_of(record.task).key, "value"),
        epochs=number(run, record.learning, "epochs"),
        epoch=number(run, record.learning, "epoch"),
        seconds=number(run, record.learning, "seconds"),
        peak_bytes=number(run, record.learning, "peak_bytes"),
        gpu_peak_bytes=number(run, record.learning, "gpu_peak_bytes"),
        weights=record.weights,
        folder=run.folder,
        error=record.error,
    )


def _lineage(teacher: Teacher) -> tuple[str, ...]:
    if not isinstance(teacher.lineage, Mapping):
        return () if teacher.lineage is None else (str(teacher.lineage),)
    info = TeacherInfo(teacher.name, teacher.digest, lineage=dict(teacher.lineage))
    return tuple(f"{'  ' * depth}{line}" for depth, line in lineage_tree(info))


def _configuration(arm: Arm) -> Configuration:
    each_flat = [flat(run.record.configuration) for run in (*arm.done, *arm.failed)]
    keys = dict.fromkeys(key for each in each_flat for key in each if key.rpartition(".")[2] != "seed")
    differing = tuple(key for key in keys if any(each.get(key) != each_flat[0].get(key) for each in each_flat))
    return Configuration(arm.name, arm.first.record.configuration, differing)
