"""CCSKD: channels as strong as the teacher's, relations between samples rebuilt from them, and logits trusted where the teacher is right.

What it does: of each stage, with a trained connector (1 x 1 convolution, BN, ReLU) on the student's maps, s = its channel means, t those of
the teacher, d and a the distances and angles between the samples of a batch as in `rkd`, m_n = g (1 + [teacher right on n]),

    L = ce_weight CE + selective_weight SKD + kd_weight T^2 KL
        + channel_weight sum_l mean (s - t)^2 + relation_weight sum_l [SmoothL1(d(s), d(t)) + 2 SmoothL1(a(s), a(t))],
    SKD, "code":  T^2 mean_n sum_c m_n p (log(m_n p) - m_n log q),  whose gradient is m_n^2 that of KL and whose value is no divergence,
    SKD, "clean": T^2 mean_n m_n KL_n, what the paper seems to intend.

When to use: with a book of small records: channel means instead of maps.
Parameters: of the released CIFAR configuration: T 1, `kd_weight` 0.1, `relation_weight` 6, `channel_weight` 6, 5.4 from epoch 60, 4.86
from epoch 160; `ce_weight` 0 and `selective_weight` 0 in the first 60 epochs, 1 and 0.1 after them; `factor` g = 0.9^floor(epoch / 30).
**The student has no labels for 60 epochs**; runs that are shorter want preset `labels-from-the-start`; preset `imagenet` has none for 30, and decays `channel_weight` as g. `selective` code. `layers` every stage.
What it costs: a connector a stage, and N^3 angles of a batch of N at each; a book holds logits and one number a channel: 960 floats,
1,920 bytes a record as float16, for the stages of a ResNet-34 (`bookkd make --serve ccskd`). Relations depend on who shares a batch, and
are rebuilt.
What it clashes with: accumulation and several devices, which split batches (refused); the last incomplete batch of an epoch is left out;
mixed views, which have two true classes (refused at the first batch unless `selective_weight` is 0); teachers whose channel means may be
below 0, since the connector ends with ReLU.
Source: Gou, Xiong, Yu, Zhan, Yi, "Channel-Correlation-Based Selective Knowledge Distillation", IEEE TCDS 2023, doi
10.1109/tcds.2022.3232569, from its released code; "clean" is reconstructed from the abstract. The paper's tables were not read, and none of
its numbers are claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from bookkd.core.check import between
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import LABEL, LOGITS, PARTNER_LABEL, SAMPLE_WEIGHT
from bookkd.core.schedules import Schedule, Steps, times
from bookkd.losses import feature_mse, reductions, rkd_angle, rkd_distance, selective_kl
from bookkd.methods._features import OfStages, check_layers, connected, feature, of_teacher, part_name
from bookkd.methods._parts import check_some_weight, check_temperatures, with_labels
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Connector, ConnectorModule, Objective, Shapes, Term, bind
from bookkd.objectives.adapters import shapes_in
from bookkd.tasks import Task

__all__ = ["CCSKD", "ChannelMeans"]

# The released CIFAR configuration, of 200 epochs; epochs count from 0 here.
_LABELS = Steps((0.0, 1.0), (60,))
_SELECTIVE = Steps((0.0, 0.1), (60,))
_CHANNELS = Steps((6.0, 5.4, 4.86), (59, 159))
_DECAY = (29, 59, 89, 119, 149, 179)
_FACTOR = Steps((1.0, 0.9, 0.81, 0.729, 0.6561, 0.59049, 0.531441), _DECAY)


class ChannelMeans(ConnectorModule):
    """Channel means of the student's maps, brought to the teacher's channels before they are averaged.

    Args:
        mine: Channels of the student.
        theirs: Of the teacher.
    """

    def __init__(self, mine: int, theirs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(mine, theirs, 1, bias=False), nn.BatchNorm2d(theirs), nn.ReLU())

    def forward(self, maps: Tensor) -> Tensor:
        """Return the means, [batch, c_T]."""
        return reductions.channel_mean(self.layers(maps))


@dataclass(frozen=True)
class CCSKD(OfStages, BaseMethod):
    """Match channel means, relations between samples and, selectively, logits.

    Args:
        temperature: T of both terms on logits, above 0.
        ce_weight: Weight of the label term, at least 0.
        selective_weight: Weight of the selective term, at least 0.
        kd_weight: Weight of T^2 KL, at least 0.
        channel_weight: Weight of the channel means, at least 0.
        relation_weight: Weight of the relations, at least 0; not all four of these 0.
        angle_weight: Of the angles beside the distances, at least 0.
        selective: "code" or "clean".
        factor: g of the selective term, above 0.
        layers: Names of both networks' layers, or paths of modules of both; None: every stage that both name, three where that is not known.
    """

    temperature: float | Schedule = 1.0
    ce_weight: float | Schedule = _LABELS
    selective_weight: float | Schedule = _SELECTIVE
    kd_weight: float | Schedule = 0.1
    channel_weight: float | Schedule = _CHANNELS
    relation_weight: float | Schedule = 6.0
    angle_weight: float = 2.0
    selective: Literal["code", "clean"] = "code"
    factor: float | Schedule = _FACTOR
    layers: tuple[str, ...] | None = None

    name: ClassVar[str] = "ccskd"
    card: ClassVar[Card] = Card(
        "Channel means, relations rebuilt from them, and logits trusted where the teacher is right",
        "Gou et al., IEEE TCDS 2023, doi 10.1109/tcds.2022.3232569",
        "logits and channel means of the stages, in whole batches",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "labels-from-the-start": {"ce_weight": 1.0, "selective_weight": 0.1, "channel_weight": 6.0, "factor": 1.0},
        "clean": {"selective": "clean"},
        "imagenet": {
            "ce_weight": Steps((0.0, 1.0), (30,)),
            "selective_weight": Steps((0.0, 0.1), (30,)),
            "channel_weight": Steps(tuple(6 * factor for factor in _FACTOR.values), _DECAY),
        },
    }

    def __post_init__(self) -> None:
        check_temperatures(self, "temperature")
        check_some_weight(
            self, "channel_weight", "relation_weight", "selective_weight", "kd_weight",
            do="Without these use method supervised.",
        )  # fmt: skip
        between(self.angle_weight, 0, float("inf"), "angle_weight", where=f"method {self.name}")
        if self.selective not in ("code", "clean"):
            raise ConfigError(expected("selective", "code or clean", self.selective, where=f"method {self.name}"))
        check_layers(self)

    def objective(self, task: Task) -> Objective:
        """Return the terms whose weight is not the number 0, and a connector a layer that any of them looks at."""
        how: dict[str, Any] = {"temperature": self.temperature, "t_squared": True}
        terms: list[Term] = []
        if self.selective_weight != 0:
            more = {"factor": self.factor, "form": self.selective, "weight": self.selective_weight, "name": "selective"}
            # The partner's label is asked for so that the loss can refuse mixed views.
            terms.append(bind(selective_kl, teacher=LOGITS, batch=(LABEL, PARTNER_LABEL), **how, **more))  # type: ignore[arg-type]
        if self.kd_weight != 0:
            terms.append(task.soft_term(weight=self.kd_weight, **how, class_reduction="sum", soft_loss="kl"))
        connectors = []
        for layer in self.looked_at:
            maps, means = feature(layer), feature(layer, "mean")
            mine = connected(maps, "means")
            own = self._of_layer(layer, mine, means)
            if own:
                connectors.append(Connector(part_name("means", maps), maps, mine, _Means(layer), weight_decay=None))
            terms += own
        return Objective(with_labels(task, tuple(terms), weight=self.ce_weight), tuple(connectors))

    def _of_layer(self, layer: str, mine: str, means: str) -> list[Term]:
        relation = self.relation_weight
        candidates = (
            (feature_mse, f"channels/{layer}", self.channel_weight),
            (rkd_distance, f"distance/{layer}", relation),
            (rkd_angle, f"angle/{layer}", times(relation, self.angle_weight) if self.angle_weight else 0.0),
        )
        return [
            bind(loss, mine, teacher=means, weight=weight, name=name, over=SAMPLE_WEIGHT)
            for loss, name, weight in candidates
            if weight != 0
        ]


@dataclass(frozen=True)
class _Means:
    """Builds the connector of a layer; a class, since a nested function could not be pickled."""

    layer: str

    def __call__(self, shapes: Shapes) -> ChannelMeans:
        maps, means = feature(self.layer), of_teacher(feature(self.layer, "mean"))
        (mine,) = shapes_in(shapes, maps, axes=3, where="method ccskd")
        (theirs,) = shapes_in(shapes, means, axes=1, where="method ccskd")
        return ChannelMeans(mine[0], theirs[0])
