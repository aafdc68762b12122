"""Teacher-free distillation: learn from one's own trained copy, or from a teacher that only the labels make up.

What it does: with student logits z, labels y and q = onehot(y),

    tfkd-self: L = (1 - alpha) CE(q, z) + alpha T^2 KL(softmax(v / T) || softmax(z / T)), v of the same architecture, trained
               normally before;
    tfkd-reg:  L = (1 - alpha) CE(q, z) + alpha multiplier KL(softmax(d / T) || softmax(z / S)), with the virtual teacher d:
               `confidence` on the true class, the rest spread over the others, used *as if it were logits*.

form "code" has S = 1 (the released code, and what the authors used on CIFAR-100), form "paper" has S = T (equation 9).
When to use: without any larger teacher. Reversed distillation (a small teacher for a large student) and a defective teacher
(one whose training was stopped early) need no method of their own: learn by `tfkd-self` or `vanilla-kd` from such a book,
which is accepted, and whose accuracy `bookkd inspect` and the report show.
Parameters: self alpha 0.95, temperature 20; reg alpha 0.1, temperature 20, confidence 0.99, multiplier 1. The released code
divides its divergences by the number of classes (`class_reduction="mean"`) and multiplies some of them by 50 or 100; the
presets are its files for CIFAR-100, by network. Those of reg for DenseNet-121 (alpha 0.1, T 40) and ResNeXt-29 (alpha 0.5, T 40)
name no multiplier, without which its loss stops: they have no preset.
What it costs: self, one book by the student's own architecture; reg, nothing beside plain training.
What it clashes with: reg with few visible labels, since its teacher is made of them; in form "paper" at T = 20 its term is of
order 1e-4 and does next to nothing, and in form "code" it is label smoothing with another weight.
Source: Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020, arXiv
1909.11723, equations 8 and 9, and the released code; both forms certain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from bookkd.core.check import between, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LOGITS, OWN
from bookkd.core.names import choose
from bookkd.core.protocols import Knowledge
from bookkd.core.schedules import Schedule
from bookkd.knowledge import VirtualKnowledge
from bookkd.losses import soft_target_kl
from bookkd.methods._parts import check_temperatures, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, Temper, bind, labelled, masked, transformed
from bookkd.tasks import Task

__all__ = ["TfKDReg", "TfKDSelf"]

_PAPER = "Yuan et al., CVPR 2020, arXiv 1909.11723"


@dataclass(frozen=True)
class TfKDSelf(BaseMethod):
    """Learn from a book by a trained copy of the student itself.

    Args:
        temperature: T, above 0, the same on both sides; a number or a schedule.
        alpha: Weight of the soft term, above 0 to 1; the labels get the rest.
        multiplier: Further factor of the soft term, above 0.
        class_reduction: "sum" over classes, or "mean" as in the released code.
    """

    temperature: float | Schedule = 20.0
    alpha: float = 0.95
    multiplier: float = 1.0
    class_reduction: Literal["sum", "mean"] = "sum"

    name: ClassVar[str] = "tfkd-self"
    card: ClassVar[Card] = Card(
        "Learn from one's own trained copy", _PAPER, "logits of one view, by the student's own architecture", "certain"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mobilenetv2": {"alpha": 0.95, "temperature": 20.0, "multiplier": 1.0, "class_reduction": "mean"},
        "shufflenetv2": {"alpha": 0.95, "temperature": 20.0, "multiplier": 1.0, "class_reduction": "mean"},
        "resnet18": {"alpha": 0.95, "temperature": 6.0, "multiplier": 50.0, "class_reduction": "mean"},
        "googlenet": {"alpha": 0.4, "temperature": 20.0, "multiplier": 50.0, "class_reduction": "mean"},
        "densenet121": {"alpha": 0.9, "temperature": 20.0, "multiplier": 50.0, "class_reduction": "mean"},
        "resnext29": {"alpha": 0.9, "temperature": 20.0, "multiplier": 100.0, "class_reduction": "mean"},
        "reversed": {"alpha": 0.6, "temperature": 20.0, "class_reduction": "mean"},
    }

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        check_temperatures(self, "temperature")
        positive(between(self.alpha, 0, 1, "alpha", where=where), "alpha", where=where)
        positive(self.multiplier, "multiplier", where=where)
        choose(self.class_reduction, ("sum", "mean"), "class_reduction", where=where)

    def objective(self, task: Task) -> Objective:
        """Return the soft term, and the label term unless alpha is 1."""
        hyper: dict[str, Any] = {"temperature": self.temperature, "class_reduction": self.class_reduction}
        weight = self.alpha * self.multiplier
        soft = bind(soft_target_kl, LOGITS, teacher=LOGITS, weight=weight, name="soft_target", t_squared=True, **hyper)
        return Objective(with_labels(task, (soft,), weight=1 - self.alpha))


@dataclass(frozen=True)
class TfKDReg(BaseMethod):
    """Learn from a virtual teacher made of the labels.

    Args:
        temperature: T of the virtual teacher, above 0.
        alpha: Weight of the soft term, above 0 to 1; the labels get the rest.
        multiplier: Further factor of the soft term, above 0.
        confidence: Of the virtual teacher in the true class, above 1 / classes to 1.
        form: "code" leaves the student at temperature 1, "paper" softens it by T too.
        class_reduction: "sum" over classes, or "mean" as in the released code.
    """

    temperature: float = 20.0
    alpha: float = 0.1
    multiplier: float = 1.0
    confidence: float = 0.99
    form: Literal["code", "paper"] = "code"
    class_reduction: Literal["sum", "mean"] = "sum"

    name: ClassVar[str] = "tfkd-reg"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)  # its teacher gives one class of a sample the most
    card: ClassVar[Card] = Card("Learn from a virtual teacher made of the labels", _PAPER, "labels", "certain")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "resnet18": {"alpha": 0.1, "temperature": 20.0, "multiplier": 100.0, "class_reduction": "mean"},
        "googlenet": {"alpha": 0.1, "temperature": 40.0, "multiplier": 50.0, "class_reduction": "mean"},
        "mobilenetv2": {"alpha": 0.95, "temperature": 40.0, "multiplier": 1.0, "class_reduction": "mean"},
        "shufflenetv2": {"alpha": 0.95, "temperature": 10.0, "multiplier": 1.0, "class_reduction": "mean"},
        "paper": {"form": "paper"},
    }

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        check_temperatures(self, "temperature")
        positive(between(self.alpha, 0, 1, "alpha", where=where), "alpha", where=where)
        positive(self.multiplier, "multiplier", where=where)
        if not between(self.confidence, 0, 1, "confidence", where=where) > 0:
            raise ConfigError(expected("confidence", "above 0", self.confidence, where=where))
        choose(self.form, ("code", "paper"), "form", where=where)
        choose(self.class_reduction, ("sum", "mean"), "class_reduction", where=where)

    def objective(self, task: Task) -> Objective:
        """Return the term of the virtual teacher where the label is known, and the label term unless alpha is 1."""
        student = 1.0 if self.form == "code" else self.temperature
        hyper: dict[str, Any] = {"temperature": student, "t_squared": False, "class_reduction": self.class_reduction}
        weight = self.alpha * self.multiplier
        virtual = bind(soft_target_kl, LOGITS, teacher=f"{OWN}virtual", weight=weight, name="virtual_teacher", **hyper)
        virtual = masked(transformed(virtual, Temper(self.temperature)), labelled)
        return Objective(with_labels(task, (virtual,), weight=1 - self.alpha))

    def own_knowledge(
        self, learner: nn.Module, task: Task, given: Knowledge | None, seed: int
    ) -> tuple[Knowledge, ...]:
        """Return the virtual teacher."""
        return (VirtualKnowledge(len(task.class_names), confidence=self.confidence),)
