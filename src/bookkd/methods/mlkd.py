"""Multi-level logit distillation: each sample, the products of classes and the products of samples, at several temperatures.

What it does: with P and Q the probabilities of teacher and student at temperature T, [samples, K], on each of two views

    L = sum over views (ce_weight CE(z, y) + sum_T (kd_weight T^2 KL(P || Q) + class_weight ||P' P - Q' Q||_F^2 / K
        + batch_weight ||P P' - Q Q'||_F^2 / samples)).

The two views of a sample stand next to each other in a batch; each view is a batch of its own for the products.
When to use: where a second view of every sample and step is affordable; the gain over one level is the authors' claim to test.
Parameters: `temperatures` 4, 2, 3, 5, 6; all weights 1 (preset `as-published`). The authors confine the terms of their weak view
to the half of samples, and of classes, of which the teacher is less sure. We leave these masks out: relations want whole
batches, and our views are all drawn by one recipe, with no weak and strong. In the released code the masks multiply numbers that are
already means, so that they are factors of about 1/2; two of the five strong sample terms are computed on the weak view; and the
strong class and batch terms are left out of the sum. With two views of one recipe all that is a matter of weights, on average: per
view 3/4 of the sample terms, 1/4 of the others, times the code's 0.9, and 0.1 on labels (preset `as-coded`).
What it costs: two passes of the student and two reads of the book a sample: an epoch is as long as two of another method, so
compare at equal steps or equal time.
What it clashes with: books of one view, and sparse books (both refused). Every batch must be whole and hold two samples: an even
batch size of at least 4, no accumulation, one device, and the last incomplete batch of an epoch is left out. The class terms grow
with the square of the batch.
Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, and its released code. Losses and defaults of the code are
certain; which samples the published text selects, and views of one recipe in place of weak and strong, make it reconstructed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from bookkd.core.check import positive, unique
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LOGITS
from bookkd.core.protocols import Needs
from bookkd.losses import batch_gram, class_gram, soft_target_kl
from bookkd.methods._parts import check_some_weight, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, Term, bind
from bookkd.tasks import Task

__all__ = ["MLKD"]

VIEWS = 2


@dataclass(frozen=True)
class MLKD(BaseMethod):
    """Match samples, classes and batches on two views.

    Args:
        temperatures: At least one, each above 0, without repeats.
        kd_weight: Weight of the divergence at each temperature and view, at least 0.
        class_weight: Weight of the products of classes, at least 0.
        batch_weight: Weight of the products of samples, at least 0; not all three 0.
        ce_weight: Weight of the label term of each view, at least 0; 0 leaves the labels unused.
    """

    temperatures: tuple[float, ...] = (4.0, 2.0, 3.0, 5.0, 6.0)
    kd_weight: float = 1.0
    class_weight: float = 1.0
    batch_weight: float = 1.0
    ce_weight: float = 1.0

    name: ClassVar[str] = "mlkd"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)  # its products are of whole rows of classes
    card: ClassVar[Card] = Card(
        "Samples, classes and batches matched at several temperatures",
        "Jin, Wang, Lin, CVPR 2023",
        "logits of two views, dense, in whole batches",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "as-published": {"kd_weight": 1.0, "class_weight": 1.0, "batch_weight": 1.0, "ce_weight": 1.0},
        "as-coded": {
            "kd_weight": 0.9 * 0.75,
            "class_weight": 0.9 * 0.25,
            "batch_weight": 0.9 * 0.25,
            "ce_weight": 0.1,
        },
    }

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        if not self.temperatures:
            raise ConfigError(expected("temperatures", "at least one", self.temperatures, where=where))
        unique(self.temperatures, "temperatures", where=where)
        for temperature in self.temperatures:
            positive(temperature, "temperatures", where=where)
        check_some_weight(self, "kd_weight", "class_weight", "batch_weight")

    def objective(self, task: Task) -> Objective:
        """Return three terms for each temperature, without those of weight 0, and the label term."""
        soft = tuple(term for temperature in self.temperatures for term in self._terms(temperature))
        return Objective(with_labels(task, soft, weight=VIEWS * self.ce_weight))

    def _terms(self, temperature: float) -> list[Term]:
        # A term is a mean over views, the method a sum.
        hyper: dict[str, Any] = {"teacher": LOGITS, "temperature": temperature}
        found = [
            bind(
                soft_target_kl,
                weight=VIEWS * self.kd_weight,
                name=f"samples_{temperature:g}",
                t_squared=True,
                class_reduction="sum",
                **hyper,
            ),
            bind(class_gram, weight=VIEWS * self.class_weight, name=f"classes_{temperature:g}", views=VIEWS, **hyper),
            bind(batch_gram, weight=VIEWS * self.batch_weight, name=f"batch_{temperature:g}", views=VIEWS, **hyper),
        ]
        return [term for term in found if term.weight != 0]

    def needs(self, task: Task) -> Needs:
        """Return the teacher's logits, of two views of a sample in one batch."""
        return replace(super().needs(task), views_per_sample=VIEWS)
