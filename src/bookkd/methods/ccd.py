"""CCD: two views of each sample, the second trusted as far as the teacher says of both the same.

What it does: with z and v the logits of student and teacher of a view of a sample, z' and v' those of another view, at temperature T

    L = ce_weight CE(both views, y) + kd_weight T^2 / 2 (KL(v || z) + (1 + cos(v, v')) KL(v' || z')),

means over samples, the cosine of raw logits. Both views stand next to each other in a batch.
When to use: with strong views (`jda`), of which the teacher may say something else than of the image; nothing but the stored records of
both views is needed for the weight.
Parameters: temperature 4, kd_weight 1 and ce_weight 1, the released 2 (1 - a) and 2 a with a = 0.5; preset `without-labels` is the soft term alone. In the released code the first view
is a plain crop and flip, the second JDA of it; our views are all drawn by one recipe, so that either may be the strong one.
What it costs: two passes of the student and two reads of the book a sample: an epoch is as long as two of another method, so
compare at equal steps or equal time.
What it clashes with: books of one view, sparse books, and several teachers, which have no raw logits (all refused). Every batch must
be whole: an even batch size, no accumulation, one device, and the last incomplete batch of an epoch is left out. The cosine is of logits
as they are: a constant that is added to all of them changes it.
Source: reconstructed. "What Role Does Data Augmentation Play in Knowledge Distillation?", ACCV 2022, and its released code. Loss,
weights and temperature of the code are certain; two views of one recipe in place of a plain and a strong one are our reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from bookkd.core.fields import LOGITS
from bookkd.core.protocols import Needs
from bookkd.core.schedules import Schedule
from bookkd.losses import agreed_kl
from bookkd.methods._parts import check_temperatures, check_weights, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, bind
from bookkd.tasks import Task

__all__ = ["CCD"]


@dataclass(frozen=True)
class CCD(BaseMethod):
    """Match two views, the second as far as the teacher agrees with itself.

    Args:
        temperature: T, above 0, the same on both sides; a number or a schedule.
        kd_weight: Weight of the soft term, above 0.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
    """

    temperature: float | Schedule = 4.0
    kd_weight: float | Schedule = 1.0
    ce_weight: float | Schedule = 1.0

    name: ClassVar[str] = "ccd"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    card: ClassVar[Card] = Card(
        "Two views, the second as far as the teacher says of both the same",
        "ACCV 2022, What Role Does Data Augmentation Play in Knowledge Distillation?",
        "logits of two views, dense, in whole batches",
        "reconstructed",
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "without-labels": {"ce_weight": 0.0},
    }

    def __post_init__(self) -> None:
        check_temperatures(self, "temperature")
        check_weights(self, "ce_weight")

    def objective(self, task: Task) -> Objective:
        """Return the soft term of both views, and the label term."""
        hyper: dict[str, Any] = {"teacher": LOGITS, "temperature": self.temperature, "t_squared": True}
        soft = bind(agreed_kl, weight=self.kd_weight, name="views", **hyper)
        return Objective(with_labels(task, (soft,), weight=self.ce_weight))

    def needs(self, task: Task) -> Needs:
        """Return the teacher's logits, of two views of a sample in one batch."""
        return replace(super().needs(task), views_per_sample=2)
