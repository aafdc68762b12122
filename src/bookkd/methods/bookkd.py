"""BookKD: many teachers' knowledge, regularised, in a book that a student learns at an entropy of its own choice.

What it does: making runs the teachers once and stores each one's logits at temperature 1. Learning combines and regularises
them on reading, and minimises, with student logits z, labels y and a trained scalar a > 0,

    b = regularise(sum_m w_m softmax(t_m / T)),  L = ce_weight CE(smoothed y, z) + kd_weight T^2 KL(b || softmax(a z / T)).

Regularisation, in this order: `correct` mixes in the least label that makes the true class tie for first, `flatten` mixes in
the uniform distribution, the entropy band brings each record's entropy between `entropy_low` and `entropy_high`. The scalar a
(entropy dynamic adjustment) lets the student match a book of another entropy without changing its own logits' size; it has a
learning rate of its own, is logged as `entropy_scale` with the entropies of book and student, and inference does without it.
When to use: with several teachers, or with one whose sureness does not suit the student. `bookkd compare --preset ablation`
trains the table with each of its four parts left out.
Parameters: temperature 4, ce_weight 0.1, kd_weight 0.9, label_smoothing 0.1 (the card's defaults for CIFAR: tune them), teachers
in equal parts by averaged probabilities, no regularisation; `scale_lr` 0.05, no weight decay, a kept in 0.05 to 20.
What it costs: one pass of the student and one read of each teacher's logits a record; the teachers are not in memory.
What it clashes with: sparse books (the parts look at every class), mixed views with `correct`, and extraction, which takes out
the uniform share that `flatten` mixes in. A learned a can hide a temperature that does not fit: look at its curve.
Source: reconstructed. Zhu, Shang, Tang, Xu, Li, "BookKD", Knowledge-Based Systems 2023, doi 10.1016/j.knosys.2023.110916, of
which only the abstract was read: it names the four parts and gives no formula. The scalar follows the same group's
DynamicKD (arXiv 2305.05233). With one teacher, no regularisation, the scalar frozen and no smoothing it is `vanilla-kd`
to the bit; none of the paper's results are claimed for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bookkd.core.check import between, finite, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LOGITS
from bookkd.core.schedules import Schedule
from bookkd.losses import soft_target_kl, student_entropy, teacher_entropy
from bookkd.methods._parts import check_idle, check_smoothing, check_temperatures, check_weights, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import (
    Combine,
    Connector,
    Correct,
    EntropyBand,
    FieldTransform,
    Flatten,
    Objective,
    Scale,
    Shapes,
    Term,
    bind,
    transformed,
)
from bookkd.tasks import Task

__all__ = ["BookKD"]

_SCALED = "logits/scaled"
_SCALE = "entropy_scale"


@dataclass(frozen=True)
class BookKD(BaseMethod):
    """Learn from a regularised ensemble at an adjustable entropy.

    Args:
        temperature: T, above 0, the same on both sides; a number or a schedule.
        kd_weight: Weight of the book's term, above 0.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        label_smoothing: Of the label term, 0 to 1.
        ensemble: Average the teachers' "probability" or "logit".
        weights: Of the teachers: "uniform", "accuracy" (held-out, from the book), or numbers such as '[0.6,0.4]'.
        correct: Make the true class tie for first where the teachers are wrong.
        flatten: Share of the uniform distribution mixed in, 0 to below 1.
        entropy_low: Least entropy of a record in nats; None for no bound.
        entropy_high: Most entropy of a record in nats; None for no bound.
        learn_scale: Train the scalar a; False freezes it at 1.
        scale_lr: Peak learning rate of a, above 0.
        scale_low: Least a, above 0 to 1.
        scale_high: Most a, at least 1, and above scale_low where a is trained.
    """

    temperature: float | Schedule = 4.0
    kd_weight: float | Schedule = 0.9
    ce_weight: float | Schedule = 0.1
    label_smoothing: float = 0.1
    ensemble: Literal["probability", "logit"] = "probability"
    weights: Literal["uniform", "accuracy"] | tuple[float, ...] = "uniform"
    correct: bool = False
    flatten: float = 0.0
    entropy_low: float | None = None
    entropy_high: float | None = None
    learn_scale: bool = True
    scale_lr: float = 0.05
    scale_low: float = 0.05
    scale_high: float = 20.0

    name: ClassVar[str] = "bookkd"
    tasks: ClassVar[tuple[str, ...]] = (
        "causal-lm",
        "classification",
        "multi-label",
        "segmentation",
        "seq2seq",
        "tagging",
    )
    card: ClassVar[Card] = Card(
        "Regularised ensemble of teachers, entropy adjusted by a trained scalar, label smoothing",
        "Zhu et al., Knowledge-Based Systems 2023 (abstract only); DynamicKD, arXiv 2305.05233",
        "logits of one view, of any number of teachers",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "regularised": {"correct": True, "flatten": 0.05},
        "without-scale": {"learn_scale": False},
        "without-smoothing": {"label_smoothing": 0.0},
        "vanilla": {"learn_scale": False, "label_smoothing": 0.0},
    }

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        check_temperatures(self, "temperature")
        check_weights(self, "ce_weight")
        check_smoothing(self)
        positive(self.scale_lr, "scale_lr", where=where)
        positive(between(self.scale_low, 0, 1, "scale_low", where=where), "scale_low", where=where)
        between(self.scale_high, 1, 1e6, "scale_high", where=where)
        if self.learn_scale and self.scale_low == self.scale_high:
            do = "Pass --method.learn_scale False to freeze the scalar."
            raise ConfigError(expected("scale_high", "above scale_low", self.scale_high, where=where, do=do))
        check_idle(self)
        # Each part checks its own values.
        object.__setattr__(self, "weights", Combine(self.ensemble, self.weights).weights)
        self._regularisation()

    def idle(self) -> Mapping[str, str]:
        """Return the options of the scalar where it is frozen."""
        return {} if self.learn_scale else dict.fromkeys(("scale_lr", "scale_low", "scale_high"), "learn_scale False")

    def teacher_transforms(self) -> tuple[FieldTransform, ...]:
        """Return what is done to the teachers' logits on reading: how they are combined, and the regularisation."""
        changes = (Combine(self.ensemble, self.weights), *self._regularisation())
        # What an ensemble is anyway; without it a sparse book of one teacher serves too.
        return () if changes == (Combine(),) else changes

    def _regularisation(self) -> tuple[FieldTransform, ...]:
        between(self.flatten, 0, 0.999, "flatten", where=f"method {self.name}")
        if self.correct and self.entropy_high is not None and self.entropy_high < math.log(2):
            do = "A corrected record has two classes that tie for first, whose entropy is log 2 at least."
            wish = f"at least log 2 = {math.log(2):.4g} with correct"
            raise ConfigError(expected("entropy_high", wish, self.entropy_high, where=f"method {self.name}", do=do))
        found: list[FieldTransform] = []
        if self.correct:
            found.append(Correct())
        if self.flatten:
            found.append(Flatten(self.flatten))
        if self.entropy_low is not None or self.entropy_high is not None:
            high = math.inf if self.entropy_high is None else finite(self.entropy_high, "entropy_high", where=self.name)
            found.append(EntropyBand(0.0 if self.entropy_low is None else self.entropy_low, high))
        return tuple(found)

    def objective(self, task: Task) -> Objective:
        """Return the book's term, the label term unless its weight is the number 0, and what is only logged."""
        tempered: dict[str, Any] = {"temperature": self.temperature}
        kl: dict[str, Any] = {**tempered, "t_squared": True, "class_reduction": "sum"}
        field = _SCALED if self.learn_scale else LOGITS
        changes = self.teacher_transforms()
        soft = bind(soft_target_kl, field, teacher=LOGITS, weight=self.kd_weight, name="soft_target", **kl)
        terms: tuple[Term, ...] = (transformed(soft, *changes),)
        terms = with_labels(task, terms, weight=self.ce_weight, label_smoothing=self.label_smoothing)
        if not self.learn_scale:
            return Objective(terms)
        book = bind(teacher_entropy, field, teacher=LOGITS, weight=0.0, name="book_entropy", **tempered)
        terms += (transformed(book, *changes), bind(student_entropy, field, weight=0.0, **tempered))
        return Objective(terms, (Connector(_SCALE, LOGITS, _SCALED, self._scale, lr=self.scale_lr),))

    def _scale(self, shapes: Shapes) -> Scale:
        return Scale(self.scale_low, self.scale_high, _SCALE)
