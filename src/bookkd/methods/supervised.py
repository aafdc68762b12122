"""Labels only: the baseline that every method must beat.

What it does: cross-entropy on the labels, with label smoothing if asked: L = CE(z, (1 - s) onehot(y) + s / K).
When to use: to know what a student reaches without a teacher, at the same number of steps on the same views.
Parameters: `label_smoothing` 0 (0.1 in Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016).
What it costs: one pass of the student; no book, no teacher.
What it clashes with: few labels. Samples whose label the student may not see (`IGNORE_LABEL`) do not count.
Source: standard; label smoothing from Szegedy et al., CVPR 2016, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bookkd.core.check import between
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective
from bookkd.tasks import Task

__all__ = ["Supervised"]


@dataclass(frozen=True)
class Supervised(BaseMethod):
    """Train on labels alone.

    Args:
        label_smoothing: Share of the target given to all classes alike, 0 to 1.
    """

    label_smoothing: float = 0.0

    name: ClassVar[str] = "supervised"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi-label", "regression")
    card: ClassVar[Card] = Card(
        "Labels only, with label smoothing", "Szegedy et al., CVPR 2016 (label smoothing)", "labels", "certain"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"inception": {"label_smoothing": 0.1}}

    def __post_init__(self) -> None:
        between(self.label_smoothing, 0, 1, "label_smoothing", where=f"method {self.name}")

    def objective(self, task: Task) -> Objective:
        """Return one term: the task's label term."""
        return Objective((task.label_term(weight=1.0, label_smoothing=self.label_smoothing),))
