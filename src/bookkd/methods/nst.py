"""Neuron selectivity transfer (NST): channels are to respond to positions as the teacher's do, whichever channel it is.

What it does: of each stage, x_c = the c-th channel as a vector of norm 1 over the positions, k(a, b) = (a'b)^2; with labels y,

    L = ce_weight CE + kd_weight T^2 KL + weight sum_l [mean k(T, T) + mean k(S, S) - 2 mean k(S, T)],

the means over pairs of channels of a sample: the squared distance of the two sets of channels by the kernel k.
When to use: where both grids are alike and channels have no counterpart; their order and their scale play no part.
Parameters: `layers` every stage of both networks, `weight` 50, `ce_weight` 1, `kd_weight` 0 (the benchmark on
CIFAR-100).
What it costs: products of all pairs of channels; a book holds whole maps, since the term between student and teacher needs them: 2 c h w
bytes a stage and record as float16, or half of it with `--feature_codec int8`.
What it clashes with: books without these maps (`bookkd make --serve nst`).
Source: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv 1707.01219, with the
polynomial kernel of degree 2, as in RepDistiller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import nst
from bookkd.methods._features import FeatureMethod, OfStages, feature
from bookkd.methods.base import Card
from bookkd.objectives import Connector, Term, bind
from bookkd.tasks import Task

__all__ = ["NST"]


@dataclass(frozen=True)
class NST(OfStages, FeatureMethod):
    """Match the distribution of channels over positions.

    Args:
        weight: Of the sum over layers, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        layers: Names of both networks' layers, or paths of modules of both; None: every stage that both name, three where that is not known.
    """

    weight: float | Schedule = 50.0
    layers: tuple[str, ...] | None = None

    name: ClassVar[str] = "nst"
    card: ClassVar[Card] = Card(
        "Channels respond to positions as the teacher's do",
        "Huang and Wang 2017, arXiv 1707.01219",
        "maps of the stages",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-kd": {"kd_weight": 1.0}}

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the distance of the sets of channels, a term a layer."""
        names = {layer: feature(layer) for layer in self.looked_at}
        terms = tuple(
            bind(nst, name, teacher=name, weight=self.weight, name=f"selectivity/{layer}", over=SAMPLE_WEIGHT)
            for layer, name in names.items()
        )
        return terms, ()
