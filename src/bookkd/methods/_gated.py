"""What the methods of gates share: softened logits of the teacher, labels, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bookkd.core.schedules import Schedule
from bookkd.methods._parts import check_idle, check_smoothing, check_some_weight, check_temperatures, with_labels
from bookkd.methods.base import BaseMethod
from bookkd.objectives import Term
from bookkd.tasks import Task

__all__ = ["WithOrWithoutTeacher"]


@dataclass(frozen=True)
class WithOrWithoutTeacher(BaseMethod):
    """Softened logits of a teacher, and labels; either may have weight 0."""

    temperature: float | Schedule = 4.0
    kd_weight: float | Schedule = 0.9
    ce_weight: float | Schedule = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_temperatures(self, "temperature")
        do = "A student learns from labels or from a teacher: give one of them a weight."
        check_some_weight(self, "kd_weight", "ce_weight", beside="kd_weight", do=do)
        check_smoothing(self)
        check_idle(self)

    def idle(self) -> Mapping[str, str]:
        """Return the temperature where no teacher is softened."""
        return {"temperature": "kd_weight 0"} if self.kd_weight == 0 else {}

    def said(self, task: Task) -> tuple[Term, ...]:
        """Return the term of the teacher and that of the labels, without those of weight 0."""
        soft: tuple[Term, ...] = ()
        if self.kd_weight != 0:
            options: dict[str, Any] = {"t_squared": True, "class_reduction": "sum", "soft_loss": "kl"}
            soft = (task.soft_term(weight=self.kd_weight, temperature=self.temperature, **options),)
        return with_labels(task, soft, weight=self.ce_weight, label_smoothing=self.label_smoothing)
