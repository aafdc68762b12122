"""Vanilla knowledge distillation: the student matches the teacher's softened class distribution.

What it does: with student logits z, teacher logits v, labels y and temperature T, per sample

    L = ce_weight CE(z, y) + kd_weight T^2 KL(softmax(v / T) || softmax(z / T)).

When to use: first, always. One record of logits a view is all it needs, so a book serves it completely.
Parameters: `temperature` 4, `ce_weight` 0.1, `kd_weight` 0.9 (the CIFAR-100 benchmark of RepDistiller and mdistiller);
temperature 1 and 0.5 / 0.5 on ImageNet (mdistiller). The paper fixes no weights beyond "considerably lower" on labels.
Presets reproduce the conventions of other libraries, which differ by factors of 1/T^2 and 1/K for the same words:
`mdistiller`, `mdistiller-imagenet`, `repdistiller`, `torchdistill`, `tf-kd`, `deit`, `kd-lib`, `keras`,
`logit-standardization` (its weights only; standardised logits are a method of their own), `function-matching`. `deit` has one head, where
DeiT reads the student's side from a distillation token; `keras` keeps the teacher as target, which an early version of
that example had swapped; `torchdistill` drops T^2 and the label term where it is given no labels, which we do not.
`function-matching` is KL at temperature 1 without any label, for every view of strong and mixed views and a long schedule (Beyer
and others, "Knowledge distillation: A good teacher is patient and consistent", arXiv 2106.05237; temperature 1 on ImageNet, 1 to 10 on
small sets). It wants many views: its authors found fixed targets of few views to be learnt by heart.
What it costs: one pass of the student and one read of the book.
What it clashes with: top-k books at temperatures they do not promise, in numbers or in steps, and any sparse book with a
temperature that moves steadily or `soft_loss="mse"` (all refused).
A soft term divided by the number of classes (`class_reduction="mean"`) is 100 or 1000 times smaller than it looks.
Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 workshop, arXiv 1503.02531, section 2.
The weighted sum is certain in kind; the weights are those of the libraries named above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bookkd.core.errors import ConfigError, expected
from bookkd.core.schedules import Schedule
from bookkd.methods._parts import check_smoothing, check_temperatures, check_weights, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective
from bookkd.tasks import Task

__all__ = ["VanillaKD"]


@dataclass(frozen=True)
class VanillaKD(BaseMethod):
    """Match softened teacher logits, with some weight on the labels.

    Args:
        temperature: T, above 0, the same on both sides; a number or a schedule.
        kd_weight: Weight of the soft term, at least 0.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        t_squared: Multiply the soft term by T^2, which keeps its gradient of one size over T.
        class_reduction: "sum" over classes (the KL itself), or "mean" (divided by their number K).
        soft_loss: "kl", or "mse" between softened probabilities (KD_Lib's default).
        label_smoothing: Of the label term, 0 to 1.
    """

    temperature: float | Schedule = 4.0
    kd_weight: float | Schedule = 0.9
    ce_weight: float | Schedule = 0.1
    t_squared: bool = True
    class_reduction: Literal["sum", "mean"] = "sum"
    soft_loss: Literal["kl", "mse"] = "kl"
    label_smoothing: float = 0.0

    name: ClassVar[str] = "vanilla-kd"
    tasks: ClassVar[tuple[str, ...]] = (
        "causal-lm",
        "classification",
        "multi-label",
        "regression",
        "segmentation",
        "seq2seq",
        "tagging",
    )
    card: ClassVar[Card] = Card(
        "Soft targets at a temperature",
        "Hinton, Vinyals, Dean, arXiv 1503.02531 (2015)",
        "logits of one view",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mdistiller": {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0},
        "mdistiller-imagenet": {"ce_weight": 0.5, "kd_weight": 0.5, "temperature": 1.0},
        "repdistiller": {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0},
        "torchdistill": {"ce_weight": 0.5, "kd_weight": 0.5, "temperature": 1.0},
        "tf-kd": {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 20.0, "class_reduction": "mean"},
        "deit": {"ce_weight": 0.5, "kd_weight": 0.5, "temperature": 1.0, "class_reduction": "mean"},
        "kd-lib": {
            "ce_weight": 0.5,
            "kd_weight": 0.5,
            "temperature": 20.0,
            "soft_loss": "mse",
            "class_reduction": "mean",
        },
        "keras": {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 3.0, "t_squared": False},
        "logit-standardization": {"ce_weight": 0.1, "kd_weight": 9.0, "temperature": 2.0},
        "function-matching": {"ce_weight": 0.0, "kd_weight": 1.0, "temperature": 1.0},
    }

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        check_temperatures(self, "temperature")
        check_weights(self, "ce_weight")
        check_smoothing(self)
        for key, allowed in (("class_reduction", ("sum", "mean")), ("soft_loss", ("kl", "mse"))):
            if getattr(self, key) not in allowed:
                raise ConfigError(expected(key, f"one of {', '.join(allowed)}", getattr(self, key), where=where))
        if self.soft_loss == "mse" and self.class_reduction != "mean":
            do = "Pass --method.class_reduction mean; KD_Lib's squared error is a mean over classes."
            raise ConfigError(
                expected("class_reduction", "mean with soft_loss mse", self.class_reduction, where=where, do=do)
            )

    def objective(self, task: Task) -> Objective:
        """Return the soft term, and the label term unless its weight is the number 0."""
        soft = task.soft_term(
            weight=self.kd_weight,
            temperature=self.temperature,
            t_squared=self.t_squared,
            class_reduction=self.class_reduction,
            soft_loss=self.soft_loss,
        )
        return Objective(with_labels(task, (soft,), weight=self.ce_weight, label_smoothing=self.label_smoothing))
