"""The k largest logits, and the exact mass of all the others at each promised temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bookkd.book.codecs.base import (
    Array,
    Codec,
    Parts,
    RowIds,
    SparseArray,
    UnreadableRowError,
    index_dtype,
    to_float16,
)
from bookkd.book.codecs.heavy import heavy
from bookkd.core.check import at_least, positive, unique
from bookkd.core.errors import ConfigError, expected

__all__ = ["TopK"]


@dataclass(frozen=True)
class TopK(Codec):
    """Keep the `k` largest logits minus the maximum, as float16, with log tail mass per promised temperature.

    At a promised T the stored distribution is p(kept) = (1 - tail) softmax(kept / T) beside one bucket of mass
    tail = exp(log_tail_mass at T): always a distribution. (Logits beside a separate log-sum-exp gave a kept mass above
    1 in 45 % of a confident teacher's records.) Of equal logits the lower class is kept. Stated error: relative 2**-11
    of each centred logit, and what stands in the tail bucket is not told apart.

    Args:
        k: Classes kept, 1 to the number of classes.
        temperatures: Temperatures at which the tail mass is stored; only these are honoured on reading.
        always: Classes that are kept whatever their logit, among the `k` and fewer: the control tokens of a language model (end
            of turn, begin of a call), which are rarely likely and always matter. The other places are for the largest of the rest.

    >>> codec = TopK(k=1, temperatures=(1.0,))
    >>> kept = codec.decode(codec.encode(np.log([[0.75, 0.25]])), (2,))
    >>> int(kept.indices[0, 0]), round(float(np.exp(kept.log_tail_mass[0, 0])), 6)
    (0, 0.25)
    """

    name: ClassVar[str] = "top_k"
    sparse: ClassVar[bool] = True
    k: int
    temperatures: tuple[float, ...] = (1.0,)
    always: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        at_least(self.k, 1, "k", where="codec top_k")
        if not self.temperatures:
            raise ConfigError(
                expected(
                    "temperatures",
                    "at least one",
                    (),
                    where="codec top_k",
                    do="Truncation without a tail is not offered.",
                )
            )
        for temperature in self.temperatures:
            positive(temperature, "temperatures", where="codec top_k")
        unique(self.temperatures, "temperatures", where="codec top_k")
        object.__setattr__(self, "always", tuple(self.always))
        for index in self.always:
            at_least(index, 0, "always", where="codec top_k")
        unique(self.always, "always", where="codec top_k")
        if len(self.always) >= self.k:
            do = "Raise k: the largest of the other classes need a place too."
            raise ConfigError(
                expected("always", f"fewer than k = {self.k}", len(self.always), where="codec top_k", do=do)
            )
        object.__setattr__(self, "temperatures", tuple(float(value) for value in self.temperatures))

    @property
    def promised(self) -> tuple[float, ...]:
        """The temperatures with a stored tail mass."""
        return self.temperatures

    def parts(self, shape: Sequence[int]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        if len(shape) != 1:
            raise ConfigError(
                expected("shape", "(n_classes,) for codec top_k", tuple(shape), do="Use codec dense or int8.")
            )
        if self.k > shape[0]:
            raise ConfigError(expected("k", f"at most the {shape[0]} classes", self.k, where="codec top_k"))
        if max(self.always, default=0) >= shape[0]:
            wish = f"below the {shape[0]} classes"
            raise ConfigError(expected("always", wish, max(self.always), where="codec top_k"))
        return {
            "values": (np.dtype(np.float16), (self.k,)),
            "indices": (index_dtype(shape[0]), (self.k,)),
            "log_tail_mass": (np.dtype(np.float32), (len(self.temperatures),)),
        }

    def encode(self, array: Array, ids: RowIds | None = None) -> Parts:
        values = np.asarray(array)
        layout = self.parts(values.shape[1:])
        found = heavy().largest(values, self.k, self.temperatures, self.always)
        # -0.0 would depend on which of two zeros is the largest.
        kept = to_float16(found.values - found.values[:, :1] + 0.0)
        return {
            "values": kept,
            "indices": found.classes.astype(layout["indices"][0]),
            "log_tail_mass": found.log_tails.astype(np.float32),
        }

    def decode(self, parts: Mapping[str, Array], shape: Sequence[int]) -> SparseArray:
        values, indices, tail = parts["values"], parts["indices"], parts["log_tail_mass"]
        _check(values, indices, tail, shape[0])
        return SparseArray(values, indices, tail, self.temperatures, shape[0])


def _check(values: Array, indices: Array, tail: Array, n_classes: int) -> None:
    """Refuse records that `encode` does not make: others would be no distribution, or point outside of the classes."""
    # Comparisons are written so that NaN fails them.
    falls = (values[:, 1:] <= values[:, :-1]).all(axis=1) & (values[:, 0] <= 0)
    if not falls.all():
        raise UnreadableRowError(int((~falls).argmax()), "its values do not fall from 0 at most")
    masses = (tail <= 0).all(axis=1)
    if not masses.all():
        raise UnreadableRowError(int((~masses).argmax()), "the mass of its tail is not between 0 and 1")
    if indices.max(initial=0) >= n_classes:
        raise UnreadableRowError(int((indices >= n_classes).any(axis=1).argmax()), f"a class is none of {n_classes}")
    ordered = np.sort(indices, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if twice.any():
        raise UnreadableRowError(int(twice.argmax()), "a class stands in it twice")
