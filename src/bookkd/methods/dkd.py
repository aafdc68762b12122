"""Decoupled distillation: how sure the teacher is of the true class, and how it divides the rest, get weights of their own.

What it does: with student logits z, teacher logits v, label y, p = softmax(v / T) and q = softmax(z / T), per sample

    L = ce_weight CE(z, y) + w(epoch) T^2 (alpha TCKD + beta NCKD),
    TCKD = KL((p_y, 1 - p_y) || (q_y, 1 - q_y)), NCKD = KL(p^ || q^) over the classes other than y, brought to sum 1,

with w the warm-up min(epoch / warmup_epochs, 1), whole epochs counted from 1. Plain distillation is the same with alpha 1 and
beta 1 - p_y, which is small where the teacher is sure.
When to use: where vanilla distillation works and the teacher is sure of most samples; with many classes.
Parameters: `alpha` 1, `beta` 8, `temperature` 4, `ce_weight` 1, `warmup_epochs` 20 (CIFAR-100, 240 epochs). Beta is tuned for
each pair; the presets are the paper's, by pair or by teacher. On ImageNet T is 1 and `warmup_epochs` 1, which is none. In a run
of fewer than 20 epochs the warm-up never ends: lower it in proportion.
What it costs: one pass of the student and one read of the book.
What it clashes with: hidden labels, whose samples teach nothing; mixed views, which have two true classes (refused at the first
batch); sparse books (refused); two classes, which have no NCKD, so that alpha alone does anything.
Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, and its released code; certain.
We stay in log-probabilities where the code subtracts 1000 from a logit and takes the logarithm of a sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bookkd.core.check import at_least
from bookkd.core.fields import LABEL, LOGITS, PARTNER_LABEL
from bookkd.core.schedules import Ramp, Schedule
from bookkd.losses import decoupled_kl
from bookkd.methods._parts import check_some_weight, check_temperatures, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, bind, labelled
from bookkd.tasks import Task

__all__ = ["DKD"]


@dataclass(frozen=True)
class DKD(BaseMethod):
    """Match the true class and the others apart.

    Args:
        alpha: Weight of the true class against all others, at least 0.
        beta: Weight of the others among themselves, at least 0; not both 0.
        temperature: T, above 0, the same on both sides; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves it out.
        warmup_epochs: Epochs until the soft term has its full weight, at least 1, which is no warm-up.
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float | Schedule = 4.0
    ce_weight: float | Schedule = 1.0
    warmup_epochs: int = 20

    name: ClassVar[str] = "dkd"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "segmentation")  # two outcomes have no others to divide
    card: ClassVar[Card] = Card(
        "The true class and the others matched apart",
        "Zhao et al., CVPR 2022, arXiv 2203.08679",
        "logits of one view, dense, and labels",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "resnet56-resnet20": {"beta": 2.0},
        "resnet110-resnet32": {"beta": 2.0},
        "wrn40-2": {"beta": 6.0},
        "vgg13": {"beta": 6.0},
        "imagenet-resnet34-resnet18": {"beta": 0.5, "temperature": 1.0, "warmup_epochs": 1},
        "imagenet-resnet50-mobilenetv1": {"beta": 2.0, "temperature": 1.0, "warmup_epochs": 1},
    }

    def __post_init__(self) -> None:
        check_temperatures(self, "temperature")
        check_some_weight(self, "alpha", "beta")
        at_least(self.warmup_epochs, 1, "warmup_epochs", where=f"method {self.name}")

    def objective(self, task: Task) -> Objective:
        """Return the soft term where the label is known, and the label term unless its weight is the number 0."""
        soft = bind(
            decoupled_kl,
            LOGITS,
            teacher=LOGITS,
            # The partner's label is asked for so that the loss can refuse mixed views.
            batch=(LABEL, PARTNER_LABEL),
            weight=Ramp(self.warmup_epochs),
            name="decoupled",
            mask=labelled,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            t_squared=True,
        )
        return Objective(with_labels(task, (soft,), weight=self.ce_weight))
