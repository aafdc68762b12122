"""CSC-ACE: correlations of channels and positions as the teacher's, and a target that is the label where the teacher is wrong.

What it does: with u and v the maps of student (through a trained 1 x 1 convolution) and teacher at one layer, averaged to a grid of
`grid` x `grid`, C(F) the products of their channels and R(F) those of their positions, each a vector of norm 1, p the teacher's classes and y
the label of a pixel,

    q = p where argmax p = y, else onehot(y) ("switch");  q = p_y p + (1 - p_y) onehot(y) ("blend"),
    L = ace_weight mean CE(q, student) + weight [mean (C(u) - C(v))^2 + mean (R(u) - R(v))^2] + ce_weight CE(y, student).

Of a mixed view q is that of both labels, in their ratio. The adaptive term is of the positions of the book: where its grid is coarser than
the image (`stride`), p is that of a cell and y the label of its middle pixel, and the labels of all other pixels are in `ce_weight` alone.
When to use: for segmentation, from a teacher that is wrong at some of the pixels.
Parameters: `csc` factorised (the sum above; "full" has 2 (1 - cos^2(u, v)) / D^2 of the flattened maps, which comes down to one cosine),
`ace` switch, `weight` 1, `grid` 8, `layer` last, `ace_weight` 1, `ce_weight` 0. The published weights were not found: scan `weight` over 0.1,
1 and 10. With a stride above 1 give labels a weight: `ce_weight` 1.
What it costs: one 1 x 1 convolution and products of a small grid; a book holds one pooled map, 2 c grid^2 bytes a record as float16, of
which both correlations are worked out, and the logits of the grid of the task.
What it clashes with: sparse books, which do not know every class of a pixel (refused); a book without the map (`--serve csc-ace`).
Source: reconstructed. Park and Heo, "Knowledge Distillation for Semantic Segmentation Using Channel and Spatial Correlations and Adaptive
Cross Entropy", Sensors 2020, 20(16), 4616, doi 10.3390/s20164616, of which the abstract was read and no equation; none of its numbers are
claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.core.features import Feature
from bookkd.core.fields import LABEL, LOGITS, PARTNER_LABEL, RATIO, SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule
from bookkd.losses import adaptive_cross_entropy, csc, feature_mse, reductions
from bookkd.methods._features import connected, feature, of_teacher
from bookkd.methods._parts import check_some_weight, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Connector, ConnectorModule, Objective, Shapes, Term, bind, labelled
from bookkd.objectives.adapters import shapes_in
from bookkd.tasks import Task

__all__ = ["CSCACE", "Correlations"]


class Correlations(ConnectorModule):
    """The student's maps in the teacher's channels on a small grid, and the correlations of both sides.

    Args:
        mine: Channels of the student's maps.
        theirs: Of the teacher's.
        grid: Cells along each axis.
    """

    def __init__(self, mine: int, theirs: int, grid: int) -> None:
        super().__init__()
        self.fit = nn.Conv2d(mine, theirs, 1, bias=False)
        self.grid = grid

    def forward(self, maps: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the fitted map, its channel and spatial correlations, and those of the teacher."""
        # A convolution of 1 x 1 and a mean can change places: the smaller map is convolved.
        fitted = self.fit(reductions.average_pool(maps, size=self.grid))
        fitted, teacher = reductions.same_size(
            fitted, teacher
        )  # where one of the maps has fewer positions than the grid
        gram, spatial = reductions.channel_gram, reductions.spatial_gram
        return fitted, gram(fitted), spatial(fitted), gram(teacher), spatial(teacher)


@dataclass(frozen=True)
class CSCACE(BaseMethod):
    """Match correlations of channels and positions, and an adaptive target.

    Args:
        weight: Of the correlations, at least 0; a number or a schedule.
        ace_weight: Of the adaptive cross-entropy, at least 0; not both 0.
        ce_weight: Of the label term beside it, at least 0.
        csc: "factorised" or "full".
        ace: "switch" or "blend".
        grid: Cells along each axis of the pooled maps, at least 1; of a smaller map its positions, and the smaller of both sides.
        layer: A name of both networks' layers, or the path of a module of both.
    """

    weight: float | Schedule = 1.0
    ace_weight: float | Schedule = 1.0
    ce_weight: float | Schedule = 0.0
    csc: Literal["factorised", "full"] = "factorised"
    ace: Literal["switch", "blend"] = "switch"
    grid: int = 8
    layer: str = "last"

    name: ClassVar[str] = "csc-ace"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "segmentation")
    card: ClassVar[Card] = Card(
        "Correlations of channels and positions, and the label where the teacher is wrong",
        "Park and Heo, Sensors 2020, doi 10.3390/s20164616 (abstract only)",
        "logits of every class and one pooled map",
        "reconstructed",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "csc": {"ace_weight": 0.0, "ce_weight": 1.0},
        "ace": {"weight": 0.0},
        "blend": {"ace": "blend"},
        "full": {"csc": "full"},
    }

    def __post_init__(self) -> None:
        where = f"method {self.name}"
        check_some_weight(self, "weight", "ace_weight")
        at_least(self.grid, 1, "grid", where=where)
        for name, allowed in (("csc", ("factorised", "full")), ("ace", ("switch", "blend"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(expected(name, " or ".join(allowed), getattr(self, name), where=where))
        Feature(self.layer)

    def objective(self, task: Task) -> Objective:
        """Return the terms whose weight is not the number 0, and the connector of the correlations."""
        terms: list[Term] = []
        connectors: tuple[Connector, ...] = ()
        if self.ace_weight != 0:
            how: dict[str, Any] = {"weight": self.ace_weight, "name": "adaptive", "mask": labelled, "form": self.ace}
            terms.append(bind(adaptive_cross_entropy, teacher=LOGITS, batch=(LABEL, PARTNER_LABEL, RATIO), **how))
        if self.weight != 0:
            terms += self._correlations()
            maps, theirs = feature(self.layer), of_teacher(feature(self.layer, "pool", self.grid))
            outputs = tuple(connected(maps, part) for part in _PARTS)
            connectors = (Connector("correlations", (maps, theirs), outputs, self._build, weight_decay=None),)
        return Objective(with_labels(task, tuple(terms), weight=self.ce_weight), connectors)

    def _correlations(self) -> list[Term]:
        maps = feature(self.layer)
        how: dict[str, Any] = {"weight": self.weight, "over": SAMPLE_WEIGHT}
        if self.csc == "full":
            theirs = feature(self.layer, "pool", self.grid)
            return [bind(csc, connected(maps, "fitted"), teacher=theirs, name="correlation", **how)]
        return [
            bind(
                feature_mse,
                connected(maps, part),
                teacher=connected(maps, f"{part}_teacher"),
                name=part,
                own=True,
                **how,
            )
            for part in ("channels", "positions")
        ]

    def _build(self, shapes: Shapes) -> Correlations:
        maps, theirs = feature(self.layer), of_teacher(feature(self.layer, "pool", self.grid))
        mine, wanted = shapes_in(shapes, maps, theirs, axes=3, where=f"method {self.name}")
        return Correlations(mine[0], wanted[0], self.grid)


_PARTS = ("fitted", "channels", "positions", "channels_teacher", "positions_teacher")
"""What `Correlations` gives, in this order."""
