"""Interleaved pairs and their median ratio."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from bookkd.core.rng import generator

__all__ = ["Goal", "Ratio", "machine", "paired"]


@dataclass(frozen=True)
class Ratio:
    """The ratios of interleaved pairs.

    Args:
        values: One ratio a pair.
        seconds: Median seconds of numerator and denominator.
    """

    values: tuple[float, ...]
    seconds: tuple[float, float]

    @property
    def median(self) -> float:
        """Median over the pairs."""
        return statistics.median(self.values)

    def interval(self, level: float = 0.95, replicates: int = 4000) -> tuple[float, float]:
        """Return the bootstrap interval of the median."""
        draws = generator(0, "bench").integers(len(self.values), size=(replicates, len(self.values)))
        medians = np.median(np.asarray(self.values)[draws], axis=1)
        low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


@dataclass(frozen=True)
class Goal:
    """One measured figure and what it should be; `goal` is None for a figure that is only shown.

    Args:
        name: What is measured, in words.
        value: The figure.
        goal: What it is compared with.
        sense: "<=" or ">=".
        low: Lower end of the 95 % interval.
        high: Upper end.
        pairs: Measurements behind it.
        note: What else a reader should know, such as seconds.
    """

    name: str
    value: float
    goal: float | None
    sense: Literal["<=", ">="] = "<="
    low: float | None = None
    high: float | None = None
    pairs: int = 1
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the figure meets the goal; a figure without a goal does."""
        if self.goal is None:
            return True
        return self.value <= self.goal if self.sense == "<=" else self.value >= self.goal

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        kept = ("name", "value", "goal", "sense", "low", "high", "pairs", "note")
        return {**{key: getattr(self, key) for key in kept}, "holds": self.holds}

    @classmethod
    def of(cls, name: str, ratio: Ratio, goal: float | None, sense: Literal["<=", ">="] = "<=") -> Goal:
        """Return the median of `ratio` as a goal."""
        low, high = ratio.interval()
        note = f"{_time(ratio.seconds[0])} over {_time(ratio.seconds[1])}"
        return cls(name, ratio.median, goal, sense, low, high, len(ratio.values), note)


def _time(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{1e3 * seconds:.3g} ms"
        if seconds >= 1e-3
        else f"{1e6 * seconds:.3g} us"
    )


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def paired(one: Callable[[], object], other: Callable[[], object], pairs: int) -> Ratio:
    """Time `one` over `other` in turn, the order changing with each pair, after one warm-up of both.

    What else the machine does falls on both alike.

    Args:
        one: Numerator.
        other: Denominator.
        pairs: How many pairs.
    """
    one(), other()
    measured = []
    for number in range(pairs):
        if number % 2:
            below = timed(other)
            above = timed(one)
        else:
            above = timed(one)
            below = timed(other)
        measured.append((above, below))
    medians = statistics.median(a for a, _ in measured), statistics.median(b for _, b in measured)
    return Ratio(tuple(a / b for a, b in measured), medians)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
