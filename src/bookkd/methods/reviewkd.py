"""ReviewKD: each layer of the teacher is learnt from with all deeper layers of the student, reviewed together.

What it does: from the deepest layer to the first, with F_l the student's maps and y the running map of the layers before,

    x = BN(conv1x1(F_l));  z = sigmoid(conv1x1([x, up(y)]));  x <- x z_0 + up(y) z_1 =: y;  out_l = BN(conv3x3(x)),
    L = ce_weight CE + kd_weight T^2 KL + weight sum_l HCL(out_l, F_T,l),

where HCL adds to the squared error of two maps those of their means over grids of 4, 2 and 1. The pooled vector is the deepest layer.
When to use: as the strongest of the joint losses on maps, where a book of maps can be afforded.
Parameters: `layers` every stage of both networks and the pooled vector, `weight` 1 with a ramp of 20 epochs (`weight`
is multiplied by min(epoch / `ramp_epochs`, 1)), `width` at most 512 channels of the running map, `ce_weight` 1, `kd_weight` 0. The
published weights vary from pair to pair.
What it costs: the fusion, which for small networks is as large as the student; a book holds whole maps, 2 c h w bytes a layer and
record as float16, half of it with `--feature_codec int8`.
What it clashes with: books without these maps (`bookkd make --serve reviewkd`), and a teacher whose grids are larger than the student's
(its maps are averaged to the smaller grid).
Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044, as in mdistiller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import Ramp, Times
from bookkd.losses import feature_mse, hcl
from bookkd.losses.reductions import product
from bookkd.losses.targets import computing_dtype
from bookkd.methods._features import STAGES, FeatureMethod, OfStages, connected, feature, of_teacher
from bookkd.methods.base import Card
from bookkd.objectives import Connector, ConnectorModule, Shapes, Term, bind
from bookkd.tasks import Task

__all__ = ["Review", "ReviewKD"]


class _Normed(nn.Sequential):
    """A convolution without bias, and the batch normalisation behind it."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs))

    @property
    def weight(self) -> Tensor:
        """Of the convolution."""
        return cast(nn.Conv2d, self[0]).weight

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The normalisation."""
        return cast(nn.BatchNorm2d, self[1])

    def as_convolution(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and shift of the one 1 x 1 convolution that this is on a batch of training, and note its moments.

        The moments of the outputs follow from mean m and covariance C of the inputs: W m, and the diagonal of W C W'.
        """
        with torch.autocast(maps.device.type, enabled=False):
            rows = maps.to(computing_dtype(maps.dtype)).movedim(1, -1).flatten(0, -2)
            weight, mean = self.weight.flatten(1).to(rows.dtype), rows.sum(0) / len(rows)
            apart = rows - mean
            variance = ((weight @ (apart.mT @ apart / len(rows))) * weight).sum(1)
            found = weight @ mean
            self._note(found.detach(), variance.detach() * (len(rows) / max(1, len(rows) - 1)))
            scale = self.norm.weight * (variance + self.norm.eps).rsqrt()
            return (weight * scale.unsqueeze(1))[..., None, None], self.norm.bias - found * scale

    def _note(self, mean: Tensor, variance: Tensor) -> None:
        norm, momentum = self.norm, cast(float, self.norm.momentum)
        cast(Tensor, norm.num_batches_tracked).add_(1)
        cast(Tensor, norm.running_mean).lerp_(mean, momentum)
        cast(Tensor, norm.running_var).lerp_(variance, momentum)


class Review(ConnectorModule):
    """The student's layers, each fused with all deeper ones, in the shapes of the teacher's.

    The gates are linear in what they read, and so are the last steps of the first layer, which nothing else asks for its fused map:
    both are worked out in front of the lift to the larger grid and to `width` channels wherever that is less work. The values are
    those of the steps in their order, up to rounding.

    Args:
        mine: Shape of each of the student's layers, first to deepest: maps [c, h, w] or vectors [c].
        theirs: Channels of the teacher's.
        width: Channels of the running map.
    """

    def __init__(self, mine: tuple[tuple[int, ...], ...], theirs: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.vectors = tuple(len(shape) == 1 for shape in mine)
        self.enter = nn.ModuleList(_Normed(shape[0], width, 1) for shape in mine)
        self.gates = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in mine[:-1])
        self.leave = nn.ModuleList(_Normed(width, channels, 3) for channels in theirs)

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Return what each layer is in the teacher's shape, in the order in which they are given."""
        maps = [each[..., None, None] if flat else each for each, flat in zip(features, self.vectors, strict=True)]
        deepest = len(maps) - 1
        running = self.enter[deepest](maps[deepest])
        found = [self.leave[deepest](running)]
        for place in reversed(range(deepest)):
            if place == 0 and self._narrow(maps[0]):
                found.append(self._first(maps[0], running))
                continue
            x = self.enter[place](maps[place])
            mine, above = self._gated(place, running, x)
            running = x * mine + above
            found.append(self.leave[place](running))
        in_order = zip(reversed(found), self.vectors, strict=True)
        return tuple(out.flatten(1) if flat else out for out, flat in in_order)

    def _gated(
        self, place: int, running: Tensor, x: Tensor, into: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the gate of a layer's own map, and the running map on its grid behind the other gate.

        Args:
            place: Of the layer.
            running: The running map, on its own grid.
            x: What the gates read of the layer.
            into: Weight [width, channels, 1, 1] and shift [width] that make the layer's own map of `x`; None where `x` is that map.
        """
        gate = cast(nn.Conv2d, self.gates[place])
        of_own, of_running = gate.weight.chunk(2, 1)
        shift = cast(Tensor, gate.bias)
        if into is not None:
            of_own = of_own.flatten(1)
            shift = shift + product(of_own, into[1])
            of_own = product(of_own, into[0].flatten(1))[..., None, None]
        lift = partial(interpolate, size=x.shape[-2:], mode="nearest")
        gates = (conv2d(x, of_own, shift) + lift(conv2d(running, of_running))).sigmoid()
        return gates[:, :1], lift(running) * gates[:, 1:]

    def _narrow(self, maps: Tensor) -> bool:
        """Whether the first layer has so few channels that its own map is better never made."""
        enter = self._enter(0)
        # As every connector is, and none over several devices.
        plain = (
            type(enter.norm) is nn.BatchNorm2d and enter.norm.momentum is not None and enter.weight.dtype.itemsize >= 4
        )
        return plain and enter.norm.training and maps.numel() > 0 and 4 * maps.shape[1] <= len(enter.weight)

    def _first(self, maps: Tensor, running: Tensor) -> Tensor:
        """Return what the first layer is, from its channels as they are: its 1 x 1 and 3 x 3 convolutions as one."""
        weight, shift = self._enter(0).as_convolution(maps)
        mine, above = self._gated(0, running, maps, (weight, shift))
        leave = self._leave(0)
        # The shift goes with the gate, so that it is 0 behind the edge as the fused map is.
        inputs = torch.cat([weight.flatten(1), shift.unsqueeze(1)], 1)
        composed = product(leave.weight.movedim(1, -1), inputs).movedim(-1, 1).contiguous()
        own = conv2d(torch.cat([maps * mine, mine], 1), composed, padding=1)
        found: Tensor = leave.norm(own + conv2d(above, leave.weight, padding=1))
        return found

    def _enter(self, place: int) -> _Normed:
        return cast(_Normed, self.enter[place])

    def _leave(self, place: int) -> _Normed:
        return cast(_Normed, self.leave[place])


@dataclass(frozen=True)
class ReviewKD(OfStages, FeatureMethod):
    """Learn each layer of the teacher with all deeper ones of the student.

    Args:
        weight: Of the sum over layers once the ramp is over, above 0.
        ce_weight: Weight of the label term, at least 0; 0 leaves the labels unused.
        kd_weight: Weight of T^2 KL on the logits, at least 0.
        temperature: T of that, above 0.
        layers: Names of both networks' layers, or paths of modules of both, first to deepest; at least two. None: every stage that both
            name, three where that is not known, and `pooled`.
        ramp_epochs: In which the weight grows from its first part to the whole, at least 1.
        width: Most channels of the running map; those of the student's deepest layer where these are fewer.
    """

    weight: float = 1.0
    layers: tuple[str, ...] | None = None
    ramp_epochs: int = 20
    width: int = 512

    usual: ClassVar[tuple[str, ...]] = (*STAGES, "pooled")
    fewest: ClassVar[int] = 2
    name: ClassVar[str] = "reviewkd"
    card: ClassVar[Card] = Card(
        "Each layer of the teacher is learnt with all deeper ones of the student",
        "Chen et al., CVPR 2021, arXiv 2104.09044",
        "maps of the stages and the pooled vector",
        "certain",
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"with-kd": {"kd_weight": 1.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"method {self.name}"
        if callable(self.weight):
            do = "Its ramp is its schedule: pass a number, and ramp_epochs 1 for no ramp."
            raise ConfigError(expected("weight", "a number above 0", self.weight, where=where, do=do))
        at_least(self.ramp_epochs, 1, "ramp_epochs", where=where)
        at_least(self.width, 1, "width", where=where)
        if len(self.looked_at) < 2:
            do = "Of one layer use method fitnets."
            raise ConfigError(expected("layers", "at least two", self.looked_at, where=where, do=do))

    def own(self, task: Task) -> tuple[tuple[Term, ...], tuple[Connector, ...]]:
        """Return the hierarchical error of each layer, and the fusion."""
        names = tuple(feature(layer) for layer in self.looked_at)
        made = tuple(connected(name, "reviewed") for name in names)
        weight = Times(Ramp(self.ramp_epochs), self.weight)
        terms = tuple(
            # Of a vector, a map of one position, the squared error is all that there is.
            bind(_reviewed, mine, teacher=name, weight=weight, name=f"review/{layer}", over=SAMPLE_WEIGHT)
            for layer, mine, name in zip(self.looked_at, made, names, strict=True)
        )
        return terms, (Connector("review", names, made, self._review, weight_decay=None),)

    def _review(self, shapes: Shapes) -> Review:
        names = [feature(layer) for layer in self.looked_at]
        for name in [each for own in names for each in (own, of_teacher(own))]:
            if len(shapes[name]) not in (1, 3):
                wish = "maps [channels, height, width] or vectors [channels]"
                raise ConfigError(expected(name, wish, f"shape {list(shapes[name])}", where=f"method {self.name}"))
        mine = tuple(tuple(shapes[name]) for name in names)
        theirs = tuple(shapes[of_teacher(name)][0] for name in names)
        return Review(mine, theirs, min(self.width, mine[-1][0]))


def _reviewed(student: Tensor, teacher: Any) -> Tensor:
    """Return the hierarchical context loss of maps, the squared error of vectors."""
    return hcl(student, teacher) if student.ndim == 4 else feature_mse(student, teacher)
