"""FitNets: the student's maps at one layer are to be those of the teacher.

What it does: with F_S and F_T the maps of a layer, r a trained convolution to the teacher's channels and grid, and labels y,

    L = ce_weight CE + kd_weight T^2 KL + weight mean (r(F_S) - F_T)^2,

the mean over channels and positions of a sample.
When to use: as the plainest way to learn from features; it asks the student to be the teacher there, which a much smaller one cannot.
Parameters: `layer` stage2 (one middle layer: "index 2" of the benchmark), `weight` 100, `ce_weight` 1, `kd_weight` 0 (the benchmark
of representation distillation on CIFAR-100).
What it costs: one convolution a step; a book holds the maps of one layer, 2 c h w bytes a record as float16.
What it clashes with: books without that layer (`bookkd make --serve fitnets`), and tasks whose networks have no maps.
Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550, equation 3, joint with the other terms as in
RepDistiller; the adapter as there: convolution that fits the grid, batch normalisation, ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import feature_mse
from bookkd.methods._features import FeatureMethod, connected, feature
from bookkd.methods.base import Card
from bookkd.objectives import Connector, Term, bind
from bookkd.objectives.adapters import map_adapter
from bookkd.tasks import Task

__all__ = ["FitNets"]


@dataclass(frozen=True)
class FitNets(FeatureMethod):
    """Match maps at one layer.

    Args:
        weight: Of the maps, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        layer: A name of both networks' layers, or the path of a module of both.
    """

    weight: float | Schedule = 100.0
    layer: str = "stage2"

    name: ClassVar[str] = "fitnets"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi-label", "segmentation")
    card: ClassVar[Card] = Card(
        "The student's maps at one layer are the teacher's",
        "Romero et al., ICLR 2015, arXiv 1412.6550",
        "maps of one layer",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-kd": {"kd_weight": 1.0}}

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the squared error of the fitted maps."""
        maps = feature(self.layer)
        term = bind(
            feature_mse, connected(maps, "fit"), teacher=maps, weight=self.weight, name="hint", over=SAMPLE_WEIGHT
        )
        return (term,), (self.adapter(maps, "fit", partial(map_adapter, form="fit")),)
