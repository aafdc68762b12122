"""Correlation congruence (CC): how samples of a batch go together, by a kernel or by neighbours.

What it does: with f the vectors of a batch of N and labels y, L = ce_weight CE + kd_weight T^2 KL + weight C, where C is

    form "kernel":      mean_ij (K_S - K_T)^2,  K_ij = exp(-2g) sum_{p=0..P} (2g)^p / p! cos(f_i, f_j)^p,
    form "neighbours":  mean_i sum_d |e_S,i - e_T,i|_d |e_S,i+1 - e_T,i+1|_d, with trained linear embeddings e of both sides.

"kernel" is the paper's; "neighbours" is what the benchmark of representation distillation calls CC, which is another thing: it multiplies
the differences of samples that stand side by side in a batch.
When to use: "kernel" for embeddings, between networks of any widths. "neighbours" to compare with that benchmark.
Parameters: `form` neighbours, `layer` pooled, `weight` 0.02, `width` 128 of the embeddings, `ce_weight` 1, `kd_weight` 0 (the benchmark
on CIFAR-100); of the kernel `gamma` 0.4 and `order` 2 (the paper), whose weight is to be found (preset `kernel`: 1).
What it costs: two linear layers, or one product of a batch's vectors; a book holds one vector, 2 d bytes a record as float16.
What it clashes with: accumulation and several devices, which split batches (refused); the last incomplete batch of an epoch is left out.
With trained embeddings on both sides "neighbours" is smallest where both embed everything as 0.
Source: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv 1904.01802, equations 7 to 9, and RepDistiller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from bookkd.core.check import at_least, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import cc_kernel, cc_neighbours
from bookkd.methods._features import FeatureMethod, connected, feature, of_teacher
from bookkd.methods._parts import check_idle
from bookkd.methods.base import Card
from bookkd.objectives import Connector, ConnectorModule, Shapes, Term, bind
from bookkd.objectives.adapters import shapes_in
from bookkd.tasks import Task

__all__ = ["CC", "Embeddings"]


class Embeddings(ConnectorModule):
    """Linear embeddings of both sides in one space.

    Args:
        mine: Numbers of a vector of the student.
        theirs: Of the teacher.
        width: Of both embeddings.
    """

    def __init__(self, mine: int, theirs: int, width: int) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(mine, width), nn.Linear(theirs, width)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both embeddings."""
        return self.student(student), self.teacher(teacher)


@dataclass(frozen=True)
class CC(FeatureMethod):
    """Match how the samples of a batch go together.

    Args:
        weight: Of the term, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        layer: A name of both networks' layers, or the path of a module of both.
        form: "neighbours" or "kernel".
        width: Of the embeddings of "neighbours", at least 1.
        gamma: Of the kernel, above 0.
        order: Of the kernel, at least 1.
    """

    weight: float | Schedule = 0.02
    layer: str = "pooled"
    form: Literal["neighbours", "kernel"] = "neighbours"
    width: int = 128
    gamma: float = 0.4
    order: int = 2

    name: ClassVar[str] = "cc"
    card: ClassVar[Card] = Card(
        "How samples of a batch go together",
        "Peng et al., ICCV 2019, arXiv 1904.01802; RepDistiller",
        "one vector a record, in whole batches",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "with-kd": {"kd_weight": 1.0},
        "kernel": {"form": "kernel", "weight": 1.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"method {self.name}"
        if self.form not in ("neighbours", "kernel"):
            raise ConfigError(expected("form", "one of neighbours, kernel", self.form, where=where))
        at_least(self.width, 1, "width", where=where)
        at_least(self.order, 1, "order", where=where)
        positive(self.gamma, "gamma", where=where)
        check_idle(self)

    def idle(self) -> Mapping[str, str]:
        """Return the options of the other form."""
        return dict.fromkeys(("gamma", "order") if self.form == "neighbours" else ("width",), f"form {self.form}")

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the term of the form, and the embeddings where it has some."""
        name = feature(self.layer)
        how: dict[str, Any] = {"weight": self.weight, "name": "congruence", "over": SAMPLE_WEIGHT}
        if self.form == "kernel":
            return (bind(cc_kernel, name, teacher=name, gamma=self.gamma, order=self.order, **how),), ()
        mine, theirs = connected(name, "embedded"), connected(name, "embedded_teacher")
        both = Connector("embeddings", (name, of_teacher(name)), (mine, theirs), self._embeddings, weight_decay=None)
        return (bind(cc_neighbours, mine, teacher=theirs, own=True, gradient=True, **how),), (both,)

    def _embeddings(self, shapes: Shapes) -> Embeddings:
        name = feature(self.layer)
        mine, theirs = shapes_in(shapes, name, of_teacher(name), axes=1, where=f"method {self.name}")
        return Embeddings(mine[0], theirs[0], self.width)
