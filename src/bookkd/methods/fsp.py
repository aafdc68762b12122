"""FSP: the flow between two layers is first to be the teacher's, before labels are learnt.

What it does: between consecutive layers a and b, G = (1 / hw) sum over positions of F^a F^b', and with labels y,

    L = weight sum over pairs of mean (G_S - G_T)^2  in the first `begin_epochs`;  ce_weight CE + kd_weight T^2 KL  after them.

When to use: to begin a student of the teacher's widths, such as a shallower network of its family.
Parameters: `layers` every stage of both networks, in pairs of neighbours, `weight` 50, `begin_epochs` 30 (the benchmark
on CIFAR-100, of 240), `ce_weight` 1, `kd_weight` 0.
What it costs: a product of two layers' channels a pair; a book holds 2 c_a c_b bytes a pair and record as float16, and no maps.
What it clashes with: networks of other widths than the teacher's (refused); runs that are not longer than `begin_epochs`, whose student
never sees a label.
Source: Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation", CVPR 2017, as in RepDistiller, which averages the larger of two maps
where the paper takes the largest of each cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from bookkd.core.errors import ConfigError, expected
from bookkd.core.features import Feature
from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import feature_mse
from bookkd.methods._features import BeginningMethod, OfStages
from bookkd.methods.base import Card
from bookkd.objectives import Connector, Term, bind
from bookkd.tasks import Task

__all__ = ["FSP"]


@dataclass(frozen=True)
class FSP(OfStages, BeginningMethod):
    """Begin with the teacher's flow between layers.

    Args:
        weight: Of the sum over pairs, above 0; a number or a schedule.
        ce_weight: Weight of the label term after the beginning, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits after the beginning, at least 0.
        temperature: T of that, above 0.
        begin_epochs: Epochs of the flow alone, at least 1.
        layers: Names of both networks' layers, or paths of modules of both, at least two; neighbours make pairs. None: every stage that both
            name, three where that is not known.
    """

    weight: float | Schedule = 50.0
    layers: tuple[str, ...] | None = None

    fewest: ClassVar[int] = 2
    name: ClassVar[str] = "fsp"
    card: ClassVar[Card] = Card(
        "The flow between layers is first the teacher's",
        "Yim et al., CVPR 2017",
        "products of the channels of neighbouring stages",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-kd": {"kd_weight": 1.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.looked_at) < 2:
            raise ConfigError(expected("layers", "at least two", self.looked_at, where=f"method {self.name}"))

    def begin(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the squared error of the flows, a term a pair."""
        found = []
        for first, second in pairwise(self.looked_at):
            name = Feature(first, "fsp", other=second).name
            label = f"flow/{first}.{second}"
            found.append(bind(feature_mse, name, teacher=name, weight=self.weight, name=label, over=SAMPLE_WEIGHT))
        return tuple(found), ()
