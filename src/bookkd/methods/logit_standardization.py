"""Logit standardisation: student and teacher are compared in shape alone, not in the size and place of their logits.

What it does: with Z(x) = (x - mean x) / (1e-7 + std x) over the classes of each sample,

    L = ce_weight CE(z, y) + kd_weight T^2 KL(softmax(Z(v) / T) || softmax(Z(z) / T)).

When to use: where a small student cannot reach the teacher's logits. `objectives.Standardise` is the same on any other loss
on logits.
Parameters: `temperature` 2 (the paper's base temperature), `kd_weight` 9, `ce_weight` 0.1; `ddof` 1 as in the released code.
The authors suggest T in 2 and 3 with kd_weight / T^2 in 3 to 15. Weight 9 is deliberate, so that a gain mixes weight and
standardisation: compare with `vanilla-kd --method.preset logit-standardization`, which has the weights alone.
What it costs: one pass of the student and one read of the book.
What it clashes with: sparse books, whose mean and deviation are unknown, and masked classes (both refused).
Source: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427, and its released
code; certain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bookkd.core.fields import LOGITS
from bookkd.core.schedules import Schedule
from bookkd.losses import soft_target_kl
from bookkd.methods._parts import check_temperatures, check_weights, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, Standardise, bind, transformed
from bookkd.tasks import Task

__all__ = ["LogitStandardization"]


@dataclass(frozen=True)
class LogitStandardization(BaseMethod):
    """Match softened, standardised logits, with some weight on the labels.

    Args:
        temperature: T, above 0, the same on both sides; a number or a schedule.
        kd_weight: Weight of the soft term, above 0.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        ddof: 1 for the unbiased deviation of the released code, 0 for the population's.
    """

    temperature: float | Schedule = 2.0
    kd_weight: float | Schedule = 9.0
    ce_weight: float | Schedule = 0.1
    ddof: Literal[0, 1] = 1

    name: ClassVar[str] = "logit-standardization"
    tasks: ClassVar[tuple[str, ...]] = (
        "classification",
        "segmentation",
    )  # two standardised outcomes are +-1, whatever the logits
    card: ClassVar[Card] = Card(
        "Soft targets of logits brought to mean 0 and deviation 1",
        "Sun et al., CVPR 2024, arXiv 2403.01427",
        "logits of one view, dense",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"population-std": {"ddof": 0}}

    def __post_init__(self) -> None:
        check_temperatures(self, "temperature")
        check_weights(self, "ce_weight")
        Standardise(self.ddof)

    def objective(self, task: Task) -> Objective:
        """Return the soft term, and the label term unless its weight is the number 0."""
        hyper: dict[str, Any] = {"temperature": self.temperature, "t_squared": True, "class_reduction": "sum"}
        soft = bind(soft_target_kl, LOGITS, teacher=LOGITS, weight=self.kd_weight, name="standardised", **hyper)
        soft = transformed(soft, Standardise(self.ddof))
        return Objective(with_labels(task, (soft,), weight=self.ce_weight))
