"""Labels only: the baseline that every method must beat.

What it does: cross-entropy on the labels, with label smoothing if asked: L = CE(z, (1 - s) onehot(y) + s / K), or with
s / (K - 1) on every class but the true one, which keeps 1 - s.
When to use: to know what a student reaches without a teacher, at the same number of steps on the same views.
Parameters: `label_smoothing` 0 (0.1 in Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016); `smoothing_over`
"all" classes, or "others" as in the released code of `tfkd-reg` and `beta-smoothing` (preset `others`).
What it costs: one pass of the student; no book, no teacher.
What it clashes with: few labels. Samples whose label the student may not see (`IGNORE_LABEL`) do not count.
Source: standard; label smoothing from Szegedy et al., CVPR 2016, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from bookkd.core.check import between
from bookkd.core.names import choose
from bookkd.methods._parts import check_idle
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective
from bookkd.tasks import Task

__all__ = ["Supervised"]


@dataclass(frozen=True)
class Supervised(BaseMethod):
    """Train on labels alone.

    Args:
        label_smoothing: Share of the target given to the classes that `smoothing_over` names, 0 to 1.
        smoothing_over: Give it to "all" classes, or to the "others" than the true one.
    """

    label_smoothing: float = 0.0
    smoothing_over: Literal["all", "others"] = "all"

    name: ClassVar[str] = "supervised"
    tasks: ClassVar[tuple[str, ...]] = (
        "causal-lm",
        "classification",
        "ctc",
        "multi-label",
        "regression",
        "segmentation",
        "seq2seq",
        "tagging",
    )
    card: ClassVar[Card] = Card(
        "Labels only, with label smoothing", "Szegedy et al., CVPR 2016 (label smoothing)", "labels", "certain"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "inception": {"label_smoothing": 0.1},
        "others": {"label_smoothing": 0.1, "smoothing_over": "others"},
    }

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        between(self.label_smoothing, 0, 1, "label_smoothing", where=where)
        choose(self.smoothing_over, ("all", "others"), "smoothing_over", where=where)
        check_idle(self)

    def idle(self) -> Mapping[str, str]:
        """Return where smoothing goes where there is none."""
        return {} if self.label_smoothing else {"smoothing_over": "label_smoothing 0"}

    def objective(self, task: Task) -> Objective:
        """Return one term: the task's label term."""
        term = task.label_term(weight=1.0, label_smoothing=self.label_smoothing)
        if self.smoothing_over != "all":
            term = replace(term, hyper={**term.hyper, "smoothing_over": self.smoothing_over})
        return Objective((term,))
