"""Attention transfer (AT): the student is to look where the teacher looks.

What it does: of each stage, A(F) = the squares of a map, averaged over its channels, as one vector of norm 1; with labels y,

    L = ce_weight CE + kd_weight T^2 KL + weight sum_l mean (A(F_S) - A(F_T))^2,

the mean over positions. Channels may differ; grids may not, since the vectors are compared position by position.
When to use: between networks of one family with the same grids, where it is nearly free.
Parameters: `layers` every stage of both networks, `weight` 1000, `ce_weight` 1, `kd_weight` 0 (the benchmark on
CIFAR-100). The weight only makes up for the mean over positions, and so goes with the size of the maps.
What it costs: no adapter; a book holds one number a position, 2 h w bytes a stage and record as float16.
What it clashes with: a teacher of other grids (refused), and books without these fields (`bookkd make --serve at`).
Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928, as in RepDistiller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import feature_mse
from bookkd.methods._features import FeatureMethod, OfStages, feature
from bookkd.methods.base import Card
from bookkd.objectives import Connector, Term, bind
from bookkd.tasks import Task

__all__ = ["AT"]


@dataclass(frozen=True)
class AT(OfStages, FeatureMethod):
    """Match where both networks look.

    Args:
        weight: Of the sum over layers, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        layers: Names of both networks' layers, or paths of modules of both; None: every stage that both name, three where that is not known.
    """

    weight: float | Schedule = 1000.0
    layers: tuple[str, ...] | None = None

    name: ClassVar[str] = "at"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi-label", "segmentation")
    card: ClassVar[Card] = Card(
        "The student looks where the teacher looks",
        "Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928",
        "attention maps of the stages",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-kd": {"kd_weight": 1.0}}

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the squared error of the attention maps, a term a layer."""
        found = []
        for layer in self.looked_at:
            name = feature(layer, "attention")
            label = f"attention/{layer}"
            found.append(bind(feature_mse, name, teacher=name, weight=self.weight, name=label, over=SAMPLE_WEIGHT))
        return tuple(found), ()
