"""Variational information distillation (VID): the student's maps are to tell as much as they can about the teacher's.

What it does: of each stage, with a trained regressor mu from the student's maps and a trained variance v_c of each of the teacher's
channels,

    L = ce_weight CE + kd_weight T^2 KL + weight sum_l mean [((mu(F_S) - F_T)^2 / v_c + log v_c) / 2],

the mean over channels and positions: what the student cannot tell gets a large variance and counts less. It can be negative.
When to use: where some of the teacher's channels are out of the student's reach; FitNets counts them all alike.
Parameters: `layers` every stage of both networks, `weight` 1, `variance` 5 (of which v begins), `ce_weight` 1,
`kd_weight` 0 (the benchmark on CIFAR-100). The regressor is three 1 x 1 convolutions with ReLU between them, as wide as the teacher.
The variances are trained, which they are not in one well-known library.
What it costs: three convolutions a stage; a book holds whole maps, 2 c h w bytes a stage and record as float16.
What it clashes with: books without these maps (`bookkd make --serve vid`).
Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv 1904.05835, equation 6, as in
RepDistiller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from bookkd.core.check import between
from bookkd.core.fields import SAMPLE_WEIGHT, STUDENT
from bookkd.core.schedules import Schedule
from bookkd.losses import vid
from bookkd.methods._features import FeatureMethod, OfStages, connected, feature
from bookkd.methods.base import Card
from bookkd.objectives import Connector, ConnectorModule, Term, bind
from bookkd.tasks import Task

__all__ = ["VID", "Regressor"]

_LEAST = 1e-5  # of the released code, so that no variance is 0


class Regressor(ConnectorModule):
    """Mean and variance of the teacher's maps, as the student's let them be told.

    Args:
        mine: Shape of one of the student's maps.
        theirs: Of the teacher's.
        variance: Of every channel before training, above 1e-5.
    """

    def __init__(self, mine: tuple[int, ...], theirs: tuple[int, ...], variance: float) -> None:
        super().__init__()
        widths = (mine[0], theirs[0], theirs[0], theirs[0])
        convolutions = [nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(widths)]
        self.mean = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
        # The inverse of softplus, log(e^x - 1), in a form that large x does not overflow.
        above = variance - _LEAST
        self.raw = nn.Parameter(torch.full((theirs[0],), above + math.log(-math.expm1(-above))))

    @property
    def variance(self) -> Tensor:
        """Of each channel, [c_T]."""
        return softplus(self.raw) + _LEAST

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean [batch, c_T, h, w], and the variance [batch, c_T], the same for every sample."""
        return self.mean(maps), self.variance.expand(len(maps), -1)


@dataclass(frozen=True)
class VID(OfStages, FeatureMethod):
    """Maximise what the student's maps tell about the teacher's.

    Args:
        weight: Of the sum over layers, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        layers: Names of both networks' layers, or paths of modules of both; None: every stage that both name, three where that is not known.
        variance: Of every channel before training, 0.001 to 1,000,000.
    """

    weight: float | Schedule = 1.0
    layers: tuple[str, ...] | None = None
    variance: float = 5.0

    name: ClassVar[str] = "vid"
    card: ClassVar[Card] = Card(
        "The student's maps tell as much as they can about the teacher's",
        "Ahn et al., CVPR 2019, arXiv 1904.05835",
        "maps of the stages",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-kd": {"kd_weight": 1.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self.variance, 1e-3, 1e6, "variance", where=f"method {self.name}")

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the likelihood of the teacher's maps, a term and a regressor a layer."""
        names, terms = {layer: feature(layer) for layer in self.looked_at}, []
        for layer, name in names.items():
            how: dict[str, Any] = {"weight": self.weight, "name": f"told/{layer}", "over": SAMPLE_WEIGHT}
            variance = STUDENT + connected(name, "variance")
            terms.append(bind(vid, connected(name, "told"), teacher=name, batch=(variance,), **how))
        build = partial(Regressor, variance=self.variance)
        return tuple(terms), tuple(self.adapter(name, "told", build, "variance") for name in names.values())
