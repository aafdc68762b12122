"""Teacher-assistant distillation: networks of intermediate size carry the knowledge down, each taught by the one before.

What it does: network j of a chain minimises, with student logits z, labels y and the logits v of network j - 1,

    L = (1 - alpha) CE(z, y) + alpha T^2 KL(softmax(v / T) || softmax(z / T)).

Only neighbours interact; the chain is a pipeline (`bookkd chain --path 56,20,8 --method takd`), each link a book, and all paths
of a set are compared in one table (`--all_paths`). A chain without an assistant is `vanilla-kd` of the same weights.
When to use: where the teacher is much larger than the student. Published gains are small (0.3 to 1 point), and were chosen on the
test set with the seed in the search: compare over seeds.
Parameters: `alpha` 0.5 and `temperature` 5, within the ranges that the released code searches (0.05 to 1, 1 to 20); preset `code`
divides the divergence by the number of classes, as that code does. Tune both for each link.
What it costs: one more training and one more book for each assistant.
What it clashes with: a book of several authors: that is an ensemble, not a chain.
Source: Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020, arXiv 1902.03393, equation 3, and the
released code; certain. The rule that picks an assistant by accuracy (`--candidates`) is recalled, not read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bookkd.core.check import between, positive
from bookkd.core.fields import LOGITS
from bookkd.core.names import choose
from bookkd.core.schedules import Schedule
from bookkd.losses import soft_target_kl
from bookkd.methods._parts import check_temperatures, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, bind
from bookkd.tasks import Task

__all__ = ["TAKD"]


@dataclass(frozen=True)
class TAKD(BaseMethod):
    """One link of a chain: learn from the network before.

    Args:
        temperature: T, above 0, the same on both sides; a number or a schedule.
        alpha: Weight of the soft term, above 0 to 1; the labels get the rest. The paper's lambda.
        class_reduction: "sum" over classes, or "mean" as in the released code.
    """

    temperature: float | Schedule = 5.0
    alpha: float = 0.5
    class_reduction: Literal["sum", "mean"] = "sum"

    name: ClassVar[str] = "takd"
    card: ClassVar[Card] = Card(
        "One link of a chain of teacher assistants",
        "Mirzadeh et al., AAAI 2020, arXiv 1902.03393",
        "logits of one view, by the network before",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"code": {"class_reduction": "mean"}}

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        check_temperatures(self, "temperature")
        positive(between(self.alpha, 0, 1, "alpha", where=where), "alpha", where=where)
        choose(self.class_reduction, ("sum", "mean"), "class_reduction", where=where)

    def objective(self, task: Task) -> Objective:
        """Return the soft term, and the label term unless alpha is 1."""
        hyper: dict[str, Any] = {"temperature": self.temperature, "class_reduction": self.class_reduction}
        soft = bind(
            soft_target_kl, LOGITS, teacher=LOGITS, weight=self.alpha, name="soft_target", t_squared=True, **hyper
        )
        return Objective(with_labels(task, (soft,), weight=1 - self.alpha))
