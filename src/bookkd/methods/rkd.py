"""Relational knowledge distillation (RKD): distances and angles between samples are to be those of the teacher.

What it does: with f the vectors of a batch, d_ij = ||f_i - f_j|| over its mean, a_ijk the cosine of the angle at i between j and k,

    L = ce_weight CE + kd_weight T^2 KL + weight (distance_weight SmoothL1(d_S, d_T) + angle_weight SmoothL1(a_S, a_T)).

When to use: for embeddings (retrieval, faces), and between networks of any widths. Not the renormalised KD of `cskd`.
Parameters: `layer` pooled, `distance_weight` 25, `angle_weight` 50, `weight` 1, `ce_weight` 1, `kd_weight` 0 (the benchmark on
CIFAR-100). Its author advises weights of 25 to 100 by trying, or such that gradients are alike.
What it costs: N^3 angles of a batch of N, worked out a part at a time; a book holds one vector, 2 d bytes a record as float16. Matrices of
relations depend on who shares a batch and are built from the vectors.
What it clashes with: accumulation and several devices, which split batches (refused); the last incomplete batch of an epoch is left out;
batches of many hundred samples.
Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068, equations 4 to 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule, times
from bookkd.losses import rkd_angle, rkd_distance
from bookkd.methods._features import FeatureMethod, feature
from bookkd.methods._parts import check_some_weight
from bookkd.methods.base import Card
from bookkd.objectives import Connector, Term, bind
from bookkd.tasks import Task

__all__ = ["RKD"]


@dataclass(frozen=True)
class RKD(FeatureMethod):
    """Match distances and angles between the samples of a batch.

    Args:
        weight: Of both terms together, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        layer: A name of both networks' layers, or the path of a module of both.
        distance_weight: Of the distances, at least 0.
        angle_weight: Of the angles, at least 0; not both 0.
    """

    weight: float | Schedule = 1.0
    layer: str = "pooled"
    distance_weight: float = 25.0
    angle_weight: float = 50.0

    name: ClassVar[str] = "rkd"
    card: ClassVar[Card] = Card(
        "Distances and angles between samples are the teacher's",
        "Park et al., CVPR 2019, arXiv 1904.05068",
        "one vector a record, in whole batches",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "with-kd": {"kd_weight": 1.0},
        "distance": {"angle_weight": 0.0},
        "angle": {"distance_weight": 0.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_some_weight(self, "distance_weight", "angle_weight", do="Without relations use method supervised.")

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the terms whose weight is not 0."""
        name, found = feature(self.layer), []
        for loss, label, share in (
            (rkd_distance, "distance", self.distance_weight),
            (rkd_angle, "angle", self.angle_weight),
        ):
            if share:
                weight = times(self.weight, share)
                found.append(bind(loss, name, teacher=name, weight=weight, name=label, over=SAMPLE_WEIGHT))
        return tuple(found), ()
