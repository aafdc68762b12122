"""CSKD: a student for some of the teacher's classes, from the teacher's word on these alone, with features that keep classes apart.

What it does: of a task over M of the teacher's C classes, p = softmax(z_T / T) over the M alone (renormalised KD), f the student's pooled
features and labels y,

    L = ce_weight CE + kd_weight T^2 KL(p || softmax(z_S / T)) + icv_weight ICV(f, y) + opl_weight OPL(f, y),
    ICV "code": sum_k ||var over features of each sample of k||_2,   "class": sum_k ||var over samples of k||_2,
    OPL = (1 - mean cos of pairs of one class) + 0.5 mean cos of pairs of different classes.

The task renormalises, so that any method learns a subset of classes from one full book: `bookkd learn BOOK --classes 3,5,7`.
When to use: for a device that meets few of the classes; one book serves every choice of them.
Parameters: `temperature` 1, `kd_weight`, `icv_weight` and `opl_weight` 0.2 (the released code; its example has 0.1), `ce_weight` 1, `icv`
code, `layer` pooled. "code" is what was released: it penalises uneven vectors and is no variance within a class, which is "class".
What it costs: two products of a batch's features; the book holds logits alone.
What it clashes with: top-k and sampled books, which may have left one of the classes out (refused); accumulation and several devices,
which split batches (refused); mixed views, which have two classes (refused at the first batch; preset `renormalised-kd` takes them). The
last incomplete batch of an epoch is left out. Both sums grow with the batch ("code") and with the classes.
Source: Wang, Rhodes, Feng, "Class Specialized Knowledge Distillation", ACCV 2022, doi 10.1007/978-3-031-26284-5_24, and its released
code; "class" is reconstructed from the abstract. Not CS-KD of Yun et al. The paper's tables were not read, none of its numbers are claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bookkd.core.errors import ConfigError, expected
from bookkd.core.features import Feature
from bookkd.core.fields import LABEL, PARTNER_LABEL, SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import intra_class_variance, orthogonal_projection
from bookkd.methods._features import feature
from bookkd.methods._parts import check_some_weight, check_temperatures, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, Term, bind
from bookkd.tasks import Task

__all__ = ["CSKD"]


@dataclass(frozen=True)
class CSKD(BaseMethod):
    """Learn some of the teacher's classes, and keep them apart.

    Args:
        temperature: T, above 0, the same on both sides; a number or a schedule.
        kd_weight: Weight of the renormalised term (lambda_r), at least 0.
        icv_weight: Weight of the intra-class variance (lambda_v), at least 0.
        opl_weight: Weight of the orthogonal projection (lambda_o), at least 0; not all three 0.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels out of it.
        icv: "code" or "class".
        layer: Of the student, whose features these are: a name, or the path of a module.
    """

    temperature: float | Schedule = 1.0
    kd_weight: float | Schedule = 0.2
    icv_weight: float | Schedule = 0.2
    opl_weight: float | Schedule = 0.2
    ce_weight: float | Schedule = 1.0
    icv: Literal["code", "class"] = "code"
    layer: str = "pooled"

    name: ClassVar[str] = "cskd"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    card: ClassVar[Card] = Card(
        "A student for some classes, whose features keep these apart",
        "Wang et al., ACCV 2022, doi 10.1007/978-3-031-26284-5_24",
        "logits of every class, in whole batches",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "readme": {"kd_weight": 0.1, "icv_weight": 0.1, "opl_weight": 0.1},
        "class": {"icv": "class"},
        "renormalised-kd": {"icv_weight": 0.0, "opl_weight": 0.0},
    }

    def __post_init__(self) -> None:
        check_temperatures(self, "temperature")
        check_some_weight(self, "kd_weight", "icv_weight", "opl_weight")
        if self.icv not in ("code", "class"):
            raise ConfigError(expected("icv", "code or class", self.icv, where=f"method {self.name}"))
        Feature(self.layer)

    def objective(self, task: Task) -> Objective:
        """Return the terms whose weight is not the number 0."""
        name, found = feature(self.layer), list[Term]()
        # The partner's label is asked for so that the losses can refuse mixed views.
        how: dict[str, Any] = {"batch": (LABEL, PARTNER_LABEL), "over": SAMPLE_WEIGHT}
        if self.kd_weight != 0:
            soft = {"weight": self.kd_weight, "temperature": self.temperature, "t_squared": True}
            found.append(task.soft_term(**soft, class_reduction="sum", soft_loss="kl"))  # type: ignore[arg-type]
        if self.icv_weight != 0:
            found.append(
                bind(intra_class_variance, name, weight=self.icv_weight, name="variance", form=self.icv, **how)
            )
        if self.opl_weight != 0:
            found.append(bind(orthogonal_projection, name, weight=self.opl_weight, name="projection", **how))
        return Objective(with_labels(task, tuple(found), weight=self.ce_weight))
