"""The overhaul of feature distillation (OFD): maps before their activation, of which what the teacher's cuts off need not be met.

What it does: of each stage before its last activation, with s = BN(conv1x1(F_S)), t = F_T and a margin m < 0 of each of the teacher's
channels, its mean below 0 as the batch normalisation before the activation says it, summed over all of a sample,

    D = sum [(s - m)^2 where s > m and t <= m] + sum [(s - t)^2 where s > t and m < t <= 0] + sum [(s - t)^2 where t > 0],
    L = ce_weight CE + kd_weight T^2 KL + weight sum_i 2^(i - n + 1) D_i,

over stages i = 0 .. n - 1. So a negative value of the teacher is an upper bound, and below the margin even that is lax.
When to use: on networks with batch normalisation and ReLU; among the stronger terms on maps.
Parameters: `layers` what the last activation of each stage is given, `weight` 0.001, `ce_weight` 1, `kd_weight` 0 (the
benchmark on CIFAR-100). Its author's advice: a tenth of the weight for very different architectures.
What it costs: one convolution a stage; a book holds whole maps, 2 c h w bytes a stage and record as float16, and the margins once.
What it clashes with: networks whose last activation is no module of its own (`bookkd inspect --model` shows `pre1` where it is); books
without the margins (constants `margins/<layer>`, which `bookkd make --serve ofd` works out of the teacher's weights).
Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv 1904.01866, as in mdistiller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import SAMPLE_WEIGHT, STUDENT
from bookkd.core.schedules import Schedule, times
from bookkd.losses import overhaul
from bookkd.methods._features import FeatureMethod, OfStages, connected, feature, of_teacher, part_name
from bookkd.methods.base import Card
from bookkd.objectives import Connector, Shapes, Term, bind
from bookkd.objectives.adapters import WithMargins, shapes_in
from bookkd.tasks import Task

__all__ = ["OFD"]


@dataclass(frozen=True)
class OFD(OfStages, FeatureMethod):
    """Match maps before their activation, as far as the activation lets them through.

    Args:
        weight: Of the sum over layers, above 0; a number or a schedule.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        layers: Of both networks, before their activation, first to deepest. None: `pre1`, `pre2`, ... as far as both name them, three where that is
            not known.
    """

    weight: float | Schedule = 1e-3
    layers: tuple[str, ...] | None = None

    usual: ClassVar[tuple[str, ...]] = ("pre1", "pre2", "pre3")
    name: ClassVar[str] = "ofd"
    card: ClassVar[Card] = Card(
        "Maps before their activation, as far as it lets them through",
        "Heo et al., ICCV 2019, arXiv 1904.01866",
        "maps of the stages before their activation, and the teacher's margins",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-kd": {"kd_weight": 1.0}}

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return a term and an adapter a layer."""
        terms, connectors = [], []
        for place, layer in enumerate(self.looked_at):
            name = feature(layer)
            mine, margins = connected(name, "fit"), connected(name, "margins")
            how: dict[str, Any] = {"name": f"overhaul/{layer}", "over": SAMPLE_WEIGHT}
            weight = times(self.weight, 2.0 ** (place - len(self.looked_at) + 1))
            terms.append(bind(overhaul, mine, teacher=name, batch=(f"{STUDENT}{margins}",), weight=weight, **how))
            constants = (f"margins/{layer}",)
            connectors.append(
                Connector(
                    part_name("margin", name), (name,), (mine, margins), _Fit(layer), weight_decay=None, constants=constants
                )
            )  # fmt: skip
        return tuple(terms), tuple(connectors)


@dataclass(frozen=True)
class _Fit:
    """Builds the adapter of a layer; a class, since a nested function could not be pickled."""

    layer: str

    def __call__(self, shapes: Shapes, constants: Mapping[str, Tensor]) -> WithMargins:
        name, margins = feature(self.layer), constants[f"margins/{self.layer}"]
        mine, theirs = shapes_in(shapes, name, of_teacher(name), axes=3, where="method ofd")
        if tuple(margins.shape) != theirs[:1]:
            do = "Name a layer that is given what its batch normalisation gives, with nothing but a sum between them."
            wish = f"one for each of {theirs[0]} channels"
            got = f"shape {list(margins.shape)}"
            raise ConfigError(expected(f"margins/{self.layer}", wish, got, where="method ofd", do=do))
        return WithMargins(mine[0], margins)
