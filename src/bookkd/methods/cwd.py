"""Channel-wise distillation (CWD): each class is to light up where the teacher's does.

What it does: of the logits of each class k over the positions x of an image, softened at T,

    L = ce_weight CE(y, student) + weight T^2 mean_k KL(softmax_x(v_k / T) || softmax_x(z_k / T)).

A constant added to a class changes nothing: how likely it is as such is learnt from labels. Void positions are left out of both
distributions, as the task leaves them out elsewhere (`teach_void`); preset `released` keeps them, as the released code does.
When to use: for segmentation, where the place of rare classes matters more than the balance of classes at a pixel.
Parameters: `temperature` 4, `weight` 3, `ce_weight` 1 (of the paper, as recalled: the weight was not read again).
What it costs: a softmax over positions; the book holds the logits of the grid of the task.
What it clashes with: sparse books, which do not know every class of a pixel (refused).
Source: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv 2011.13256, equation 4, on
logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LOGITS, SAMPLE_WEIGHT, WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import cwd
from bookkd.methods._parts import check_temperatures, check_weights, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, bind
from bookkd.tasks import Task

__all__ = ["CWD"]


@dataclass(frozen=True)
class CWD(BaseMethod):
    """Match where each class is.

    Args:
        weight: Of the divergence, above 0; a number or a schedule.
        temperature: T, above 0, the same on both sides.
        ce_weight: Of the label term, at least 0; 0 leaves the labels unused.
        positions: "known", those of which the task knows the class, or "all".
    """

    weight: float | Schedule = 3.0
    temperature: float | Schedule = 4.0
    ce_weight: float | Schedule = 1.0
    positions: Literal["known", "all"] = "known"

    name: ClassVar[str] = "cwd"
    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)
    card: ClassVar[Card] = Card(
        "Each class lights up where the teacher's does",
        "Shu et al., ICCV 2021, arXiv 2011.13256",
        "logits of every class",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "plain": {"temperature": 1.0},
        "released": {"positions": "all"},
    }

    def __post_init__(self) -> None:
        check_temperatures(self, "temperature")
        check_weights(self, "ce_weight", soft="weight")
        if self.positions not in ("known", "all"):
            raise ConfigError(expected("positions", "known or all", self.positions, where=f"method {self.name}"))

    def objective(self, task: Task) -> Objective:
        """Return the divergence over positions, and the label term unless its weight is the number 0."""
        hyper: dict[str, Any] = {"temperature": self.temperature, "t_squared": True, "channels": "last"}
        batch = (WEIGHT,) if self.positions == "known" else ()
        how: dict[str, Any] = {"weight": self.weight, "name": "channel_wise", "over": SAMPLE_WEIGHT}
        term = bind(cwd, teacher=LOGITS, batch=batch, **how, **hyper)
        return Objective(with_labels(task, (term,), weight=self.ce_weight))
