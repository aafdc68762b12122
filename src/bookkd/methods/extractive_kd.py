"""Extractive distillation: take the uniform share out of the teacher's softened distribution, and keep the likeness of classes.

What it does: temperature acts on the student's probabilities, the teacher's, and the weight of the loss; here each has a knob
of its own. With p = softmax(v / tau_t), m = min p, student logits z and labels y,

    g = (p - rho m) / (1 - rho K m),  L = ce_weight CE(y, z) + kd_weight KL(g || softmax(z / tau_s)).

rho = 1 takes out the largest uniform share, rho = 0 none (with tau_s = 1 that is transformed teacher matching, ICLR 2024).
When to use: with teachers that a temperature makes nearly uniform. `objectives.Extract` is the same on any other loss on
logits: `transformed(term, Extract(4.0))`.
Parameters: `teacher_temperature` 4, `student_temperature` 1, `kd_weight` 1, `ce_weight` 1, `share` (rho) 1; sweep the weight,
since T^2 is no longer the factor that keeps gradients of one size. `rank` 2 or more takes the rank-th smallest probability in
place of the least, which one odd class may set, and cuts off what falls below 0.
What it costs: one pass of the student and one read of the book.
What it clashes with: sparse books, whose least probability is unknown (refused), and regularisation that flattens the teacher:
one takes out what the other mixes in.
Source: reconstructed. Kobayashi, "Extractive Knowledge Distillation", WACV 2022, doi 10.1109/WACV51458.2022.00142: only the
abstract was read, which names the three roles and that the teacher's side alone is changed; the formula of the extraction
is ours, and none of the paper's results are claimed for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bookkd.core.fields import LOGITS
from bookkd.core.schedules import Schedule
from bookkd.losses import soft_target_kl
from bookkd.methods._parts import check_idle, check_smoothing, check_temperatures, check_weights, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Extract, Objective, bind, transformed
from bookkd.tasks import Task

__all__ = ["ExtractiveKD"]


@dataclass(frozen=True)
class ExtractiveKD(BaseMethod):
    """Match what is left of the teacher when its uniform share is taken out.

    Args:
        teacher_temperature: tau_t, above 0.
        student_temperature: tau_s, above 0; a number or a schedule.
        kd_weight: Weight of the soft term, above 0.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        share: rho, 0 to 1.
        rank: Which smallest probability is taken for the uniform share, from 1; 1 where the share is 0.
        label_smoothing: Of the label term, 0 to 1.
    """

    teacher_temperature: float = 4.0
    student_temperature: float | Schedule = 1.0
    kd_weight: float | Schedule = 1.0
    ce_weight: float | Schedule = 1.0
    share: float = 1.0
    rank: int = 1
    label_smoothing: float = 0.0

    name: ClassVar[str] = "extractive-kd"
    tasks: ClassVar[tuple[str, ...]] = (
        "classification",
        "segmentation",
    )  # of two outcomes nothing but the larger one is left
    card: ClassVar[Card] = Card(
        "Teacher's distribution without its uniform share, separate temperatures",
        "Kobayashi, WACV 2022 (abstract only)",
        "logits of one view, dense",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "transformed-teacher-matching": {"share": 0.0},
        "half": {"share": 0.5},
    }

    def __post_init__(self) -> None:
        check_temperatures(self, "student_temperature", "teacher_temperature")
        check_weights(self, "ce_weight")
        Extract(self.teacher_temperature, self.share, self.rank)
        check_smoothing(self)
        check_idle(self)

    def idle(self) -> Mapping[str, str]:
        """Return the rank where nothing is taken out."""
        return {"rank": "share 0"} if self.share == 0 else {}

    def objective(self, task: Task) -> Objective:
        """Return the soft term, and the label term unless its weight is the number 0."""
        hyper: dict[str, Any] = {"temperature": self.student_temperature, "t_squared": False, "class_reduction": "sum"}
        soft = bind(soft_target_kl, LOGITS, teacher=LOGITS, weight=self.kd_weight, name="extracted", **hyper)
        soft = transformed(soft, Extract(self.teacher_temperature, self.share, self.rank))
        return Objective(with_labels(task, (soft,), weight=self.ce_weight, label_smoothing=self.label_smoothing))
