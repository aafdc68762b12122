"""Arms: the runs that differ by nothing but their seed, what they say together, and which arm each is held against."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bookkd.core.names import choose
from bookkd.report.runs import FoundRun, number

__all__ = ["Arm", "Spread", "arms_of", "baselines_of", "flat", "spread_of"]


@dataclass(frozen=True)
class Spread:
    """One figure of an arm over its seeds.

    Args:
        mean: Mean over the seeds.
        sd: Standard deviation between seeds, with n - 1; None for one seed.
        n: Number of seeds that have the figure.
    """

    mean: float
    sd: float | None
    n: int


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Return mean and standard deviation of what is there; None where nothing is.

    >>> spread_of([1.0, None, 3.0])
    Spread(mean=2.0, sd=1.4142135623730951, n=2)
    """
    present = [value for value in values if value is not None]
    if not present:
        return None
    sd = statistics.stdev(present) if len(present) > 1 else None
    return Spread(statistics.fmean(present), sd, len(present))


@dataclass(frozen=True)
class Arm:
    """All runs of one name.

    Args:
        name: The name.
        done: Runs that ended, by seed.
        failed: Runs that did not.
    """

    name: str
    done: tuple[FoundRun, ...]
    failed: tuple[FoundRun, ...]

    @property
    def first(self) -> FoundRun:
        """The run that describes the arm."""
        return (*self.done, *self.failed)[0]

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.first.record.method["name"])

    @property
    def student(self) -> str:
        """Name of the student; empty where no run says it."""
        return str(self.first.record.student.get("name") or "")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs that ended."""
        return tuple(run.record.seed for run in self.done)

    @property
    def measured_on(self) -> tuple[str, str]:
        """Data set and split of the figures."""
        data = self.first.record.data
        return str(data.get("name") or ""), str(data.get("split") or "")

    @property
    def seen(self) -> float:
        """Share of the labels that the runs saw."""
        share = number(self.first, self.first.record.data, "label_fraction")
        return 1.0 if share is None else share

    def spread(self, of: Callable[[FoundRun], float | None]) -> Spread | None:
        """Return mean and standard deviation of a figure of its runs."""
        return spread_of([of(run) for run in self.done])

    def by_seed(self, of: Callable[[FoundRun], float | None]) -> dict[int, float]:
        """Return a figure of its runs by seed, without those that do not have it."""
        values = {run.record.seed: of(run) for run in self.done}
        return {seed: value for seed, value in values.items() if value is not None}


def arms_of(runs: Sequence[FoundRun]) -> tuple[Arm, ...]:
    """Group runs by the name of their arm, in the order in which the names come."""
    names = dict.fromkeys(run.record.arm for run in runs)
    ordered = sorted(runs, key=lambda run: run.record.seed)
    return tuple(
        Arm(
            name,
            tuple(run for run in ordered if run.record.arm == name and run.record.status == "done"),
            tuple(run for run in ordered if run.record.arm == name and run.record.status == "failed"),
        )
        for name in names
    )


def baselines_of(arms: Sequence[Arm], wanted: str | None = None) -> dict[str, Arm]:
    """Say what each arm is held against; an arm that is held against nothing is not in the result.

    Without a wish: the arm that the configuration names as `sweep.baseline`, itself for nothing; else the supervised arm with
    the same student, first of all one that saw the same share of labels, then the one whose configuration differs least (with
    the same other technique, say); else the first arm. A supervised arm is held against the plainest of its kind. Arms on
    other data are never compared.

    Args:
        arms: All arms.
        wanted: Name of the arm that all others are held against.

    Raises:
        UnknownNameError: if no arm has that name.
    """
    if wanted is not None:
        choose(wanted, [arm.name for arm in arms], "arm", where="--baseline")
    found = {}
    for arm in arms:
        base = _baseline(arm, arms, wanted)
        if base is not None and base is not arm:
            found[arm.name] = base
    return found


def _told_by_sweep(arm: Arm) -> str:
    sweep = arm.first.record.configuration.get("sweep")
    return str(sweep.get("baseline") or "") if isinstance(sweep, Mapping) else ""


def _baseline(arm: Arm, arms: Sequence[Arm], wanted: str | None) -> Arm | None:
    comparable = [other for other in arms if other.done and other.measured_on == arm.measured_on]
    told = [other for other in comparable if other.name == (wanted or _told_by_sweep(arm))]
    if told or wanted is not None:
        return next(iter(told), None)
    supervised = [other for other in comparable if other.method == "supervised" and other.student == arm.student]
    if not supervised:
        return next(iter(comparable), None)
    seen = [other for other in supervised if other.seen == arm.seen] or supervised
    if arm.method == "supervised":
        # Of arms that learn from labels alone, the one with the shortest name has no other technique added.
        return min(seen, key=lambda other: len(other.name))
    mine = flat(arm.first.record.configuration)
    return min(seen, key=lambda other: (_differing(mine, other), len(other.name)))


def _differing(mine: Mapping[str, Any], other: Arm) -> int:
    """Count the entries that two configurations have both, with different values."""
    theirs = flat(other.first.record.configuration)
    return sum(mine[key] != theirs[key] for key in mine.keys() & theirs.keys())


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested entries by dotted name.

    >>> flat({"method": {"name": "dkd", "alpha": 1}, "seed": 0})
    {'method.name': 'dkd', 'method.alpha': 1, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
