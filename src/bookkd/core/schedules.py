"""Hyper-parameters that move: a `Schedule` is anything called with a `Clock` that returns a number.

A hyper-parameter of a method is `float | Schedule`; `objectives/terms.py` is the one place that resolves it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bookkd.core.check import at_least, finite
from bookkd.core.errors import ConfigError, expected

__all__ = [
    "Clock", "Complement", "Cosine", "During", "GaussianRamp", "Linear", "Ramp", "Schedule", "Steps", "Times", "may_be", "parse_schedule", "resolve", "times",
]  # fmt: skip


@dataclass(frozen=True)
class Clock:
    """Where training is.

    Args:
        step: Optimizer steps done, from 0.
        epoch: Epochs done, from 0; fractional inside an epoch.
        total_steps: Optimizer steps of the whole run, at least 1.
    """

    step: int = 0
    epoch: float = 0.0
    total_steps: int = 1

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1."""
        return min(1.0, self.step / max(1, self.total_steps))


@runtime_checkable
class Schedule(Protocol):
    """A number as a function of the clock."""

    def __call__(self, clock: Clock) -> float: ...


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` in a straight line over the run.

    >>> Linear(1.0, 3.0)(Clock(step=5, total_steps=10))
    2.0
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        finite(self.start, "start", where="Linear schedule")
        finite(self.end, "end", where="Linear schedule")

    def __call__(self, clock: Clock) -> float:
        return self.start + (self.end - self.start) * clock.progress


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` along half a cosine: end + (start - end) (1 + cos(pi progress)) / 2.

    >>> round(Cosine(1.0, 0.0)(Clock(step=5, total_steps=10)), 6)
    0.5
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        finite(self.start, "start", where="Cosine schedule")
        finite(self.end, "end", where="Cosine schedule")

    def __call__(self, clock: Clock) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * clock.progress)) / 2


@dataclass(frozen=True)
class Steps:
    """`values[i]` from epoch `epochs[i-1]` on; one value more than epochs.

    >>> Steps((1.0, 0.1), (10,))(Clock(epoch=10))
    0.1
    """

    values: tuple[float, ...]
    epochs: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.epochs) + 1:
            raise ConfigError(
                expected(
                    "values", f"one more than the {len(self.epochs)} epochs", len(self.values), where="Steps schedule"
                )
            )
        for value in self.values:
            finite(value, "values", where="Steps schedule")
        for epoch in self.epochs:
            at_least(epoch, 0, "epochs", where="Steps schedule")
        if list(self.epochs) != sorted(set(self.epochs)):
            raise ConfigError(expected("epochs", "increasing", self.epochs, where="Steps schedule"))

    def __call__(self, clock: Clock) -> float:
        return self.values[sum(clock.epoch >= epoch for epoch in self.epochs)]


@dataclass(frozen=True)
class Ramp:
    """From 1 / `epochs` in the first epoch to 1 in epoch `epochs` and after it, the same throughout an epoch.

    min(e / epochs, 1) with e the epochs begun, counted from 1: the warm-up of a term, whatever the length of the run.

    >>> [Ramp(4)(Clock(epoch=epoch)) for epoch in (0.0, 0.9, 1.0, 3.0, 7.0)]
    [0.25, 0.25, 0.5, 1.0, 1.0]
    """

    epochs: int

    def __post_init__(self) -> None:
        at_least(self.epochs, 1, "epochs", where="Ramp schedule")

    def __call__(self, clock: Clock) -> float:
        return min(1.0, (math.floor(clock.epoch) + 1) / self.epochs)


@dataclass(frozen=True)
class GaussianRamp:
    """From about 0 to `peak` in `epochs`: peak exp(-5 (1 - min(e, epochs) / epochs)^2), with e the epochs done.

    >>> [round(GaussianRamp(1.0, 80)(Clock(epoch=epoch)), 6) for epoch in (0, 40, 80, 90)]
    [0.006738, 0.286505, 1.0, 1.0]

    Source: Laine and Aila, ICLR 2017 (arXiv 1610.02242); with 80 epochs the ramp of ONE (arXiv 1806.04606).
    """

    peak: float
    epochs: int

    def __post_init__(self) -> None:
        finite(self.peak, "peak", where="GaussianRamp schedule")
        at_least(self.epochs, 1, "epochs", where="GaussianRamp schedule")

    def __call__(self, clock: Clock) -> float:
        return self.peak * math.exp(-5 * (1 - min(clock.epoch, self.epochs) / self.epochs) ** 2)


@dataclass(frozen=True)
class Complement:
    """1 less another schedule: the weight that is left for a second term.

    >>> Complement(Linear(0.0, 1.0))(Clock(step=1, total_steps=4))
    0.75
    """

    schedule: Schedule

    def __call__(self, clock: Clock) -> float:
        return 1 - self.schedule(clock)


@dataclass(frozen=True)
class Times:
    """Another schedule times a number: the weight of one of several terms that are scheduled together.

    >>> Times(Linear(0.0, 1.0), 50.0)(Clock(step=1, total_steps=4))
    12.5
    """

    of: Schedule
    factor: float

    def __call__(self, clock: Clock) -> float:
        return self.factor * self.of(clock)


@dataclass(frozen=True)
class During:
    """A number or another schedule from epoch `start` until before epoch `stop` (None: to the end), and 0 elsewhere.

    >>> During(2.0, 3, None)(Clock(epoch=2)), During(2.0, 3, None)(Clock(epoch=3))
    (0.0, 2.0)
    """

    of: float | Schedule
    start: int
    stop: int | None

    def __call__(self, clock: Clock) -> float:
        inside = clock.epoch >= self.start and (self.stop is None or clock.epoch < self.stop)
        return resolve(self.of, clock) if inside else 0.0


def times(value: float | Schedule, factor: float) -> float | Schedule:
    """Return a number or a schedule times a number.

    >>> times(2.0, 3.0)
    6.0
    """
    return Times(value, factor) if callable(value) else value * factor


def resolve(value: float | Schedule, clock: Clock) -> float:
    """Return the number that `value` is at `clock`.

    >>> resolve(4.0, Clock()), resolve(Linear(0.0, 1.0), Clock(step=1, total_steps=4))
    (4.0, 0.25)
    """
    return float(value(clock)) if callable(value) else float(value)


def may_be(value: float | Schedule, point: float) -> bool:
    """Say whether a number is `point`, or a schedule may end, begin or stop there; of one that is not ours nobody knows.

    >>> may_be(0.5, 1), may_be(Linear(0.5, 1.0), 1), may_be(Steps((0.1, 0.5), (3,)), 1), may_be(lambda clock: 0.0, 1)
    (False, True, False, True)
    """
    if not callable(value):
        return value == point
    if isinstance(value, Linear | Cosine):
        return point in (value.start, value.end)
    return point in value.values if isinstance(value, Steps) else True


def parse_schedule(text: str | float) -> float | Schedule:
    """Read a number or a schedule from text, as the command line and YAML give it.

    Forms: `4`, `linear:4:1`, `cosine:4:1`, `steps:4,30=2,60=1` (4 from the start, 2 from epoch 30, 1 from epoch 60).

    Raises:
        ConfigError: for any other text.

    >>> parse_schedule("8"), parse_schedule("linear:4:1"), parse_schedule("steps:4,30=2")
    (8.0, Linear(start=4.0, end=1.0), Steps(values=(4.0, 2.0), epochs=(30,)))
    """
    if not isinstance(text, str):
        return text
    kind, _, rest = text.partition(":")
    try:
        if not rest:
            return finite(float(kind), "schedule")
        if kind in ("linear", "cosine"):
            start, end = (float(part) for part in rest.split(":"))
            return Linear(start, end) if kind == "linear" else Cosine(start, end)
        if kind == "steps":
            first, *later = rest.split(",")
            pairs = [part.split("=") for part in later]
            values = (float(first), *(float(value) for _, value in pairs))
            return Steps(values, tuple(int(epoch) for epoch, _ in pairs))
    except ConfigError:
        raise
    except ValueError:
        pass
    forms = "a number, linear:START:END, cosine:START:END or steps:FIRST,EPOCH=VALUE,..."
    raise ConfigError(expected("schedule", forms, text))
