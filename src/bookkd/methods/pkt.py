"""Probabilistic knowledge transfer (PKT): who of a batch is whose neighbour, as a distribution.

What it does: with f the vectors of a batch, K_ij = (cos(f_i, f_j) + 1) / 2 with rows of sum 1,

    L = ce_weight CE + kd_weight T^2 KL + weight mean_ij K_T log((K_T + e) / (K_S + e)),  e = 1e-7.

When to use: for embeddings, and between networks of any widths; a scale of each vector plays no part.
Parameters: `layer` pooled, `weight` 30000, `ce_weight` 1, `kd_weight` 0 (the benchmark on CIFAR-100, batches of 64; the weight makes up
for the mean over pairs and so goes with the batch).
What it costs: one product of a batch's vectors with themselves; a book holds one vector, 2 d bytes a record as float16.
What it clashes with: accumulation and several devices, which split batches (refused); the last incomplete batch of an epoch is left out.
Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, arXiv 1803.10837, with the
cosine kernel and the diagonal kept, as in RepDistiller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import pkt
from bookkd.methods._features import FeatureMethod, feature
from bookkd.methods.base import Card
from bookkd.objectives import Connector, Term, bind
from bookkd.tasks import Task

__all__ = ["PKT"]


@dataclass(frozen=True)
class PKT(FeatureMethod):
    """Match the neighbours of each sample of a batch.

    Args:
        weight: Of the divergence, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        layer: A name of both networks' layers, or the path of a module of both.
    """

    weight: float | Schedule = 30000.0
    layer: str = "pooled"

    name: ClassVar[str] = "pkt"
    card: ClassVar[Card] = Card(
        "Who is whose neighbour in a batch",
        "Passalis and Tefas, ECCV 2018, arXiv 1803.10837",
        "one vector a record, in whole batches",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-kd": {"kd_weight": 1.0}}

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the divergence of the neighbours."""
        name = feature(self.layer)
        return (bind(pkt, name, teacher=name, weight=self.weight, name="neighbours", over=SAMPLE_WEIGHT),), ()
