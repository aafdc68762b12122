"""Factor transfer (FT): where factors are strong that a trained paraphraser makes of the teacher's map, and a translator of the student's.

What it does: with q(F) the squares of F, averaged over channels, as one vector of norm 1, P the first half of an auto-encoder of the
teacher's maps, trained before by the squared error of rebuilding them, with half of the channels in the middle, and Tr a trained
translator of the student's maps to as many,

    L = ce_weight CE + kd_weight T^2 KL + weight mean |q(Tr(F_S)) - q(P(F_T))|.

When to use: where the shapes of both networks differ much: what is compared has no channels.
Parameters: `layer` last, `weight` 200, `ce_weight` 1, `kd_weight` 0 (the benchmark on CIFAR-100).
What it costs: three convolutions beside the student; a book holds q(P(F_T)), 2 h w bytes a record as float16, and P once, as constants.
P is trained by `bookkd make --serve ft` (or before learning from a live teacher) for 300 steps of Adam, rate 0.001, batches of 64, on
2,048 records of the first view.
What it clashes with: books without it; a grid of the student that is smaller than the teacher's.
Source: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018, arXiv 1802.04977, the term
and both networks as in RepDistiller; how the paraphraser is trained is ours, so that none of its numbers are claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import feature_l1
from bookkd.methods._features import FeatureMethod, connected, feature, of_teacher, part_name
from bookkd.methods.base import Card
from bookkd.objectives import Connector, Shapes, Term, bind
from bookkd.objectives.adapters import Translator, shapes_in
from bookkd.tasks import Task

__all__ = ["FT"]


@dataclass(frozen=True)
class FT(FeatureMethod):
    """Match where factors of a map are strong.

    Args:
        weight: Of the factors, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        layer: A name of both networks' layers, or the path of a module of both.
    """

    weight: float | Schedule = 200.0
    layer: str = "last"

    name: ClassVar[str] = "ft"
    card: ClassVar[Card] = Card(
        "Where factors of the last map are strong",
        "Kim et al., NeurIPS 2018, arXiv 1802.04977",
        "where the factors of a paraphraser are strong, and the paraphraser",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-kd": {"kd_weight": 1.0}}

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the absolute error of the factors, and the translator."""
        maps, factors = feature(self.layer), feature(self.layer, "paraphrase")
        mine = connected(maps, "translated")
        term = bind(feature_l1, mine, teacher=factors, weight=self.weight, name="factors", over=SAMPLE_WEIGHT)
        known = (f"paraphraser/{self.layer}/bias3",)
        build = _Translated(self.layer)
        return (term,), (
            Connector(part_name("translator", maps), maps, mine, build, weight_decay=None, constants=known),
        )


@dataclass(frozen=True)
class _Translated:
    """Builds the translator; a class, since a nested function could not be pickled."""

    layer: str

    def __call__(self, shapes: Shapes, constants: Mapping[str, Tensor]) -> Translator:
        theirs = of_teacher(feature(self.layer, "paraphrase"))
        (mine,) = shapes_in(shapes, feature(self.layer), axes=3, where="method ft")
        (positions,) = shapes_in(shapes, theirs, axes=1, where="method ft")
        # As many factors as the paraphraser makes.
        return Translator(mine, len(constants[f"paraphraser/{self.layer}/bias3"]), positions[0])
