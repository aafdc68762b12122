"""Adapters: what brings a student's features to the shape of the teacher's, trained beside the student and dropped afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, leaky_relu

from bookkd.core.errors import ConfigError, expected
from bookkd.losses.reductions import attention_map
from bookkd.objectives.connectors import ConnectorModule, Shapes

__all__ = [
    "Adapter",
    "Paraphraser",
    "Translator",
    "WithMargins",
    "linear_adapter",
    "map_adapter",
    "mlp_adapter",
    "shapes_in",
]


class Adapter(ConnectorModule):
    """One field passed through some layers.

    Args:
        layers: In this order.

    >>> import torch
    >>> Adapter(nn.Linear(2, 3), nn.ReLU())(torch.zeros(1, 2)).shape
    torch.Size([1, 3])
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features in the other shape."""
        found: Tensor = self.layers(features)
        return found


def shapes_in(shapes: Shapes, *names: str, axes: int, where: str) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of some fields, which must have so many axes a record.

    Args:
        shapes: What a connector is built from.
        names: Fields.
        axes: 3 of maps [channels, height, width], 1 of vectors.
        where: For the error.

    Raises:
        ConfigError: for a field of another number of axes.
    """
    for name in names:
        if len(shapes[name]) != axes:
            wish = "maps [channels, height, width]" if axes == 3 else "vectors [channels]"
            do = "Name another layer; bookkd inspect --model lists them with their shapes."
            raise ConfigError(expected(name, wish, f"shape {list(shapes[name])}", where=where, do=do))
    return tuple(tuple(shapes[name]) for name in names)


def map_adapter(
    mine: Sequence[int], theirs: Sequence[int], *, form: Literal["1x1", "fit"] = "1x1", relu: bool = True
) -> Adapter:
    """Return a convolution from the student's maps to the teacher's channels, with batch normalisation and, if wished, ReLU.

    "1x1" keeps the grid. "fit" brings it to the teacher's, as the benchmark of representation distillation does: 3 x 3 with stride 2
    from twice its size, 4 x 4 transposed with stride 2 from half of it, 1 x 1 or a valid convolution with a kernel of
    1 + h_S - h_T from another larger one.

    Args:
        mine: Shape of one of the student's maps, [c_S, h_S, w_S].
        theirs: Of the teacher's, [c_T, h_T, w_T].
        form: "1x1" or "fit".
        relu: Whether ReLU follows.

    Raises:
        ConfigError: for a grid that "fit" does not reach.

    >>> import torch
    >>> map_adapter((4, 8, 8), (6, 4, 4), form="fit")(torch.zeros(2, 4, 8, 8)).shape
    torch.Size([2, 6, 4, 4])
    """
    (c_s, h_s, w_s), (c_t, h_t, w_t) = mine, theirs
    kernel = (1 + h_s - h_t, 1 + w_s - w_t)
    fit: nn.Module
    if form == "1x1" or (h_s, w_s) == (h_t, w_t):
        fit = nn.Conv2d(c_s, c_t, 1, bias=False)
    elif (h_s, w_s) == (2 * h_t, 2 * w_t):
        fit = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1, bias=False)
    elif (2 * h_s, 2 * w_s) == (h_t, w_t):
        fit = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1, bias=False)
    elif min(kernel) > 0:
        fit = nn.Conv2d(c_s, c_t, kernel, bias=False)
    else:
        do = "Name a layer of the student whose maps are half as large, as large, or larger."
        wish = f"maps of half the teacher's {h_t} x {w_t}, as large, or larger"
        raise ConfigError(expected("layer", wish, f"{h_s} x {w_s}", where="adapter", do=do))
    return Adapter(fit, nn.BatchNorm2d(c_t), *([nn.ReLU()] if relu else []))


def linear_adapter(mine: Sequence[int], theirs: Sequence[int] | int) -> Adapter:
    """Return a linear layer from the student's vectors [d_S] to those of the teacher, or to so many numbers.

    >>> import torch
    >>> linear_adapter((4,), (6,))(torch.zeros(2, 4)).shape
    torch.Size([2, 6])
    """
    return Adapter(nn.Linear(mine[0], theirs if isinstance(theirs, int) else theirs[0]))


def mlp_adapter(mine: Sequence[int], theirs: Sequence[int] | int, hidden: int) -> Adapter:
    """Return two linear layers with ReLU between them.

    >>> import torch
    >>> mlp_adapter((4,), 6, hidden=8)(torch.zeros(2, 4)).shape
    torch.Size([2, 6])
    """
    out = theirs if isinstance(theirs, int) else theirs[0]
    return Adapter(nn.Linear(mine[0], hidden), nn.ReLU(), nn.Linear(hidden, out))


class Paraphraser(nn.Module):
    """An auto-encoder of maps whose middle, the factors, has half of the channels and the same grid.

    Three 3 x 3 convolutions, each with LeakyReLU of slope 0.1, and as many transposed ones back.

    Args:
        channels: Of the maps.

    >>> import torch
    >>> Paraphraser(4)(torch.zeros(2, 4, 3, 3)).shape
    torch.Size([2, 4, 3, 3])

    Source: Kim, Park and Kwak, "Paraphrasing Complex Network", NeurIPS 2018 (arXiv 1802.04977), as in RepDistiller.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        factors = max(1, channels // 2)
        widths = (channels, channels, factors, factors)
        self.encoder = nn.ModuleList(nn.Conv2d(before, behind, 3, padding=1) for before, behind in pairwise(widths))
        back = widths[::-1]
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(before, behind, 3, padding=1) for before, behind in pairwise(back)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps rebuilt from their factors."""
        for layer in (*self.encoder, *self.decoder):
            maps = leaky_relu(layer(maps), 0.1)
        return maps

    def constants(self) -> dict[str, Tensor]:
        """Return what makes the factors, on the CPU: `weight1`, `bias1` and so on, as `losses.reductions.paraphrase` takes them."""
        parts = [(place, layer) for place, layer in enumerate(self.encoder, 1)]
        return {
            f"{part}{place}": getattr(layer, part).detach().cpu().clone()
            for place, layer in parts
            for part in ("weight", "bias")
        }


class Translator(ConnectorModule):
    """Where the factors that are made of a student's maps are strong, on the grid of the teacher's.

    Args:
        mine: Shape of one of the student's maps, [c_S, h, w].
        factors: Channels of the teacher's factors.
        positions: Of the teacher's grid; that of the student is averaged to it where it has more.

    Raises:
        ConfigError: for a grid of fewer positions, or of another form.
    """

    def __init__(self, mine: Sequence[int], factors: int, positions: int) -> None:
        super().__init__()
        channels, height, width = mine
        ratio = (positions / (height * width)) ** 0.5
        self.grid = (round(height * ratio), round(width * ratio))
        if ratio > 1 or self.grid[0] * self.grid[1] != positions:
            do = "Name a layer of the student whose maps are as large as the teacher's, or larger."
            wish = f"maps of at least {positions} positions, of the form of the teacher's"
            raise ConfigError(expected("layer", wish, f"{height} x {width}", where="translator", do=do))
        layers: list[nn.Module] = []
        for before, behind in ((channels, channels), (channels, factors), (factors, factors)):
            layers += [nn.Conv2d(before, behind, 3, padding=1, bias=False), nn.BatchNorm2d(behind), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        """Return shape [batch, positions], of norm 1."""
        factors = self.layers(maps)
        return attention_map(factors if factors.shape[-2:] == self.grid else adaptive_avg_pool2d(factors, self.grid))


class WithMargins(ConnectorModule):
    """A student's maps in the teacher's channels, and beside them the margin of each channel, which is known of the teacher.

    Args:
        mine: Channels of the student.
        margins: Of the teacher's channels, shape [c_T].
    """

    margins: Tensor

    def __init__(self, mine: int, margins: Tensor) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(mine, len(margins), 1, bias=False), nn.BatchNorm2d(len(margins)))
        self.register_buffer("margins", margins.detach().clone())

    def forward(self, student: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's maps fitted, and the margins for each sample, [batch, c_T]."""
        return self.layers(student), self.margins.expand(len(student), -1)
