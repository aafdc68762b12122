"""Adapters: what brings a student's features to the shape of the teacher's, trained beside the student and dropped afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from bookkd.core.errors import ConfigError, expected
from bookkd.objectives.connectors import ConnectorModule, Shapes

__all__ = ["Adapter", "linear_adapter", "map_adapter", "mlp_adapter", "shapes_in"]


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
        wish = f"maps of at least half the size of the teacher's {h_t} x {w_t}"
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
