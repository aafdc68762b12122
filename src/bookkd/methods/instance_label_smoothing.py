"""Self-distillation as instance-specific label smoothing: generations that teach one another, and Beta smoothing without one.

What it does: with student logits z, p = softmax(z) and labels y,

    self-distillation:  L = CE(y, z) + beta CE(softmax(g / T), p), g the logits of the generation before (a book);
    beta-smoothing:     L = (1 - w) CE(y, z) + w CE(b on y and (1 - b) / (K - 1) elsewhere, p), with draws b ~ Beta(a, 1)
                        whose order within the batch is that of the confidences of an averaged copy of the student.

The first is read as a prior: every sample has a Dirichlet distribution of its own over class probabilities, which the teacher
gives; label smoothing is the case of one prior for all. The second gives each sample a strength of its own with no teacher.
When to use: self-distillation with one architecture and several trainings to spend (`bookkd chain --generations 3`, which also
measures the diversity of confidences of each generation); Beta smoothing in place of label smoothing in a single training.
Parameters: beta 1, temperature 4, on the teacher's side alone (`student_temperature` 4 with `t_squared` gives Hinton's form);
Beta smoothing: concentration (a) 3, weight (w) 0.6, momentum 0.999; a = 3 smooths by 0.25 on average, times w by 0.15.
`confidence="book"` ranks by a stored teacher in place of the averaged student: a variant of ours, not of the paper.
What it costs: self-distillation, one book and one training a generation; Beta smoothing, a second pass without gradient.
What it clashes with: mixed views and hidden labels (Beta smoothing looks at labels; hidden ones get no target); ranks are
within a batch on one rank, so they depend on its size.
Source: Zhang and Sabuncu, "Self-Distillation as Instance-Specific Label Smoothing", NeurIPS 2020, arXiv 2006.05065, and its
released code: Beta smoothing certain. Self-distillation reconstructed: its equation is from memory, and whether the
released script softens the student too was not found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from bookkd.core.check import below, between, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LOGITS, OWN
from bookkd.core.names import choose
from bookkd.core.protocols import Knowledge, Needs
from bookkd.core.schedules import Schedule
from bookkd.knowledge import BetaSmoothing, SelfKnowledge
from bookkd.losses import soft_cross_entropy
from bookkd.methods._parts import check_idle, check_temperatures, check_weights, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, Temper, bind, labelled, masked, transformed
from bookkd.tasks import Task

__all__ = ["BetaLabelSmoothing", "SelfDistillation"]

_PAPER = "Zhang and Sabuncu, NeurIPS 2020, arXiv 2006.05065"


@dataclass(frozen=True)
class SelfDistillation(BaseMethod):
    """Add the cross-entropy under the generation before to that of the labels.

    Args:
        beta: Weight of the teacher's term, above 0; the labels have weight 1.
        temperature: T of the teacher, above 0.
        student_temperature: Of the student, above 0.
        t_squared: Multiply the teacher's term by the square of the student's temperature.
    """

    beta: float | Schedule = 1.0
    temperature: float = 4.0
    student_temperature: float | Schedule = 1.0
    t_squared: bool = False

    name: ClassVar[str] = "self-distillation"
    card: ClassVar[Card] = Card(
        "Labels, and the generation before as a prior of each sample",
        _PAPER,
        "logits of one view, by the student's own architecture",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "hinton": {"student_temperature": 4.0, "t_squared": True},
    }

    def __post_init__(self) -> None:
        check_temperatures(self, "temperature", "student_temperature")
        check_weights(self, soft="beta")

    def objective(self, task: Task) -> Objective:
        """Return the label term and the teacher's."""
        hyper: dict[str, Any] = {"temperature": self.student_temperature, "t_squared": self.t_squared}
        soft = bind(soft_cross_entropy, LOGITS, teacher=LOGITS, weight=self.beta, name="prior", **hyper)
        if self.student_temperature != self.temperature:
            soft = transformed(soft, Temper(self.temperature))
        return Objective(with_labels(task, (soft,), weight=1.0))


@dataclass(frozen=True)
class BetaLabelSmoothing(BaseMethod):
    """Smooth each label by a random amount whose rank in the batch is that of the student's own confidence.

    Args:
        concentration: a of Beta(a, 1), above 0; labels are smoothed by 1 / (a + 1) on average.
        weight: w of the smoothed term, above 0 to 1; the plain labels get the rest.
        momentum: Largest factor of the averaged student, 0 to below 1.
        confidence: Who ranks: "student", the averaged copy, or "book".
        average: "train" keeps the copy in training mode, as the released code does; "eval" evaluates it.
    """

    concentration: float = 3.0
    weight: float = 0.6
    momentum: float = 0.999
    confidence: Literal["student", "book"] = "student"
    average: Literal["train", "eval"] = "train"

    name: ClassVar[str] = "beta-smoothing"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)  # it ranks samples by the confidence in their one class
    card: ClassVar[Card] = Card("Label smoothing of a strength of its own for each sample", _PAPER, "labels", "certain")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"evaluated-average": {"average": "eval"}}

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        positive(self.concentration, "concentration", where=where)
        positive(between(self.weight, 0, 1, "weight", where=where), "weight", where=where)
        below(self.momentum, 0, 1, "momentum", where=where)
        choose(self.confidence, ("student", "book"), "confidence", where=where)
        choose(self.average, ("train", "eval"), "average", where=where)
        check_idle(self)

    def idle(self) -> Mapping[str, str]:
        """Return the options of the averaged student where a book ranks."""
        return dict.fromkeys(("momentum", "average"), "confidence book") if self.confidence == "book" else {}

    def objective(self, task: Task) -> Objective:
        """Return the term of the smoothed labels, and the plain label term unless its weight is 0."""
        hyper: dict[str, Any] = {"temperature": 1.0, "t_squared": False}
        smoothed = bind(soft_cross_entropy, LOGITS, teacher=f"{OWN}beta", weight=self.weight, name="beta", **hyper)
        return Objective(with_labels(task, (masked(smoothed, labelled),), weight=1 - self.weight))

    def needs(self, task: Task) -> Needs:
        """Return the logits of the book that ranks, if one does."""
        ranked = {LOGITS: (1.0,)} if self.confidence == "book" else {}
        return Needs(fields=ranked, dense=tuple(ranked))

    def own_knowledge(
        self, learner: nn.Module, task: Task, given: Knowledge | None, seed: int
    ) -> tuple[Knowledge, ...]:
        """Return the smoothed labels."""
        shape = task.field_infos[LOGITS].shape
        if self.confidence == "book":
            if given is None:
                raise ConfigError(expected("knowledge", "a book to rank by", None, where=f"method {self.name}"))
            return (BetaSmoothing(given, LOGITS, shape, concentration=self.concentration, seed=seed),)
        average = SelfKnowledge(learner, task.field_infos, momentum=self.momentum, mode=self.average)
        return (BetaSmoothing(average, OWN + LOGITS, shape, concentration=self.concentration, seed=seed),)
