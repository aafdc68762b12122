"""Similarity-preserving distillation (SP): samples that are alike for the teacher are to be alike for the student.

What it does: with F the maps of a batch of N, flattened, and G = F F' with rows of norm 1,

    L = ce_weight CE + kd_weight T^2 KL + weight ||G_S - G_T||_F^2 / N^2.

When to use: between networks of any widths and grids: nothing is compared but samples with samples.
Parameters: `layer` last, `weight` 3000, `ce_weight` 1, `kd_weight` 0 (the benchmark on CIFAR-100, batches of 64; the weight makes up
for the mean over pairs and so goes with the batch).
What it costs: one product of a batch's maps with themselves; a book holds the maps of one layer, 2 c h w bytes a record as float16. The
matrix itself depends on who shares a batch and cannot be stored.
What it clashes with: accumulation and several devices, which split batches (refused); the last incomplete batch of an epoch is left out.
Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import similarity_preserving
from bookkd.methods._features import FeatureMethod, feature
from bookkd.methods.base import Card
from bookkd.objectives import Connector, Term, bind
from bookkd.tasks import Task

__all__ = ["SP"]


@dataclass(frozen=True)
class SP(FeatureMethod):
    """Match which samples of a batch excite a layer alike.

    Args:
        weight: Of the difference, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        layer: A name of both networks' layers, or the path of a module of both.
    """

    weight: float | Schedule = 3000.0
    layer: str = "last"

    name: ClassVar[str] = "sp"
    card: ClassVar[Card] = Card(
        "Samples alike for the teacher are alike for the student",
        "Tung and Mori, ICCV 2019, arXiv 1907.09682",
        "maps of one layer, in whole batches",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-kd": {"kd_weight": 1.0}}

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the difference of the similarities."""
        name = feature(self.layer)
        return (
            bind(similarity_preserving, name, teacher=name, weight=self.weight, name="similarity", over=SAMPLE_WEIGHT),
        ), ()
