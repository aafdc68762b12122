"""Structured knowledge distillation (SKD): pixels, and which regions of an image are alike.

What it does: with p the teacher's classes of a pixel, f the map of a layer pooled to `regions` x `regions` by the largest of each cell and
A = f' f of its cells, each a vector of norm 1,

    L = ce_weight CE(y, student) + pixel_weight mean CE(p, student) + weight ||A_S - A_T||_F^2 / R^2.

The third term of the paper, an adversarial critic on whole score maps, is left out: it is trained beside the student, on live images.
When to use: for segmentation; the pair-wise term costs a book next to nothing.
Parameters: `pixel_weight` 10, `weight` 1, `ce_weight` 1, `regions` 2, `layer` last (the released code, which divides the sum of its pixel
term over a whole batch by the pixels of one image: there 10 weighs a batch of n images as 10 n does here).
What it costs: products of a few vectors; a book holds c regions^2 numbers a record beside the logits of the grid of the task.
What it clashes with: a book without the pooled map (`bookkd make --serve skd`); maps of odd sizes, which the released code pools to
thinner last cells.
Source: Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, arXiv 1903.04197, equations 2 and 3, without
the holistic term, so that none of its numbers with it are claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bookkd.core.check import at_least
from bookkd.core.features import Feature
from bookkd.core.fields import LOGITS, SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import pairwise_similarity, soft_cross_entropy
from bookkd.methods._features import feature
from bookkd.methods._parts import check_some_weight, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Objective, Term, bind
from bookkd.tasks import Task

__all__ = ["SKD"]


@dataclass(frozen=True)
class SKD(BaseMethod):
    """Match pixels and the likeness of regions.

    Args:
        weight: Of the likeness of regions, at least 0; a number or a schedule.
        pixel_weight: Of the cross-entropy under the teacher, at least 0; not both 0.
        ce_weight: Of the label term, at least 0; 0 leaves the labels unused.
        regions: Cells along each axis, at least 2.
        layer: A name of both networks' layers, or the path of a module of both.
    """

    weight: float | Schedule = 1.0
    pixel_weight: float | Schedule = 10.0
    ce_weight: float | Schedule = 1.0
    regions: int = 2
    layer: str = "last"

    name: ClassVar[str] = "skd"
    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)
    card: ClassVar[Card] = Card(
        "Pixels, and which regions of an image are alike",
        "Liu et al., CVPR 2019, arXiv 1903.04197",
        "logits and one map pooled to a few cells",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "pair-wise": {"pixel_weight": 0.0},
        "pixel-wise": {"weight": 0.0},
    }

    def __post_init__(self) -> None:
        check_some_weight(self, "weight", "pixel_weight")
        at_least(self.regions, 2, "regions", where=f"method {self.name}")
        Feature(self.layer)

    def objective(self, task: Task) -> Objective:
        """Return the terms whose weight is not the number 0."""
        name, found = feature(self.layer, "max", self.regions), list[Term]()
        if self.pixel_weight != 0:
            hyper: dict[str, Any] = {"temperature": 1.0, "t_squared": False}
            found.append(bind(soft_cross_entropy, teacher=LOGITS, weight=self.pixel_weight, name="pixels", **hyper))
        if self.weight != 0:
            how: dict[str, Any] = {"weight": self.weight, "name": "regions", "over": SAMPLE_WEIGHT}
            found.append(bind(pairwise_similarity, name, teacher=name, **how))
        return Objective(with_labels(task, tuple(found), weight=self.ce_weight))
