"""Means of feature maps over space: what losses on channels need of a map, in a fraction of its bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bookkd.book.codecs.base import Array, Codec, Parts, RowIds, to_float16
from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected

__all__ = ["Pooled"]


@dataclass(frozen=True)
class Pooled(Codec):
    """Keep the mean of each channel over its spatial axes, or over the cells of a grid, as float16.

    [C, H, W] becomes [C], or [C, h, w] with a grid of h x w cells. Channel losses compare exactly the former; of the
    latter the channel and the spatial correlations of a map can be worked out, both in fewer bytes than they would take.
    Stated error: relative 2**-11 of each mean (absolute 2**-25 near zero). What varies inside a cell is gone.

    Args:
        grid: Cells along each spatial axis, which they divide; empty for one mean a channel.

    >>> maps = np.arange(8.0).reshape(1, 2, 2, 2)
    >>> Pooled().decode(Pooled().encode(maps), (2, 2, 2))
    array([[1.5, 5.5]], dtype=float16)
    """

    name: ClassVar[str] = "pooled"
    of_logits: ClassVar[bool] = False
    grid: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for cells in self.grid:
            at_least(cells, 1, "grid", where="codec pooled")

    def parts(self, shape: Sequence[int]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        return {"values": (np.dtype(np.float16), self.decoded_shape(shape))}

    def decoded_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        space = tuple(shape[1:])
        if not space:
            do = "Use codec dense or int8."
            raise ConfigError(expected("shape", "channels and spatial axes for codec pooled", tuple(shape), do=do))
        if self.grid and (len(self.grid) != len(space) or any(n % k for n, k in zip(space, self.grid, strict=False))):
            wish = f"one divisor for each spatial axis of {list(space)}"
            raise ConfigError(expected("grid", wish, self.grid, where="codec pooled"))
        return (shape[0], *self.grid)

    def encode(self, array: Array, ids: RowIds | None = None) -> Parts:
        values = np.asarray(array)
        channels, *space = values.shape[1:]
        shape = self.decoded_shape(values.shape[1:])
        cells = self.grid or (1,) * len(space)
        # Every spatial axis becomes (cells, inside); the insides are averaged.
        split = [size for axis, cell in zip(space, cells, strict=True) for size in (cell, axis // cell)]
        inside = tuple(range(3, 2 + len(split), 2))
        means = values.reshape(len(values), channels, *split).mean(axis=inside, dtype=np.float64)
        return {"values": to_float16(means.reshape(len(values), *shape))}

    def decode(self, parts: Mapping[str, Array], shape: Sequence[int]) -> Array:
        return parts["values"]
