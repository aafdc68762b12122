"""Activation boundaries (AB): units are first to be active where the teacher's are, before labels are learnt.

What it does: of each stage before its last activation, with s = BN(conv1x1(F_S)), t = F_T and a margin m, summed over all of a sample,

    A = sum [(s + m)^2 where s > -m and t <= 0] + sum [(s - m)^2 where s <= m and t > 0],
    L = 3/1000 weight sum_i 2^(i - n + 1) A_i  in the first `begin_epochs`;  ce_weight CE + kd_weight T^2 KL  after them,

over stages i = 0 .. n - 1. Only the teacher's signs are looked at. The student has no label in the first part.
When to use: to begin a student before ordinary training or distillation.
Parameters: `layers` what the last activation of each stage is given, `margin` 1, `weight` 1, `begin_epochs` 30 (the benchmark
on CIFAR-100, of 240), `ce_weight` 1, `kd_weight` 0.
What it costs: one convolution a stage; a book holds whole maps, 2 c h w bytes a stage and record as float16, of which one bit a number
is read.
What it clashes with: networks whose last activation is no module of its own (`bookkd inspect --model` shows `pre1` where it is); runs
that are not longer than `begin_epochs`, whose student never sees a label.
Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries", AAAI 2019, arXiv 1811.03233, as in RepDistiller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from bookkd.core.check import positive
from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import times
from bookkd.losses import activation_boundary
from bookkd.methods._features import BeginningMethod, OfStages, connected, feature
from bookkd.methods.base import Card
from bookkd.objectives import Connector, Term, bind
from bookkd.objectives.adapters import map_adapter
from bookkd.tasks import Task

__all__ = ["AB"]

_SCALE = 3 / 1000
"""Of the released code."""


@dataclass(frozen=True)
class AB(OfStages, BeginningMethod):
    """Begin with the teacher's activation boundaries.

    Args:
        weight: Of the boundaries, above 0; a number or a schedule.
        ce_weight: Weight of the label term after the beginning, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits after the beginning, at least 0.
        temperature: T of that, above 0.
        begin_epochs: Epochs of boundaries alone, at least 1.
        layers: Of both networks, before their activation, first to deepest. None: `pre1`, `pre2`, ... as far as both name them, three where that is
            not known.
        margin: m, above 0.
    """

    layers: tuple[str, ...] | None = None
    margin: float = 1.0

    usual: ClassVar[tuple[str, ...]] = ("pre1", "pre2", "pre3")
    name: ClassVar[str] = "ab"
    card: ClassVar[Card] = Card(
        "Units are first active where the teacher's are",
        "Heo et al., AAAI 2019, arXiv 1811.03233",
        "maps of the stages before their activation",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-kd": {"kd_weight": 1.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self.margin, "margin", where=f"method {self.name}")

    def begin(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return a term and an adapter a layer."""
        names, terms = {layer: feature(layer) for layer in self.looked_at}, []
        for place, (layer, name) in enumerate(names.items()):
            weight = times(self.weight, _SCALE * 2.0 ** (place - len(names) + 1))
            how: dict[str, Any] = {"weight": weight, "name": f"boundary/{layer}", "over": SAMPLE_WEIGHT}
            terms.append(bind(activation_boundary, connected(name, "fit"), teacher=name, margin=self.margin, **how))
        build = partial(map_adapter, relu=False)
        return tuple(terms), tuple(self.adapter(name, "fit", build) for name in names.values())
