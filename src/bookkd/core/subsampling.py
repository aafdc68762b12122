"""How many frames a network keeps of so many that it hears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected

__all__ = ["Convolutions", "Subsampling", "as_subsampling", "frames_of"]


@dataclass(frozen=True)
class Convolutions:
    """Frames of a network that begins with convolutions over time: floor((frames + 2 padding - kernel) / stride) + 1, each in turn.

    Args:
        layers: Kernel, stride and padding of each.

    >>> front = Convolutions(((3, 2, 0), (3, 2, 0)))
    >>> front(100), front(6)
    (24, 0)

    Source: the rule of `torch.nn.Conv1d`, without dilation.
    """

    layers: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        given: Any = self.layers
        if not isinstance(given, Sequence) or not given or any(not _is_triple(each) for each in given):
            wish = "kernel, stride and padding of at least one convolution"
            raise ConfigError(expected("layers", wish, given, where="Convolutions"))
        object.__setattr__(self, "layers", tuple(tuple(each) for each in given))
        for kernel, stride, padding in self.layers:
            at_least(kernel, 1, "kernel", where="Convolutions")
            at_least(stride, 1, "stride", where="Convolutions")
            at_least(padding, 0, "padding", where="Convolutions")

    def __call__(self, lengths: Any) -> Any:
        """Return the frames that are kept, of a number, an array or a tensor of them; 0 where a kernel does not fit."""
        for kernel, stride, padding in self.layers:
            kept = (lengths + 2 * padding - kernel) // stride + 1
            lengths = kept * ((lengths > 0) & (kept > 0))
        return lengths


Subsampling = int | Convolutions
"""Input frames to one that a network keeps, the last of them filled up; or the convolutions that it begins with."""


def as_subsampling(given: Any, what: str, *, where: str) -> Subsampling:
    """Return a rule: a whole number of at least 1, `Convolutions`, or such a list of triples as these are made of.

    Raises:
        ConfigError: for anything else.

    >>> as_subsampling([[3, 2, 1]], "subsampling", where="ctc")
    Convolutions(layers=((3, 2, 1),))
    """
    if isinstance(given, Convolutions):
        return given
    if isinstance(given, list | tuple):
        return Convolutions(tuple(given))
    return at_least(given, 1, what, where=where, do="Of convolutions give kernel, stride and padding of each.")


def frames_of(lengths: Any, rule: Subsampling) -> Any:
    """Return the frames that a rule keeps of a number, an array or a tensor of input frames.

    >>> frames_of(7, 3), frames_of(7, Convolutions(((3, 3, 0),)))
    (3, 2)
    """
    return -(-lengths // rule) if isinstance(rule, int) else rule(lengths)


def _is_triple(given: Any) -> bool:
    return isinstance(given, Sequence) and len(given) == 3 and not isinstance(given, str)
