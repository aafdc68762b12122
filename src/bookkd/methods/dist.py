"""DIST: correlation in place of equality, over the classes of a sample and over the samples of a batch.

What it does: with student logits z, teacher logits v, label y, p = softmax(v / T), q = softmax(z / T) and Pearson's rho,

    L = ce_weight CE(z, y) + T^2 (beta mean_i (1 - rho(q_i, p_i)) + gamma (1 - mean_k rho(q_:k, p_:k))),

over samples i and classes k of a batch. A positive affine change of the teacher's probabilities costs nothing.
When to use: where the teacher is much stronger than the student, whose probabilities the student cannot equal.
Parameters: `beta` 1, `gamma` 1, `temperature` 1, `ce_weight` 1, from the released loss. `t_squared` as the classification code has
it; the paper's appendix and the segmentation code have no T^2 (preset `no-t-squared`; at T = 1 both are one). The presets
`imagenet-recalled` and `cifar100-recalled` are the paper's settings as we recall them, not read again.
What it costs: one pass of the student and one read of the book.
What it clashes with: small batches, which make the second term noise: with two samples every correlation is 1 or -1, and one is
refused. With gamma above 0 every batch must be whole: no accumulation, one device, and the last incomplete batch of an epoch is
left out. Many classes: the 1e-8 that the code adds to the product of the norms makes a class that hardly moves within the batch
count as uncorrelated. Sparse books (refused).
Source: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536, and its
released code; the loss is certain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bookkd.core.fields import LOGITS
from bookkd.core.schedules import Schedule
from bookkd.losses import correlation_inter, correlation_intra
from bookkd.methods._parts import check_some_weight, check_temperatures, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, Term, bind
from bookkd.tasks import Task

__all__ = ["DIST"]


@dataclass(frozen=True)
class DIST(BaseMethod):
    """Match correlations with the teacher.

    Args:
        beta: Weight of the correlation over classes, at least 0.
        gamma: Weight of the correlation over samples, at least 0; not both 0.
        temperature: T, above 0, the same on both sides; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        t_squared: Multiply both correlation terms by T^2.
    """

    beta: float | Schedule = 1.0
    gamma: float | Schedule = 1.0
    temperature: float | Schedule = 1.0
    ce_weight: float | Schedule = 1.0
    t_squared: bool = True

    name: ClassVar[str] = "dist"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)  # two outcomes always correlate by 1 or -1
    card: ClassVar[Card] = Card(
        "Correlations over classes and over samples",
        "Huang et al., NeurIPS 2022, arXiv 2205.10536",
        "logits of one view, dense, in whole batches",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no-t-squared": {"t_squared": False},
        "imagenet-recalled": {"beta": 2.0, "gamma": 2.0, "temperature": 1.0},
        "cifar100-recalled": {"beta": 2.0, "gamma": 2.0, "temperature": 4.0},
    }

    def __post_init__(self) -> None:
        check_temperatures(self, "temperature")
        check_some_weight(self, "beta", "gamma")

    def objective(self, task: Task) -> Objective:
        """Return the terms whose weight is not the number 0."""
        hyper: dict[str, Any] = {"temperature": self.temperature, "t_squared": self.t_squared}
        found: list[Term] = []
        if self.beta != 0:
            found.append(bind(correlation_inter, teacher=LOGITS, weight=self.beta, name="inter", **hyper))
        if self.gamma != 0:
            found.append(bind(correlation_intra, teacher=LOGITS, weight=self.gamma, name="intra", **hyper))
        return Objective(with_labels(task, tuple(found), weight=self.ce_weight))
